"""Slices of TPUs by Cloud TPU's names, with the arrangement of their chips.

From docs.cloud.google.com/tpu/docs/VERSION, "configurations".
"""

_PLANE = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
_CUBE |= {256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"}

# Chip → the number in a slice's name → chips along each dimension of the torus. Some names count
# TensorCores, two to a chip: v5p-64 has 32 chips.
SLICES: dict[str, dict[int, str]] = {
    "v4": {2 * chips: shape for chips, shape in _CUBE.items()},
    "v5e": _PLANE,
    "v5p": {2 * chips: shape for chips, shape in _CUBE.items()},
    "v6e": _PLANE,
    "tpu7x": {2 * chips: shape for chips, shape in _CUBE.items()},
}
