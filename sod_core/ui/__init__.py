"""The Gradio app: one file a tab; nothing outside of this package imports gradio or plotly."""
