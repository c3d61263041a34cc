"""Networks that decide."""
