#!/usr/bin/env bash
# An accuracy of flax.nnx.metrics may be 10, where a mask is of examples and values are of tokens.
#
# The guess: a mask that need only be broadcastable to the values, as the documentation has it (B x 1
# for the B x T tokens of examples that fill up the last batch), counts what it covers: a mean of
# ones is 1, an accuracy at most 1. Seen: the sum is of values times the broadcast mask, the count
# is of the mask as it was given. A mean of ones over 4 x 10 values is 10 by a mask of 4 x 1 and 4 by
# one of 10; so are accuracies. And since values are multiplied by the mask, a NaN that the mask hides
# makes the mean NaN. clu.metrics, from which many come, broadcasts first and selects.
#
# It helps to broadcast the mask and to replace what it hides before.
#
# flax 0.12.8, clu 0.0.12, jax 0.10.2 on a CPU, Python 3.11. Seen:
#   mean of 4 x 10 ones, mask 4 x 1: flax 10.0, clu 1.0
#   mean of 4 x 10 ones, mask    10: flax 4.0
#   accuracy, all right, mask 4 x 1: flax 10.0
#   mean of 1 and a hidden NaN:      flax nan, clu 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  flax==0.12.8 clu==0.0.12 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import jax.numpy as jnp
from clu import metrics as clu
from flax import nnx


def flax_mean(values, mask):
    metric = nnx.metrics.Average()
    metric.update(values=values, mask=mask)
    return float(metric.compute())


def clu_mean(values, mask):
    return float(clu.Average.from_model_output(values, mask=mask).compute())


ones, examples, tokens = jnp.ones((4, 10)), jnp.ones((4, 1), bool), jnp.ones(10, bool)
accuracy = nnx.metrics.Accuracy()
accuracy.update(logits=jnp.zeros((4, 10, 3)), labels=jnp.zeros((4, 10), int), mask=examples)
hidden = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
found = {
    "mean of 4 x 10 ones, mask 4 x 1": (flax_mean(ones, examples), clu_mean(ones, examples)),
    "mean of 4 x 10 ones, mask    10": (flax_mean(ones, tokens),),
    "accuracy, all right, mask 4 x 1": (float(accuracy.compute()),),
    "mean of 1 and a hidden NaN:     ": (flax_mean(*hidden), clu_mean(*hidden)),
}
for what, values in found.items():
    told = ", ".join(f"{name} {value}" for name, value in zip(("flax", "clu"), values))
    print(f"{what.rstrip(': ')}: {told}")
assert str(list(found.values())) == "[(10.0, 1.0), (4.0,), (10.0,), (nan, 1.0)]", "it has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
