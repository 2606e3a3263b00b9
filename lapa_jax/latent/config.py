"""The shape of a quantizer, checked when the config is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from lapa_jax.latent.bottlenecks import bottleneck_config, bottleneck_settings
from lapa_jax.latent.legacy import check_shapes
from lapa_jax.nn.attention import ATTENTIONS
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.stack import REMAT


@dataclass(frozen=True)
class QuantizerConfig:
    """The defaults: a small one for frames of 64 pixels a side. What a bottleneck and an objective
    are: {name, ...its settings}."""

    predicts: ClassVar[str] = "pixels"  # what its decoder gives

    image_size: tuple[int, int]
    num_frames: int
    compute_dtype: str
    architecture: Annotated[
        str, ("native",), "ours; those of others as they are have keys of their own"
    ] = "native"
    patch_size: Annotated[int, "[1, 8192]", "pixels"] = 8
    dim: Annotated[int, "[1, 65536]", "width of the layers"] = 48
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of a feed-forward"] = 96
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 3
    head_dim: Annotated[int, "[1, 4096]", "width of a head"] = 16
    spatial_depth: Annotated[int, "[1, 1024]", "layers that see one frame"] = 1
    temporal_depth: Annotated[int, "[1, 1024]", "layers that see all frames"] = 1
    decoder_depth: Annotated[int, "[1, 1024]", "layers that draw the later frame"] = 2
    quant_dim: Annotated[int, "[1, 65536]", "width of a latent and of a code"] = 4
    codebook_size: Annotated[int, "[2, 1e7]", "values of a code"] = 8
    code_length: Annotated[int, "[1, 4096]", "codes of a latent action"] = 1
    collapse_fraction: Annotated[
        float, "[0, 1)", "of codebook_size: training warns while perplexity stays under it"
    ] = 0.25
    normalize_decay: Annotated[
        float,
        "[0, 1)",
        "per step, of the mean and variance by which latents are normalised; 0.0 leaves them as "
        "they are (the paper)",
    ] = 0.95
    bottleneck: Annotated[Mapping[str, Any], "from latents to codes, by name"] = field(
        default_factory=lambda: bottleneck_settings("nsvq")
    )
    objective: Annotated[Mapping[str, Any], "what is predicted of later frames, by name"] = field(
        default_factory=lambda: {"name": "pixels"}
    )
    predict: Annotated[
        str,
        ("frame", "residual"),
        "the decoder's output is the later frame itself (the paper) or a residual added to the "
        "pixels of the first frame",
    ] = "residual"
    spatial_sees: Annotated[
        str,
        ("clip", "frame"),
        "in the spatial layers a frame's position convolution reaches to the frames before it, or "
        "each frame is by itself: then any pairs of a clip's frames share what they cost",
    ] = "clip"
    legacy: Annotated[bool, "the original's quirks"] = False
    attention: Annotated[str, ATTENTIONS, "kernel of attention, see docs/sharding.md"] = "auto"
    remat: Annotated[str, REMAT, "what the backward pass keeps, see docs/training.md"] = "none"
    unroll: Annotated[int, "[0, 1024]", "layers per scan step; 0: all"] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "bottleneck", dict(self.bottleneck))
        object.__setattr__(self, "objective", dict(self.objective))
        if self.num_frames < 2:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be at least 2: the quantizer sees pairs"
            )
        bottleneck_config(self.bottleneck)
        dtype_of(self.compute_dtype)
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"model.image_size={self.image_size} must be a multiple of "
                f"model.patch_size={self.patch_size} on both sides"
            )
        if self.legacy and self.spatial_sees != "clip":
            raise ValueError(
                f"model.spatial_sees={self.spatial_sees!r} must be 'clip' under model.legacy"
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

    @property
    def continuous(self) -> str:
        """The key that says so where there are no codes."""
        return f"model.bottleneck.name={self.bottleneck['name']!r}"

    def require_codes(self) -> None:
        require_codes(self)

    @property
    def code_grid(self) -> tuple[int, int]:
        """Code rows and columns."""
        return code_grid(self.code_length, self.grid, self.image_size, self.patch_size)


def require_codes(config: Any) -> None:
    """Raises ValueError for a quantizer's config without codes."""
    if not config.has_codes:
        raise ValueError(f"{config.continuous} has no codes: its latents are continuous")


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
