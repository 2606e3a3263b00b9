#!/usr/bin/env bash
# -100, by which labels of the transformers library say "not this token", is a token for optax.
#
# The guess: softmax_cross_entropy_with_integer_labels of a label below 0 is NaN, as it is of one
# beyond the vocabulary, so that batches made for PyTorch (whose cross_entropy passes over -100,
# ignore_index) fail at their first step. Seen: labels below 0 count from the end, as NumPy's indices
# do. With 32,000 tokens -100 is token 31,900: the loss is finite and falls, and its gradient says
# that token after every prompt and all over the padding. Only with fewer than 100 classes it is NaN.
#
# It helps to pass where=labels >= 0, and a label in range in place of the others.
#
# optax 0.2.8, jax 0.10.2, torch 2.13.0 on a CPU, Python 3.11. Three tokens, of which the labels of
# the first two are -100. Seen:
#   torch: loss 11.57, gradient at 0 of 2 ignored tokens
#   optax: loss 11.25, gradient at 2 of 2 ignored tokens, for token 31900
#   optax, 64 classes: loss nan
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0
cat > "$folder/ask.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

logits = np.random.default_rng(0).standard_normal((3, 32_000)).astype(np.float32)
labels = np.array([-100, -100, 7])


def loss(logits, labels=jnp.array(labels)):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


there = torch.from_numpy(logits).requires_grad_()
of_torch = torch.nn.functional.cross_entropy(there, torch.from_numpy(labels))
of_torch.backward()
of_optax, gradient = jax.value_and_grad(loss)(jnp.array(logits))
said = {int(row.argmin()) for row in gradient[:2]}  # the token whose logit it raises
moved = {"torch": there.grad[:2].abs(), "optax": np.abs(gradient[:2])}
moved = {name: int((np.asarray(x).max(1) > 0).sum()) for name, x in moved.items()}
few = float(loss(jnp.array(logits[:, :64])))
print(f"torch: loss {of_torch.item():.2f}, gradient at {moved['torch']} of 2 ignored tokens")
told = ", ".join(map(str, said))
print(f"optax: loss {of_optax:.2f}, gradient at {moved['optax']} of 2 ignored tokens, for token {told}")
print(f"optax, 64 classes: loss {few}")
if moved != {"torch": 0, "optax": 2} or said != {31_900} or not np.isnan(few):
    raise SystemExit("it has changed")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
