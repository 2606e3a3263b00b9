#!/usr/bin/env bash
# jax.random.choice with weights can draw 8,388,608 items, however many there are.
#
# The guess: with p, items are drawn as often as p says, as far as float32 tells weights apart: of 20
# million frames that weigh the same, all come up in the end, as without p and as in NumPy.
# Seen: it looks one uniform float32 up in the sum of weights, and those are 2**23 numbers. 58 % of the
# frames are never drawn, by whatever key; nearly all of the others are after a few epochs. Nothing
# shows it: those that are left out lie evenly between, and each draw looks right.
#
# It helps to draw in two steps (an episode or a group by weight, a frame of it without p), or on the
# host, where NumPy uses float64.
#
# jax 0.10.2, numpy 2.4.6 on a CPU, Python 3.11. 20 million draws of 20 million items. Seen:
#   without p: 63.2 % of the items after one epoch, 98.2 % after four
#   with p:    38.1 % of the items after one epoch, 41.9 % after four
#   NumPy, p:  63.2 % of the items after one epoch, 98.2 % after four
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import functools

import jax
import jax.numpy as jnp
import numpy as np

N = 20_000_000


@functools.partial(jax.jit, static_argnums=1)
def draw(key, weighted):
    p = jnp.full(N, 1 / N, jnp.float32) if weighted else None
    return jax.random.choice(key, N, (N,), p=p)


generator, p = np.random.default_rng(0), np.full(N, 1 / N)
ways = {
    "without p": lambda epoch: draw(jax.random.key(epoch), False),
    "with p": lambda epoch: draw(jax.random.key(epoch), True),
    "NumPy, p": lambda epoch: generator.choice(N, N, p=p),
}
found = {}
for name, way in ways.items():
    drawn, shares = np.zeros(N, bool), []
    for epoch in range(4):
        drawn[np.asarray(way(epoch))] = True
        shares.append(100 * drawn.mean())
    found[name] = shares
    told = f"{shares[0]:.1f} % of the items after one epoch, {shares[-1]:.1f} % after four"
    print(f"{name + ':':<10} {told}")
assert found["with p"][-1] <= 100 * 2**23 / N < 60 < found["without p"][0], "it has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
