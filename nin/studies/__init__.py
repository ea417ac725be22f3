"""What is asked of a net and of its training: speed, and what comes with it."""
