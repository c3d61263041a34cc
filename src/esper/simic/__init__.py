"""The learner: the main loop, rewards, and what learns from them. Read `training/vectorized.py` first."""
