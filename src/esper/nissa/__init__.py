"""The senses: what a run tells goes to files, and one calm line to the terminal.

Start with `run_folder.py` (where a run lives), then `writer.py` (how events get there) and `reader.py` (how they
come back). `progress.py` is the line on the terminal.
"""
