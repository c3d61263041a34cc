"""Runs for other tools. `traces.py` says what is told; `tensorboard.py` and `wandb.py` tell it."""
