"""Evaluation: attacks, metrics and the suites that run them."""
