"""What an action was worth."""
