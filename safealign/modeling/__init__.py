"""The safety token and head on any causal language model."""
