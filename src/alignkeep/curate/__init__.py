"""Which examples to learn from: optimal transport to safe and from harmful data."""
