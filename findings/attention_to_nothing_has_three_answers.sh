#!/usr/bin/env bash
# A query that may attend to nothing gets the mean of everything in JAX, 0 or NaN in PyTorch.
#
# The guess: a row of the mask that is all False (a padded step of a chunk, an instruction or a camera
# that an example lacks) gives NaN or 0, in either library, so that what leaks is seen or harmless.
# Seen: jax.nn.dot_product_attention and flax.nnx give the mean of all values, those that the mask
# hides included, and gradients flow into these. So does key_value_seq_lengths=0, while rows beyond
# query_seq_lengths are 0. PyTorch's scaled_dot_product_attention gives 0 for the same row, its
# MultiheadAttention NaN where key_padding_mask hides all keys.
#
# It matters for ports, which agree on all other rows, and wherever padding is
# averaged over afterwards: let such rows see one key at least, and set them to 0 after.
#
# jax 0.10.2, flax 0.12.8, torch 2.13.0, CPU, Python 3.11. Seen, of the row of no keys:
#   jax, mask:                   mean of the hidden values (gradient to each of three: 1/3)
#   flax.nnx, mask:              mean of the hidden values
#   jax, key_value_seq_lengths:  mean of the hidden values
#   jax, query_seq_lengths:      0
#   torch, attn_mask:            0
#   torch, MultiheadAttention:   nan
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  jax==0.10.2 flax==0.12.8 torch==2.13.0 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

q, k, v = (jax.random.normal(key, (1, 3, 1, 4)) for key in jax.random.split(jax.random.key(0), 3))
mask = jnp.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], bool)[None, None]
attend = jax.nn.dot_product_attention


def to_torch(x: jax.Array) -> torch.Tensor:
    return torch.tensor(np.array(x)).transpose(1, 2)


def of_torch() -> np.ndarray:
    found = torch.nn.functional.scaled_dot_product_attention(
        *map(to_torch, (q, k, v)), attn_mask=torch.tensor(np.array(mask))
    )
    return found.transpose(1, 2).numpy()


def of_layer() -> np.ndarray:
    layer = torch.nn.MultiheadAttention(4, 1, batch_first=True)
    inputs = (to_torch(x)[:, 0] for x in (q, k, v))
    with torch.no_grad():
        hidden = layer(*inputs, key_padding_mask=torch.ones(1, 3, dtype=torch.bool))[0]
    return hidden.numpy()[:, :, None]


lengths = {"key_value_seq_lengths": jnp.array([0])}, {"query_seq_lengths": jnp.array([1])}
answers = {
    "jax, mask": attend(q, k, v, mask=mask),
    "flax.nnx, mask": nnx.dot_product_attention(q, k, v, mask=mask),
    "jax, key_value_seq_lengths": attend(q, k, v, **lengths[0]),
    "jax, query_seq_lengths": attend(q, k, v, **lengths[1]),
    "torch, attn_mask": of_torch(),
    "torch, MultiheadAttention": of_layer(),
}
mean, told = np.asarray(v).mean(1)[0, 0], {}
for name, answer in answers.items():
    row = np.asarray(answer)[0, 1, 0]
    kinds = {"mean of the hidden values": np.allclose(row, mean, atol=1e-6)}
    kinds |= {"0": not row.any(), "nan": np.isnan(row).all()}
    (told[name],) = (kind for kind, so in kinds.items() if so)
    print(f"{name}: {told[name]}")
np.testing.assert_allclose(answers["jax, mask"][:, ::2], of_torch()[:, ::2], atol=1e-6)
gradient = jax.grad(lambda v: attend(q, k, v, mask=mask)[0, 1].sum())(v)
np.testing.assert_allclose(gradient, 1 / 3, rtol=1e-6)
assert list(told.values()) == ["mean of the hidden values"] * 3 + ["0", "0", "nan"], "it has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
