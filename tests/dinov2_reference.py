"""DINOv2 in torch with Hugging Face's names of tensors, beside any code of ours."""

import numpy as np
import pytest
from tiny import NO_TORCH

torch = pytest.importorskip("torch", reason=NO_TORCH)
F = torch.nn.functional


def random_tensors(
    *, registers: int = 0, swiglu: bool = False, side: int = 5, depth: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Weights of a DINOv2 of width 128, patches of 4 pixels and a feed-forward of 96."""
    rng = np.random.default_rng(seed)
    dim, hidden = 128, 96
    shapes = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.mask_token": (1, dim),
        "embeddings.position_embeddings": (1, 1 + side**2, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": (dim,),
        "layernorm.weight": (dim,),
        "layernorm.bias": (dim,),
    }
    if registers:
        shapes["embeddings.register_tokens"] = (1, registers, dim)
    first, second = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        matrices = {
            "attention.attention.query": (dim, dim),
            "attention.attention.key": (dim, dim),
            "attention.attention.value": (dim, dim),
            "attention.output.dense": (dim, dim),
            f"mlp.{first}": (2 * hidden if swiglu else hidden, dim),
            f"mlp.{second}": (dim, hidden),
        }
        for name, shape in matrices.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{layer}.{name}"] = (dim,)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"{layer}.{name}"] = (dim,)
    return {
        name: rng.normal(0, 0.1 if len(shape) > 1 else 0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def forward(tensors: dict[str, np.ndarray], images_BIJC: np.ndarray) -> np.ndarray:
    """The last hidden state (B, tokens, width) of images in [0, 1]."""
    w = {name: torch.from_numpy(x) for name, x in tensors.items()}
    pixels = torch.from_numpy(images_BIJC).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    projection = "embeddings.patch_embeddings.projection"
    x = F.conv2d(pixels, w[f"{projection}.weight"], w[f"{projection}.bias"], stride=4)
    batch, dim, rows, columns = x.shape
    registers = w.get("embeddings.register_tokens", torch.zeros(1, 0, dim))

    positions = w["embeddings.position_embeddings"]
    side = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        antialias = registers.shape[1] > 0
        size = (rows, columns)
        grid = F.interpolate(grid, size, mode="bicubic", align_corners=False, antialias=antialias)
    x = (x + grid).flatten(2).transpose(1, 2)
    cls = w["embeddings.cls_token"] + positions[:, :1]
    x = torch.cat([cls.expand(batch, -1, -1), registers.expand(batch, -1, -1), x], dim=1)

    depth = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("encoder.layer."))
    for i in range(depth):
        layer = f"encoder.layer.{i}"

        def norm(x, name):
            return F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

        def linear(x, name, layer=layer):
            return F.linear(x, w[f"{layer}.{name}.weight"], w[f"{layer}.{name}.bias"])

        h = norm(x, f"{layer}.norm1")
        q, k, v = (
            linear(h, f"attention.attention.{name}").unflatten(-1, (-1, 64)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / 64**0.5, dim=-1)
        h = linear((weights @ v).transpose(1, 2).flatten(2), "attention.output.dense")
        x = x + h * w[f"{layer}.layer_scale1.lambda1"]
        h = norm(x, f"{layer}.norm2")
        if f"{layer}.mlp.weights_in.weight" in w:
            gate, value = linear(h, "mlp.weights_in").chunk(2, dim=-1)
            h = linear(F.silu(gate) * value, "mlp.weights_out")
        else:
            h = linear(F.gelu(linear(h, "mlp.fc1")), "mlp.fc2")
        x = x + h * w[f"{layer}.layer_scale2.lambda1"]
    return F.layer_norm(x, (dim,), w["layernorm.weight"], w["layernorm.bias"], 1e-6).numpy()
