"""Judges: they label data, judge answers and filter; none of them knows the model under test."""
