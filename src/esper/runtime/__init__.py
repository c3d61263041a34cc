"""The shelf of tasks: hosts with their data. Start with `tasks.py`."""
