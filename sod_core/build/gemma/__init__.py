"""The pack `gemma-3-270m`: a real language model's weights fetched, an SAE of one of its layers trained, and judged."""
