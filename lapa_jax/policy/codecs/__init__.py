"""Between values and tokens, in NumPy alone."""
