"""Latent action pretraining from videos (arXiv 2410.11758) in JAX.

Importing this package is cheap: no TensorFlow, no torch, no simulator.
"""

from lapa_jax.version import __version__

__all__ = [
    "LeRobotPolicy",
    "__version__",
    "load_dynamics",
    "load_image_tokenizer",
    "load_policy",
    "load_quantizer",
    "rollout",
]


def __getattr__(name):
    """`LeRobotPolicy` and `rollout`: see lapa_jax.serving.adapters."""
    if name in ("LeRobotPolicy", "rollout"):
        from lapa_jax.serving import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_quantizer(directory):
    """A trained or imported quantizer, with `encode` and `decode`: see lapa_jax.runs.loaded."""
    from lapa_jax.runs.loaded import load_quantizer

    return load_quantizer(directory)


def load_dynamics(directory):
    """A trained dynamics model, with `imagine`: see lapa_jax.runs.loaded."""
    from lapa_jax.runs.loaded import load_dynamics

    return load_dynamics(directory)


def load_image_tokenizer(directory):
    """An image tokenizer, with `encode` and `decode`: see lapa_jax.runs.loaded."""
    from lapa_jax.runs.loaded import load_image_tokenizer

    return load_image_tokenizer(directory)


def load_policy(directory, *, image_tokenizer=None, weights="trained"):
    """A trained or imported policy, with `predict_latent`, `predict_action` and `logits`: see
    lapa_jax.runs.loaded."""
    from lapa_jax.runs.loaded import load_policy

    return load_policy(directory, image_tokenizer=image_tokenizer, weights=weights)
