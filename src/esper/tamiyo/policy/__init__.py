"""What may be chosen and what is seen."""
