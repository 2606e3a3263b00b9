"""Latent action pretraining from videos (arXiv 2410.11758) in JAX.

Importing this package is cheap: no TensorFlow, no torch, no simulator.
"""

__version__ = "0.1.0"
