"""What a LAPA policy gives as numbers: chunks in one pass, and by flow from noise (PyTorch).

Shape suffixes: B examples, n vectors of one, T tokens of the backbone, K heads, C head width, D
width, V numbers of a vector.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .modeling_backbone import MLP, Attention, Linear, RMSNorm, by_head, rope, rope_tables

PERIODS = (4e-3, 4.0)  # of the sines of time


def head_of(config, spec):
    """The module of a head: hidden states (B, n, D) → (B, n, V), or an expert."""
    kind, D = spec["kind"], config.hidden_size
    if kind == "flow":
        return Expert(config, spec)
    if kind == "align":
        return Projection(D, spec["dim"], spec["outputs"])
    if kind != "chunk" or spec["decoder"] == "linear":
        return Linear(D, spec["outputs"])
    if spec["decoder"] == "mlp":
        return ResidualDecoder(D, spec["decoder_dim"], spec["outputs"])
    return PooledDecoder(D, spec["decoder_dim"], spec["vectors"]["count"], spec["outputs"])


class StateEmbedding(nn.Module):
    """Normalised states (B, S) → (B, D). `hidden` stands for a state that is not shown."""

    def __init__(self, inputs, width):
        super().__init__()
        self.into, self.out = Linear(inputs, width, True), Linear(width, width, True)
        self.hidden = nn.Parameter(torch.zeros(width))

    def forward(self, state_BS):
        return self.out(F.gelu(self.into(state_BS), approximate="tanh"))


class Projection(nn.Module):
    """Of a head that says nothing: what training pulled hidden states by."""

    def __init__(self, inputs, width, outputs):
        super().__init__()
        self.norm, self.into = LayerNorm(inputs), Linear(inputs, width, True)
        self.out = Linear(width, outputs, True)

    def forward(self, x):
        return self.out(F.gelu(self.into(self.norm(x))))


# --- One pass ---


class LayerNorm(nn.LayerNorm):
    """In float32."""

    def forward(self, x):
        given = x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        return F.layer_norm(*given).to(x.dtype)


class Normed(nn.Module):
    """Norm, linear, ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm, self.linear = LayerNorm(inputs), Linear(inputs, outputs, True)

    def forward(self, x):
        return F.relu(self.linear(self.norm(x)))


class ResidualDecoder(nn.Module):
    """The layers of OpenVLA-OFT's head."""

    def __init__(self, inputs, width, outputs):
        super().__init__()
        self.into = Normed(inputs, width)
        self.first, self.second = Normed(width, width), Normed(width, width)
        self.norm, self.out = LayerNorm(width), Linear(width, outputs, True)

    def forward(self, x_BnD):
        x = self.into(x_BnD)
        for layer in (self.first, self.second):
            x = x + layer(x)
        return self.out(self.norm(x))


class PooledDecoder(nn.Module):
    """All vectors from one, to which attention pools the hidden states, as in UniVLA."""

    HEADS = 8

    def __init__(self, inputs, width, count, outputs):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, width))
        self.project = Linear(inputs, width, True)
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.o = Linear(width, width, True)
        self.value, self.gate = (Linear(width, 4 * width, True) for _ in range(2))
        self.down = Linear(4 * width, width, True)
        self.attention_norm, self.mlp_norm = RMSNorm(width, 1e-12), RMSNorm(width, 1e-12)
        self.out, self.shape = Linear(width, count * outputs, True), (count, outputs)

    def forward(self, x_BnD):
        x = self.project(x_BnD)
        y = self.latents.to(x.dtype).expand(len(x), 1, -1)
        q, k, v = (
            by_head(f(z), x.shape[-1] // self.HEADS)
            for f, z in ((self.q, y), (self.k, x), (self.v, x))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        y = self.attention_norm(y + self.o(seen))
        y = self.mlp_norm(y + self.down(self.value(y) * F.silu(self.gate(y))))
        return self.out(y[:, 0]).unflatten(-1, self.shape)


# --- Flow ---


class Expert(nn.Module):
    """Velocities of streams of vectors that see what the backbone has of the prompt, and each
    other."""

    def __init__(self, config, spec):
        super().__init__()
        D, adaptive = spec["dim"], spec["conditioning"] == "adaptive"
        self.config, self.spec, self.adaptive = config, spec, adaptive
        widths = {name: one["dim"] for name, one in spec["streams"].items()}
        self.into = nn.ModuleDict({name: Linear(V, D, True) for name, V in widths.items()})
        self.out = nn.ModuleDict({name: Linear(D, V, True) for name, V in widths.items()})
        self.time_in = Linear(D if adaptive else 2 * D, D, True)
        self.time_out = Linear(D, D, True)
        self.layers = nn.ModuleList(ExpertLayer(config, spec) for _ in range(spec["depth"]))
        self.norm = AdaptiveNorm(D, config) if adaptive else RMSNorm(D, config.rms_norm_eps)

    def sample(self, noise, prompt):
        """Noise of each stream (B, n, V), moved along its velocities."""
        x, steps = dict(noise), self.spec["steps"]
        reverse = self.spec["convention"] == "noise_is_zero"
        for number in range(steps):
            time = 1.0 - number / steps
            found = self(x, 1.0 - time if reverse else time, prompt)
            sign = -1.0 if reverse else 1.0
            x = {name: value - sign * found[name] / steps for name, value in x.items()}
        return x

    def forward(self, values, time, prompt):
        """Of each stream float32 (B, n, V). `prompt`: a Prompt that was seen."""
        dtype, counts = prompt.hidden_BTD.dtype, [x.shape[1] for x in values.values()]
        x = torch.cat([self.into[name](values[name].to(dtype)) for name in self.into], 1)
        sines = time_embedding(time, x.shape[-1], x.device).to(dtype)
        condition = None
        if self.adaptive:
            condition = F.silu(self.time_out(F.silu(self.time_in(sines))))
        else:
            both = torch.cat([x, sines.expand_as(x)], -1)
            x = self.time_out(F.silu(self.time_in(both)))
        position = prompt.next_B1 + torch.arange(x.shape[1], device=x.device)
        given = self.config.head_dim, self.config.lapa["rope_theta"], torch.float32
        tables, of_prompt = (rope_tables(p, *given) for p in (position, prompt.position_BT))
        mask = F.pad(prompt.visible_BT, (0, x.shape[1]), value=True)[:, None, None]
        for i, layer in enumerate(self.layers):
            if self.spec["form"] == "expert":
                kv = prompt.cache[i]
            else:
                kv = layer.of_hidden(prompt.hidden_BTD, of_prompt)
            x = layer(x, tables, mask, kv, condition)
        x = self.norm(x, condition)[0] if self.adaptive else self.norm(x)
        parts = zip(self.out, x.split(counts, 1), strict=True)
        return {name: self.out[name](part).float() for name, part in parts}


class ExpertLayer(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        D, self.adaptive = spec["dim"], spec["conditioning"] == "adaptive"
        self.input_layernorm, self.post_attention_layernorm = (
            AdaptiveNorm(D, config) if self.adaptive else RMSNorm(D, config.rms_norm_eps)
            for _ in range(2)
        )
        self.self_attn = Attention(config, D)
        self.mlp = MLP(D, spec["mlp_dim"], spec["activation"])
        self.context_k = self.context_v = None
        if spec["form"] == "head":
            inner = config.num_attention_heads * config.head_dim
            self.context_k = Linear(config.hidden_size, inner)
            self.context_v = Linear(config.hidden_size, inner)

    def forward(self, x, tables, mask, kv, condition):
        for norm, part in (
            (self.input_layernorm, lambda y: self.self_attn(y, tables, mask, kv)[0]),
            (self.post_attention_layernorm, self.mlp),
        ):
            if self.adaptive:
                y, gate = norm(x, condition)
                x = x + part(y) * gate
            else:
                x = x + part(norm(x))
        return x

    def of_hidden(self, hidden_BTD, tables):
        k, v = (
            by_head(f(hidden_BTD), self.self_attn.head_dim)
            for f in (self.context_k, self.context_v)
        )
        return rope(k, *tables), v


class AdaptiveNorm(nn.Module):
    """(what it makes of x, the gate of what follows)."""

    def __init__(self, width, config):
        super().__init__()
        self.change, self.eps = Linear(width, 3 * width, True), config.rms_norm_eps

    def forward(self, x, condition):
        scale, shift, gate = self.change(condition).float().chunk(3, -1)
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + scale) + shift).to(x.dtype), gate.to(x.dtype)


def time_embedding(time, width, device):
    """Sines and cosines (width,) of a time in [0, 1]."""
    least, most = PERIODS
    power = torch.linspace(0.0, 1.0, width // 2, device=device)
    angles = 2.0 * math.pi * time / (least * (most / least) ** power)
    return torch.cat([angles.sin(), angles.cos()])
