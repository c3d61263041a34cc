"""The processes that `torchrun` starts: how they meet, watch each other and share a run. Read `fleet.py` first."""
