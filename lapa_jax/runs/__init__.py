"""Directories of runs: what is claimed, read back, labelled with and looked at."""
