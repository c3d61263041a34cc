"""Memory: run folders, live, finished or killed, as tables of SQL, and what is made of them. `store.py` comes first."""
