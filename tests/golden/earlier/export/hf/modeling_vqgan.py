"""An image tokenizer in PyTorch: the encoder of LWM's VQGAN (Esser et al. 2021), images → codes.

Shape suffixes: B batch, I and J image rows and columns, H and W rows and columns of codes, C
channels, N = B·H·W, K codes.
"""

import torch
from torch import nn
from torch.nn import functional as F

GROUPS, EPS = 32, 1e-6  # of the norms


class ImageEncoder(nn.Module):
    """Computes in float32. `settings`: dim times a multiplier is the width of a level, each level
    but the last halves the sides."""

    def __init__(self, settings):
        super().__init__()
        dim, latent, code = (settings[f"{x}dim"] for x in ("", "latent_", "code_"))
        widths = [dim * multiplier for multiplier in settings["multipliers"]]
        inputs, last = [dim, *widths], len(widths) - 1
        self.stem = nn.Conv2d(3, dim, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(inputs[i], width, settings["blocks"], halve=i < last)
            for i, width in enumerate(widths)
        )
        self.middle = Level(widths[-1], widths[-1], 2, halve=False)
        self.norm = nn.GroupNorm(GROUPS, widths[-1], EPS)
        self.out = nn.Conv2d(widths[-1], latent, 3, padding=1)
        self.to_code = nn.Conv2d(latent, code, 1)
        self.codebook = nn.Parameter(torch.zeros(settings["codebook_size"], code))

    def forward(self, images_BIJC):
        """Codes int64 (B, H, W) of uint8 images: the nearest ones, of equally near the first."""
        z = self.latents(images_BIJC)
        # |z|² is the same for all codes and left out.
        distance_NK = self.codebook.square().sum(1) - 2.0 * z.flatten(0, 2) @ self.codebook.T
        return distance_NK.argmin(1).reshape(z.shape[:3])

    def latents(self, images_BIJC):
        """What is quantised, (B, H, W, code_dim)."""
        x = self.stem((images_BIJC.float() / 127.5 - 1.0).permute(0, 3, 1, 2))
        for level in self.levels:
            x = level(x)
        x = self.out(F.silu(self.norm(self.middle(x))))
        return self.to_code(x).permute(0, 2, 3, 1)


class Level(nn.Module):
    def __init__(self, inputs, width, blocks, halve):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(width if i else inputs, width) for i in range(blocks)
        )
        self.resize = nn.Conv2d(width, width, 3, stride=2) if halve else None

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x if self.resize is None else self.resize(F.pad(x, (0, 1, 0, 1)))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.norm_0, self.norm_1 = (nn.GroupNorm(GROUPS, n, EPS) for n in (inputs, width))
        self.conv_0 = nn.Conv2d(inputs, width, 3, padding=1)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else None

    def forward(self, x):
        y = self.conv_0(F.silu(self.norm_0(x)))
        y = self.conv_1(F.silu(self.norm_1(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))
