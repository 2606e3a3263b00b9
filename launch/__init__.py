"""Launching runs and keeping them alive. Standard library only; nothing of the other rooms."""
