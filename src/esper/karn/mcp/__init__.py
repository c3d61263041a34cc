"""What an agent may ask of runs, over the Model Context Protocol: read-only tools. `server.py` comes first."""
