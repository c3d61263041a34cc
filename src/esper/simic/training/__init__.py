"""The main loop and what it tells."""
