"""Text and actions as tokens; pure NumPy, importable without JAX."""
