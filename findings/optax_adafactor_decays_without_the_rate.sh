#!/usr/bin/env bash
# The weight decay of Adafactor takes no notice of its learning rate: at rate 0, too, weights shrink.
#
# The guess: weight_decay_rate of optax.adafactor is the weight_decay of optax.adamw and optax.lion,
# multiplied by the learning rate and following its schedule. Seen: it is a share of the weights
# that is taken off at every step, whatever the rate is. What is usual elsewhere, 0.1, takes a tenth:
# ten steps leave 35 % of all weights, where AdamW and Lion leave 99.9 %; during a warm-up and after
# the schedule has reached 0 it goes on. Nothing says so: training at first looks as if it learnt.
#
# It matters where a config changes its optimizer and keeps its other numbers: give Adafactor the
# decay times the learning rate (here 1e-4), and none where the rate is 0.
#
# optax 0.2.8, jax 0.10.2, Python 3.11. Seen, weights of 1 after ten steps without gradients:
#   adamw, rate 1e-3, decay 0.1:     0.9990
#   lion, rate 1e-3, decay 0.1:      0.9990
#   adafactor, rate 1e-3, decay 0.1: 0.3487
#   adafactor, rate 0, decay 0.1:    0.3487
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  optax==0.2.8 jax==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = {
    "adamw, rate 1e-3": optax.adamw(1e-3, weight_decay=0.1),
    "lion, rate 1e-3": optax.lion(1e-3, weight_decay=0.1),
    "adafactor, rate 1e-3": optax.adafactor(1e-3, weight_decay_rate=0.1),
    "adafactor, rate 0": optax.adafactor(0.0, weight_decay_rate=0.1),
}
found = {}
for name, optimizer in OPTIMIZERS.items():
    params = {"kernel": jnp.ones((256, 256)), "bias": jnp.ones(256)}
    gradients = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(params)
    for _ in range(10):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert float(params["bias"][0]) == float(params["kernel"][0, 0])
    found[name] = round(float(params["bias"][0]), 4)
    print(f"{name}, decay 0.1: {found[name]:.4f}")
assert list(found.values()) == [0.999, 0.999, 0.3487, 0.3487], "it has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
