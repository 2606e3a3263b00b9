"""A latent action quantizer in PyTorch: two frames → a latent action → the later frame.

    import sys; sys.path.append(DIR)
    from modeling_laq import load
    quantizer = load(DIR)
    z = quantizer.encode(first, last)         # frames (B, H, W, 3), uint8 or float in [0, 1]
    frame = quantizer.decode(first, z)

An encoder yields one latent for every code slot, f(last) − f(first); the bottleneck makes codes of
them; a decoder sees the first frame and, by cross-attention, the codes. Tensors called training.*
in the files belong to the run that trained the quantizer, and are not read here.

Shape suffixes: B batch, T frames (the pair), H and W rows and columns of patches ("cells"), N =
H·W, S keys, D width, L code slots, Q latent width, K heads, C head width, G dimensions of a grid.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F


def load(directory, device="cpu"):
    """The quantizer of an exported directory."""
    directory = Path(directory)
    quantizer, tensors = Quantizer(json.loads((directory / "config.json").read_text())), {}
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            own = [name for name in file.keys() if not name.startswith("training.")]
            tensors |= {name: file.get_tensor(name) for name in own}
    quantizer.load_state_dict(tensors)
    return quantizer.to(device).eval()


class Quantizer(nn.Module):
    """`encode` and `decode`, in float32."""

    def __init__(self, config):
        super().__init__()
        self.config, D = config, config["dim"]
        self.grid = tuple(side // config["patch_size"] for side in config["image_size"])
        legacy, Q = config["legacy"], config["quant_dim"]
        self.patches = PatchEmbedding(config["patch_size"], D)
        self.bias = PositionBias(self.grid, D, config["heads"])
        self.spatial = Transformer(config, config["spatial_depth"], "cells")
        self.temporal = Transformer(config, config["temporal_depth"], "frames")
        make = ConvolvedCodes if legacy else MomentCodes
        self.code_projection = make(config, self.grid)
        self.normalize = Normalizer(config["code_length"], Q) if config["normalize"] else None
        self.bottleneck = BOTTLENECKS[config["bottleneck"]](config)
        self.context = nn.Linear(Q, D)
        self.slots = None if legacy else nn.Parameter(torch.zeros(config["code_length"], D))
        self.decoder = Transformer(config, config["decoder_depth"], "cells", cross=True)
        self.pixels = nn.Linear(D, 3 * config["patch_size"] ** 2)

    def encode(self, first, last):
        """z int64 (B, code_length); of a continuous bottleneck the latent float32 (B, code_length,
        quant_dim). Frames (B, H, W, 3), uint8 or float in [0, 1], arrays or tensors."""
        return self.bottleneck.codes(self.latent(first, last))

    def decode(self, first, z):
        """The later frames float32 (B, H, W, 3) that z predicts, not clipped."""
        vectors = self.bottleneck.vectors(self._checked(self._tensor(z)))
        return self.decode_latent(first, rotation(vectors, self.config["rotation"]))

    @torch.no_grad()
    def latent(self, first, last):
        """float32 (B, code_length, quant_dim), before the bottleneck."""
        frames = torch.stack([self._frames(first), self._frames(last)], dim=1)
        B, T = frames.shape[:2]
        x = self.patches(frames)
        apart = self.config["spatial_sees"] == "frame"
        x = self.spatial(x.flatten(0, 1)[:, None] if apart else x, bias_KNN=self.bias())
        x = self.temporal(x[:, 0].unflatten(0, (B, T)) if apart else x)
        slots = self.code_projection(x.flatten(0, 1)).unflatten(0, (B, T))
        latent = slots[:, 1] - slots[:, 0]
        return latent if self.normalize is None else self.normalize(latent)

    @torch.no_grad()
    def decode_latent(self, first, z_BLQ):
        """As `decode`, from what the bottleneck gives."""
        first = self._frames(first)
        if self.slots is None:  # the original reads each (L, Q) block as (Q, L), transposed
            B, L, Q = z_BLQ.shape
            context = self.context(z_BLQ.reshape(B, Q, L).transpose(1, 2))
        else:
            context = self.context(z_BLQ) + self.slots
        x = self.decoder(self.patches(first[:, None]), self.bias(), context)[:, 0]
        frame = from_patches(self.pixels(x), self.config["patch_size"])
        return first + frame if self.config["predict"] == "residual" else frame

    def _frames(self, frames):
        frames = self._tensor(frames)
        expected = (*self.config["image_size"], 3)
        if frames.ndim != 4 or frames.shape[1:] != expected:
            raise ValueError(f"frames of shape {tuple(frames.shape)} are not (batch, *{expected})")
        if frames.dtype == torch.uint8:
            return frames.float() / 255.0
        if not frames.is_floating_point() or frames.min() < 0 or frames.max() > 1:
            raise ValueError(f"frames {frames.dtype} must be uint8, or float in [0, 1]")
        return frames.float()

    def _tensor(self, x):
        x = x if torch.is_tensor(x) else torch.tensor(np.asarray(x))
        return x.to(self.context.weight.device)

    def _checked(self, z):
        L, Q, size = (self.config[x] for x in ("code_length", "quant_dim", "codebook_size"))
        continuous = isinstance(self.bottleneck, Continuous)
        shape = (L, Q) if continuous else (L,)
        if z.shape[1:] != shape or z.is_floating_point() != continuous:
            kind = "float" if continuous else "integers"
            raise ValueError(
                f"z {z.dtype}{list(z.shape)} must be {kind} of shape (batch, *{shape})"
            )
        if not continuous and (z.min() < 0 or z.max() >= size):
            raise ValueError(f"z holds codes from {z.min()} to {z.max()}, the codebook has {size}")
        return z


# --- Frames and patches; values of a patch are ordered (channel, row, column) ---


class PatchEmbedding(nn.Module):
    def __init__(self, patch_size, dim):
        super().__init__()
        self.patch_size, pixels = patch_size, 3 * patch_size**2
        self.norm_in, self.norm_out = nn.LayerNorm(pixels), nn.LayerNorm(dim)
        self.project = nn.Linear(pixels, dim)

    def forward(self, frames_BTIJC):
        p = self.patch_size
        x = frames_BTIJC.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # B T H p W p C
        x = x.permute(0, 1, 2, 4, 6, 3, 5).flatten(4)
        return self.norm_out(self.project(self.norm_in(x)))


def from_patches(x_BHWP, patch_size):
    x = x_BHWP.unflatten(3, (3, patch_size, patch_size)).permute(0, 1, 4, 2, 5, 3)
    return x.flatten(3, 4).flatten(1, 2)


# --- Transformers ---


class Transformer(nn.Module):
    def __init__(self, config, depth, over, cross=False):
        super().__init__()
        self.layers = nn.ModuleList(Block(config, over, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(config["dim"], bias=False)

    def forward(self, x_BTHWD, bias_KNN=None, context_BLD=None):
        for layer in self.layers:
            x_BTHWD = layer(x_BTHWD, bias_KNN, context_BLD)
        return self.norm(x_BTHWD)


class Block(nn.Module):
    """Position convolution, self-attention over the "cells" of a frame or the "frames" at a cell,
    cross-attention in the decoder, feed-forward."""

    def __init__(self, config, over, cross):
        super().__init__()
        D, self.over, self.legacy = config["dim"], over, config["legacy"]
        self.position = nn.Conv3d(D, D, 3, groups=D)
        self.attention = CosineAttention(config)
        self.cross = CosineAttention(config, cross=True) if cross else None
        self.mlp = GEGLU(D, config["mlp_dim"])

    def forward(self, x_BTHWD, bias_KNN, context_BLD):
        shape = B, T, H, W, D = x_BTHWD.shape
        if self.over == "frames":
            x = x_BTHWD + (self._scrambled if self.legacy else self._position)(x_BTHWD)
            x = x.movedim(1, 3).reshape(B * H * W, T, D)
            x = x + self.attention(x, causal=not self.legacy)
            x = x.reshape(B, H, W, T, D).movedim(3, 1)
        else:
            x = (x_BTHWD + self._position(x_BTHWD)).reshape(B * T, H * W, D)
            x = x + self.attention(x, bias_KNN=bias_KNN)
        if self.cross is not None:
            x = x + self.cross(x, context_BLD)
        return (x + self.mlp(x)).reshape(shape)

    def _position(self, x_BTHWD):
        """Over (frames, rows, columns), causal in the frames."""
        x = F.pad(x_BTHWD.movedim(-1, 1), (1, 1, 1, 1, 2, 0))
        return self.position(x).movedim(1, -1)

    def _scrambled(self, x_BTHWD):
        """The original reads rows in (row, column, frame) order as (frame, row, column)."""
        shape = B, T, H, W, D = x_BTHWD.shape
        x = self._position(x_BTHWD.movedim(1, 3).reshape(shape))
        return x.reshape(B, H, W, T, D).movedim(3, 1)


class CosineAttention(nn.Module):
    """Queries and keys of length one, with learned scales and a constant one of 8."""

    def __init__(self, config, cross=False):
        super().__init__()
        D, self.heads, C = config["dim"], config["heads"], config["head_dim"]
        self.norm = nn.LayerNorm(D, bias=False)
        self.context_norm = nn.LayerNorm(D, bias=False) if cross else None
        self.q = nn.Linear(D, self.heads * C, bias=False)
        self.kv = nn.Linear(D, 2 * self.heads * C, bias=False)
        self.out = nn.Linear(self.heads * C, D, bias=False)
        self.q_scale, self.k_scale = (nn.Parameter(torch.ones(C)) for _ in range(2))
        # Pairs to attend to where nothing is needed from the context.
        self.null_kv = nn.Parameter(torch.zeros(2, 2, self.heads, C)) if cross else None
        self.normalize_kv = not config["legacy"]

    def forward(self, x_BTD, context_BSD=None, bias_KNN=None, causal=False):
        normed = self.norm(x_BTD)
        source = normed if self.normalize_kv else x_BTD
        if context_BSD is not None:
            source = self.context_norm(context_BSD)
        q = self.q(normed).unflatten(-1, (self.heads, -1))
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).unbind(2)
        if self.null_kv is not None:
            null = self.null_kv[:, None].expand(-1, len(k), -1, -1, -1)
            k, v = torch.cat([null[0], k], 1), torch.cat([null[1], v], 1)
        q, k = unit(q) * self.q_scale, unit(k) * self.k_scale
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_KNN, is_causal=causal, scale=8.0)
        return self.out(y.transpose(1, 2).flatten(-2))


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


class GEGLU(nn.Module):
    def __init__(self, dim, mlp_dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.wi = nn.Linear(dim, 2 * mlp_dim, bias=False)  # the values, then the gates
        self.wo = nn.Linear(mlp_dim, dim, bias=False)

    def forward(self, x):
        value, gate = self.wi(self.norm(x)).chunk(2, dim=-1)
        return self.wo(value * F.gelu(gate))


class PositionBias(nn.Module):
    """One bias a head for every offset between cells, by a network of its logarithm: (K, N, N)."""

    def __init__(self, grid, dim, heads):
        super().__init__()
        self.grid = grid
        self.first, self.second = nn.Linear(2, dim), nn.Linear(dim, dim)
        self.third = nn.Linear(dim, heads)

    def forward(self):
        cells = torch.from_numpy(np.stack(np.indices(self.grid), -1).reshape(-1, 2))
        offsets = (cells[:, None] - cells).to(self.first.weight)
        unique, index = offsets.flatten(0, 1).unique(dim=0, return_inverse=True)
        x = unique.sign() * (unique.abs() + 1).log()
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.1)), 0.1)
        return self.third(x)[index].unflatten(0, offsets.shape[:2]).movedim(-1, 0)


# --- Cells → code slots ---


class MomentCodes(nn.Module):
    """A slot's latent from the sums over its cells of h, h · row and h · column."""

    def __init__(self, config, grid):
        super().__init__()
        self.slots, D = config["code_grid"], config["dim"]
        sides = [side // slots for side, slots in zip(grid, self.slots, strict=True)]
        # Of the constant, row and column moment: what a cell counts.
        self.register_buffer("weights", torch.zeros(*sides, 3))
        self.cell = nn.Linear(D, D)
        self.out = nn.Linear(3 * D, config["quant_dim"], bias=False)

    def forward(self, x_BHWD):
        (rows, columns), (h, w, _) = self.slots, self.weights.shape
        x = F.gelu(self.cell(x_BHWD), approximate="tanh")
        x = x.unflatten(2, (columns, w)).unflatten(1, (rows, h))
        moments = torch.einsum("brhcwd,hwm->brcmd", x, self.weights)
        return self.out(moments.flatten(3)).flatten(1, 2)


class ConvolvedCodes(nn.Module):
    """The original's: a linear map and strided convolutions with a ReLU between."""

    def __init__(self, config, grid):
        super().__init__()
        Q = config["quant_dim"]
        self.project = nn.Linear(config["dim"], Q)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(Q, Q, size, stride, padding)
            for size, stride, padding in config["convolutions"]
        )

    def forward(self, x_BHWD):
        x = self.project(x_BHWD).movedim(-1, 1)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(F.relu(x) if i else x)
        return x.flatten(2).transpose(1, 2)


class Normalizer(nn.Module):
    """By the training's running statistics."""

    def __init__(self, length, dim):
        super().__init__()
        self.register_buffer("mean", torch.zeros(length, dim))
        self.register_buffer("variance", torch.ones(length, dim))

    def forward(self, z_BLQ):
        return (z_BLQ - self.mean) * torch.rsqrt(self.variance + 1e-12)


# --- Rotations, of quantizers whose decoder receives such ---


def rotation(z_BLQ, projection):
    """What the decoder receives: with a `projection`, latents read as square matrices become the
    exponential of their skew part ("exp"), or the "nearest" rotation."""
    if not projection:
        return z_BLQ
    side = math.isqrt(z_BLQ[0].numel())
    matrix = z_BLQ.reshape(-1, side, side)
    if projection == "exp":
        found = torch.linalg.matrix_exp(0.5 * (matrix - matrix.mT) / math.sqrt(side))
    else:
        U, _, Vh = torch.linalg.svd(matrix)
        found = torch.cat([U[..., :-1], U[..., -1:] * (U @ Vh).det()[:, None, None]], -1) @ Vh
    return found.reshape(z_BLQ.shape)


# --- Bottlenecks: latents → codes → what the decoder receives ---


class Codebook(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config["codebook_size"], config["quant_dim"]
        self.codebook = nn.Parameter(torch.zeros(size))

    def codes(self, z_BLQ):
        """The nearest, of equals the first."""
        distances = self.codebook.square().sum(-1) - 2 * z_BLQ @ self.codebook.T
        return distances.argmin(-1)

    def vectors(self, codes_BL):
        return self.codebook[codes_BL]


class CodeGrid(nn.Module):
    """Codes count the cells of a grid over [-1, 1]^G, the first dimension fastest."""

    def __init__(self, config):
        super().__init__()
        levels = torch.tensor(config["levels"])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("strides", levels.cumprod(0) // levels, persistent=False)
        self.into = nn.Linear(config["quant_dim"], len(levels), bias=False)
        self.out = nn.Linear(len(levels), config["quant_dim"], bias=False)

    def codes(self, z_BLQ):
        return (self.cell(self.into(z_BLQ)).long() * self.strides).sum(-1)

    def vectors(self, codes_BL):
        cell_BLG = codes_BL[..., None] // self.strides % self.levels
        return self.out(2.0 * cell_BLG / (self.levels - 1) - 1.0)


class RoundedGrid(CodeGrid):  # finite scalar quantisation
    def cell(self, z_BLG):
        return (0.5 * (self.levels - 1) * (z_BLG.tanh() + 1.0)).round()


class SignGrid(CodeGrid):  # lookup-free quantisation: a bit a dimension
    def cell(self, z_BLG):
        return z_BLG > 0


class Continuous(nn.Module):
    """Latents that stay as they are."""

    def __init__(self, config):
        super().__init__()

    def codes(self, z_BLQ):
        return z_BLQ

    def vectors(self, z_BLQ):
        return z_BLQ.float()


BOTTLENECKS = {
    "codebook": Codebook,
    "fsq": RoundedGrid,
    "lfq": SignGrid,
    "continuous": Continuous,
}
