"""Launching runs on pods and GPU hosts."""
