"""The front door: the command line and what it is made of. Start with `main.py`."""
