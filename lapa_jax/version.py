"""The version of this code, for whoever may import nothing else."""

__version__ = "0.1.0"
