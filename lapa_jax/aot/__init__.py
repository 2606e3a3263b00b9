"""Compiling for accelerators that are not there: topologies, HLO text, rooflines."""
