#!/usr/bin/env bash
# Adam of bfloat16 parameters gives NaN at once where its hyperparameters are injected.
#
# The guess: inject_hyperparams, which is there to log or change a learning rate while training, leaves
# an optimizer's updates as they are. Seen: it turns every number of the optimizer, not the learning
# rate alone, into an array of the type of the parameters. In bfloat16 b2 = 0.999 is 1: the second
# moment stays 0, and so does what it is corrected by, and the first update is 0 / 0. b1 = 0.9
# becomes 0.8984; in float16 eps = 1e-8 becomes 0. With b2 = 0.95 nothing is seen but other numbers.
#
# It matters for the usual pretraining in bfloat16 whose learning rate is shown or set: name what is
# to stay a number in static_args, or give hyperparam_dtype.
#
# optax 0.2.8, jax 0.10.2, CPU. Seen (first update of 4 parameters, learning rate 1e-3):
#   adam: -0.0010 | injected: nan, b2 = 1 | injected, hyperparam_dtype float32: -0.0010
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import jax.numpy as jnp
import optax

parameters, gradients = jnp.ones(4, jnp.bfloat16), jnp.full(4, 0.1, jnp.bfloat16)
exact = dict(hyperparam_dtype=jnp.float32)
ways = {
    "adam": optax.adam(1e-3),
    "injected": optax.inject_hyperparams(optax.adam)(1e-3),
    "injected, hyperparam_dtype float32": optax.inject_hyperparams(optax.adam, **exact)(1e-3),
}
found = {}
for name, adam in ways.items():
    updates, state = adam.update(gradients, adam.init(parameters), parameters)
    found[name] = float(updates[0])
    print(f"{name}: {found[name]:.4f}", getattr(state, "hyperparams", {}).get("b2", ""))
plain, injected, told = found.values()
if injected == injected or plain != plain or abs(told - plain) > 1e-5:
    raise SystemExit("it has changed: b2 = 0.999 was 1 in bfloat16, and the update NaN")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
