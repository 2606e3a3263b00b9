"""Compiling for accelerators that are not there: chips, topologies, what a compiled program does."""
