#!/usr/bin/env bash
# Muon on layers that are scanned orthogonalises their norms and not their kernels.
#
# The guess: optax.contrib.muon does with the parameters of nnx.scan, which are those of every layer
# in one array, what it does with the layers one by one: each kernel (of L x in x out) orthogonalised,
# the scales of norms (L x D) by Adam. Seen: it goes by the number of dimensions alone. Kernels of a
# stack have three and get Adam, scales and biases of a stack have two and are orthogonalised over the
# layers, as embeddings are. Training runs, without a word. What is meant has to be told, by
# muon_weight_dimension_numbers for every array, and arrays of None get Adam.
#
# optax 0.2.8, jax 0.10.2. Seen (Adam: all entries of the first update have one size; orthogonalised:
# singular values near 1):
#   one layer: kernel (8, 6) orthogonalised, scale (6,) Adam
#   a stack:   kernel (4, 8, 6) Adam, scale (4, 6) orthogonalised
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax


def first_update(tree):
    optimizer, zeros = optax.contrib.muon(1.0), jax.tree.map(jnp.zeros_like, tree)
    return optimizer.update(tree, optimizer.init(zeros), zeros)[0]


def kind(update):
    size = np.abs(np.asarray(update))
    if np.ptp(size) < 1e-3 * size.max():
        return "Adam"
    values = np.linalg.svd(update, compute_uv=False)
    return "orthogonalised" if values.min() > 0.5 and values.max() < 1.5 else "neither"


def of(*layers):
    keys = jax.random.split(jax.random.key(0))
    shapes = {"kernel": (*layers, 8, 6), "scale": (*layers, 6)}
    grads = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    return {name: (x.shape, kind(x)) for name, x in first_update(grads).items()}


one, stack = of(), of(4)
for name, found in (("one layer:", one), ("a stack:  ", stack)):
    print(name, ", ".join(f"{key} {shape} {how}" for key, (shape, how) in found.items()))
assert [how for _, how in one.values()] == ["orthogonalised", "Adam"], "it has changed"
assert [how for _, how in stack.values()] == ["Adam", "orthogonalised"], "it has changed"
PYTHON
