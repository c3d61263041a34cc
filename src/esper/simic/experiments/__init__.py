"""How experiments are judged."""
