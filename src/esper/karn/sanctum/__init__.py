"""Sanctum: the garden in a terminal. `board.py` says what is drawn where, `app.py` is the program around it."""
