"""Between tokens and hidden states: a LLaMA, and the patches that images become (PyTorch).

Shape suffixes: B rows, T tokens, S keys, D width.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# --- The backbone: LLaMA ---


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD, position_BT, visible_BS, cache=None, block=False):
        """(normed hidden states, cache). The T rows are the last of the S that `visible` tells;
        each sees those before it, and of a block all."""
        S, T = visible_BS.shape[1], x_BTD.shape[1]
        mask = torch.ones(T, S, dtype=torch.bool, device=x_BTD.device)
        mask = (mask if block else mask.tril(S - T)) & visible_BS[:, None]
        # Padding sees itself, lest its softmax be empty.
        mask = mask | torch.eye(S, dtype=torch.bool, device=mask.device)[S - T :]
        tables = rope_tables(
            position_BT,
            self.config.head_dim,
            self.config.lapa["rope_theta"],
            getattr(torch, self.config.lapa["rope_rounding"]),
        )
        new = []
        for i, layer in enumerate(self.layers):
            x_BTD, kv = layer(x_BTD, tables, mask[:, None], cache[i] if cache else None)
            new.append(kv)
        return self.norm(x_BTD), new


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x, tables, mask, cache):
        y, cache = self.self_attn(self.input_layernorm(x), tables, mask, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Attention(nn.Module):
    """Of tokens of this width, with the heads of the backbone."""

    def __init__(self, config, width):
        super().__init__()
        self.head_dim, inner = config.head_dim, config.num_attention_heads * config.head_dim
        self.q_proj = Linear(width, inner)
        self.k_proj = Linear(width, inner)
        self.v_proj = Linear(width, inner)
        self.o_proj = Linear(inner, width)

    def forward(self, x, tables, mask, cache):
        q, k, v = (by_head(f(x), self.head_dim) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rope(q, *tables), rope(k, *tables)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(-2)), (k, v)


class Linear(nn.Linear):
    """In the dtype of its input, whatever that of its weights."""

    def __init__(self, inputs, outputs, bias=False):
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x))


class MLP(nn.Module):
    def __init__(self, width, inner, activation="silu"):
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)
        self.activation = activation

    def forward(self, x):
        gate = self.gate_proj(x)
        gate = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def by_head(x_BTD, head_dim):
    """(B, K, T, C)."""
    return x_BTD.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def rope_tables(position_BT, head_dim, theta, rounded):
    """cos and sin (B, 1, T, head_dim / 2), float32. `rounded`: the dtype that wavelengths, angles
    and tables are rounded to on the way; the original LAPA computes them in bfloat16."""
    wavelengths = theta ** (np.arange(0, head_dim, 2) / head_dim)
    wavelengths = torch.from_numpy(wavelengths).to(rounded).double()
    frequencies = (1.0 / wavelengths).float().to(position_BT.device)
    angles = (position_BT[:, None, :, None].float() * frequencies).to(rounded).float()
    return angles.cos().to(rounded).float(), angles.sin().to(rounded).float()


def rope(x, cos, sin):
    """Rotates the halves of a head."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


# --- The front-end: images → tokens ---


class Patches(nn.Module):
    """Convolutions of stride 2, patches of what they give, learned positions."""

    def __init__(self, settings, width):
        super().__init__()
        channels = (3, *settings["stem_channels"])
        self.stem = nn.ModuleList(map(ConvStage, channels[:-1], channels[1:]))
        self.cut = settings["patch_size"] // 2 ** len(self.stem)
        self.project = nn.Linear(channels[-1] * self.cut**2, width)
        rows, columns = (side // settings["patch_size"] for side in settings["image_size"])
        self.rows = nn.Parameter(torch.zeros(rows, 1, width))
        self.columns = nn.Parameter(torch.zeros(1, columns, width))

    def forward(self, images_BHWC):
        x = images_BHWC.float() / 255.0
        x = x - x.mean((1, 2), keepdim=True)
        x = x * torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + 1e-4)
        x = x.permute(0, 3, 1, 2).to(self.rows.dtype)
        for stage in self.stem:
            x = stage(x)
        B, C, H, W = x.shape
        p = self.cut
        x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1)
        x = self.project(x.reshape(B, H // p, W // p, -1)) + self.rows + self.columns
        return x.flatten(1, 2)


class ConvStage(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x):
        x = self.conv(F.pad(x, (0, 1, 0, 1)))  # sides are even: padding right and below
        x = F.gelu(self.norm(x.permute(0, 2, 3, 1)), approximate="tanh")
        return x.permute(0, 3, 1, 2)
