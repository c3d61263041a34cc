"""A world of arithmetic with a known best policy: start with `world.py`."""
