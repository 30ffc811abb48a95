"""Checkpoints of a run: what is in one, how it is written, which is the newest whole one, how a run goes on from it."""
