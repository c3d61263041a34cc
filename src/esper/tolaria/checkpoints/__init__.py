"""Checkpoints: the state of a run in folders that are complete, hashed and harmless to read. Read `store.py` first."""
