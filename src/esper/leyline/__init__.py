"""Shared words: tables, reports, events, strict configs. Imports nothing of ours; everyone may import it.

Start with `factored_actions.py` (what can be done), `stages.py` (the life of a seed) and `reports.py` (what can
be seen).
"""
