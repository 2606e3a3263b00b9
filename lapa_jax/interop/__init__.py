"""Foreign weight formats: one declarative mapping each, used in both directions."""
