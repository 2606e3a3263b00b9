"""What `lapa VERB` runs: flags and text; the work is in the rooms below."""
