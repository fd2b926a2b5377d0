"""The verb mask: a discrete key-value bottleneck forbids the pairs that the forget set chooses."""
