"""Trainer callbacks, one behaviour per file."""
