"""The shape of a dynamics model, checked when the config is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from lapa_jax.nn.attention import ATTENTIONS
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.registry import default_settings, typed_config
from lapa_jax.nn.stack import REMAT
from lapa_jax.world.tokenizers import PatchTokenizerConfig, tokenizer_of

TOKENIZER_KEY = "model.image_tokenizer"


@dataclass(frozen=True)
class DynamicsConfig:
    """The defaults: a small one for frames of 64 pixels a side."""

    rope_theta: ClassVar[float] = 10_000.0
    norm_eps: ClassVar[float] = 1e-6
    init_std: ClassVar[float] = 0.06  # of the weights at first

    image_size: tuple[int, int]
    num_frames: int
    compute_dtype: str
    latent_dim: int  # width of the vectors of a z; 0: codes
    form: Annotated[
        str,
        ("maskgit", "next_token"),
        "how the tokens of a frame are drawn: many at a time, the surest first, in decode_steps "
        "passes (MaskGIT); or one after the other, row by row",
    ] = "maskgit"
    latent_codes: Annotated[
        int, "[0, 1e7]", "values of a code of z in the label set; 0: it has vectors"
    ] = 8
    latent_length: Annotated[int, "[1, 4096]", "codes, or vectors, of a z in the label set"] = 1
    weights: Annotated[
        str,
        'run of stage "image_tokenizer" that a new run takes the tokenizer from; then it is in its '
        "own checkpoints",
    ] = ""
    image_tokenizer: Annotated[Mapping[str, Any], "the tokenizer's model, as that run has it"] = (
        field(default_factory=lambda: default_settings(PatchTokenizerConfig))
    )
    dim: Annotated[int, "[1, 65536]", "width of the layers"] = 128
    depth: Annotated[int, "[1, 1024]", "layers that see the past frames and z"] = 4
    draw_depth: Annotated[int, "[1, 1024]", "layers that draw the next frame"] = 2
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 4
    head_dim: Annotated[int, "[2, 4096]", "width of a head, even: RoPE rotates pairs"] = 32
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of a feed-forward"] = 256
    noise: Annotated[
        float,
        "[0, 1)",
        "the most of a past frame's tokens that training replaces by others; the model is told how "
        "many",
    ] = 0.3
    noise_levels: Annotated[int, "[2, 4096]", "from none to the most, that are told apart"] = 8
    decode_steps: Annotated[int, "[1, 4096]", "passes in which maskgit draws a frame"] = 2
    attention: Annotated[str, ATTENTIONS, "kernel of attention, see docs/sharding.md"] = "auto"
    remat: Annotated[str, REMAT, "what the backward pass keeps, see docs/training.md"] = "none"
    unroll: Annotated[int, "[0, 1024]", "layers per scan step; 0: all"] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        dtype_of(self.compute_dtype)
        if self.num_frames < 2:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be at least 2: a frame and the next"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")
        # In float32 whatever the model computes in, as the tokenizer's own run makes labels.
        sizes = dict(image_size=self.image_size, compute_dtype="float32")
        shape = tokenizer_of(self.image_tokenizer, TOKENIZER_KEY)[0]
        tokenizer = typed_config(shape, {**self.image_tokenizer, **sizes}, TOKENIZER_KEY)
        object.__setattr__(self, "tokenizer", tokenizer)
        rows, columns = self.grid
        if self.form == "maskgit" and self.decode_steps > rows * columns:
            raise ValueError(
                f"model.decode_steps={self.decode_steps} must be at most the {rows * columns} "
                "tokens of a frame"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        return self.tokenizer.grid(self.image_size)

    @property
    def vocab(self) -> int:
        """Values of a token."""
        return self.tokenizer.codebook_size

    @property
    def seen(self) -> int:
        """Frames that it sees at most."""
        return self.num_frames - 1
