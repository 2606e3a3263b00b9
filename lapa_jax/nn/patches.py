"""Images as square patches, and back.

Shape suffixes: B batch, I image rows, J image columns, H and W patch rows and columns, C channels,
P = C·patch² values of a patch.
"""

import jax


def to_patches(frames: jax.Array, patch: int) -> jax.Array:
    """(..., I, J, C) → (..., H, W, P), within a patch ordered (channel, row, column)."""
    *lead, rows, columns, channels = frames.shape
    x = frames.reshape(*lead, rows // patch, patch, columns // patch, patch, channels)
    n = len(lead)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, rows // patch, columns // patch, channels * patch**2)


def from_patches(patches_BHWP: jax.Array, patch: int) -> jax.Array:
    """The inverse of `to_patches`, (B, I, J, C)."""
    B, H, W, P = patches_BHWP.shape
    x = patches_BHWP.reshape(B, H, W, P // patch**2, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(B, H * patch, W * patch, -1)
