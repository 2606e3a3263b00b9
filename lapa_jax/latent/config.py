"""The shape of a quantizer, checked when the config is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lapa_jax.latent.bottlenecks import bottleneck_config, bottleneck_settings
from lapa_jax.latent.legacy import check_shapes
from lapa_jax.nn.layers import dtype_of

PREDICT = ("frame", "residual")


@dataclass(frozen=True)
class QuantizerConfig:
    """The defaults: a small one for frames of 64 pixels a side.

    `collapse_fraction`: of codebook_size; training warns while perplexity stays under it.
    `normalize_decay`: per step, of the mean and variance by which latents are normalised; 0 leaves
    them as they are (the paper). `bottleneck`, `objective`: {name, ...its settings}. `predict`: the
    decoder's output is the later "frame" itself (the paper) or a "residual" added to the pixels of
    the first frame. `legacy`: the original's quirks (legacy.py). `unroll`: layers per scan step, 0
    for all."""

    image_size: tuple[int, int]
    num_frames: int
    compute_dtype: str
    patch_size: int = 8  # pixels
    dim: int = 48
    mlp_dim: int = 96
    heads: int = 3
    head_dim: int = 16
    spatial_depth: int = 1
    temporal_depth: int = 1
    decoder_depth: int = 2
    quant_dim: int = 4
    codebook_size: int = 8
    code_length: int = 1
    collapse_fraction: float = 0.25
    normalize_decay: float = 0.95
    bottleneck: Mapping[str, Any] = field(default_factory=lambda: bottleneck_settings("nsvq"))
    objective: Mapping[str, Any] = field(default_factory=lambda: {"name": "pixels"})
    predict: str = "residual"
    legacy: bool = False
    attention: str = "auto"  # or xla, cudnn, splash, ring: see docs/sharding.md
    remat: str = "none"
    unroll: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "bottleneck", dict(self.bottleneck))
        object.__setattr__(self, "objective", dict(self.objective))
        for name in (f.name for f in fields(self) if f.type in ("int", int)):
            if name != "unroll" and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.codebook_size < 2:
            raise ValueError(f"model.codebook_size={self.codebook_size} must be at least 2")
        if self.num_frames < 2:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be at least 2: the quantizer sees pairs"
            )
        if self.predict not in PREDICT:
            raise ValueError(f"model.predict={self.predict!r} must be one of {PREDICT}")
        for name in ("normalize_decay", "collapse_fraction"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be in [0, 1)")
        bottleneck_config(self.bottleneck)
        dtype_of(self.compute_dtype)
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"model.image_size={self.image_size} must be a multiple of "
                f"model.patch_size={self.patch_size} on both sides"
            )
        if self.legacy:
            check_shapes(self.code_length, self.grid, self.predict, self.num_frames)
        else:
            code_grid(self.code_length, self.grid, self.image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def has_codes(self) -> bool:
        """False for a bottleneck that stays continuous."""
        return bottleneck_config(self.bottleneck)[0].form != "continuous"

    def require_codes(self) -> None:
        if not self.has_codes:
            raise ValueError(
                f"model.bottleneck.name={self.bottleneck['name']!r} has no codes: its latents are "
                "continuous"
            )

    @property
    def code_grid(self) -> tuple[int, int]:
        """Code rows and columns."""
        return code_grid(self.code_length, self.grid, self.image_size, self.patch_size)


def code_grid(
    code_length: int, grid: tuple[int, int], image_size: tuple[int, int], patch_size: int
) -> tuple[int, int]:
    """The squarest (rows, columns) with rows · columns = code_length that divide the patch grid."""
    candidates = [
        (rows, code_length // rows)
        for rows in range(1, code_length + 1)
        if code_length % rows == 0 and grid[0] % rows == 0 and grid[1] % (code_length // rows) == 0
    ]
    if not candidates:
        raise ValueError(
            f"model.code_length={code_length} cannot be laid over the {grid[0]}x{grid[1]} patch "
            f"grid of model.image_size={image_size} / model.patch_size={patch_size}: it needs "
            f"rows x columns = {code_length} with rows dividing {grid[0]} and columns "
            f"dividing {grid[1]}"
        )
    return min(candidates, key=lambda shape: (abs(shape[0] - shape[1]), shape[1]))
