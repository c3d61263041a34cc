"""The engine: trains hosts, measures them, keeps accounts, takes back what goes wrong.

Start with `engine.py` (E environments in lockstep), then `environment.py` (one host run) and `measuring.py`.
"""
