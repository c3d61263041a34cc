"""The mind: what it sees, what it may do, and the controllers that decide.

Start with `controller.py` (the one interface) and `heuristic.py` (a rule that works).
"""
