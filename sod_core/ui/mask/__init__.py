"""The Mask tab: a slider forbids a class's entries of a key-value bottleneck, on the whole test set at once."""
