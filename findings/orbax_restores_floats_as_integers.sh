#!/usr/bin/env bash
# A checkpoint restores into a state of other types, without a word.
#
# The guess: Orbax, which refuses a target whose names or shapes differ from what was saved, refuses
# one of another kind of number, too, or casts between floats at most. Seen: any dtype of the target
# is cast to. Weights that were saved as float32 come back as int32, cut off towards zero; as uint8,
# where −2.5 becomes 254; a step counter of int32 comes back as bfloat16, and is another number.
#
# It matters where a config changed between saving and restoring (an optimizer's moments, a quantised
# head), and for code that takes a restored checkpoint for one that fits: compare dtypes with the
# saved metadata first.
#
# orbax-checkpoint 0.12.8, jax 0.10.2, Python 3.11, Linux. Seen:
#   float32 [3.7, -2.5] as int32: [3, -2]
#   float32 [3.7, -2.5] as uint8: [3, 254]
#   int32 [16777217.0] as bfloat16: [16777216.0]
#   float32 [3.7, -2.5] as float32[3]: ValueError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

saved = {"w": jnp.array([3.7, -2.5]), "step": jnp.array([2**24 + 1], jnp.int32)}
checkpoints = ocp.StandardCheckpointer()
checkpoints.save(f"{sys.argv[1]}/saved", saved)
checkpoints.wait_until_finished()


def restored(name, dtype, shape=None):
    target = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in saved.items()}
    target[name] = jax.ShapeDtypeStruct(shape or saved[name].shape, dtype)
    kind = f"{saved[name].dtype} {np.round(np.float64(saved[name]), 6).tolist()} as {np.dtype(dtype).name}"
    try:
        found = checkpoints.restore(f"{sys.argv[1]}/saved", target)[name]
    except ValueError as error:
        print(f"{kind}{list(shape)}: {type(error).__name__}")
        return None
    print(f"{kind}: {found.tolist()}")
    return found.tolist()


assert restored("w", jnp.int32) == [3, -2], "it has changed"
assert restored("w", jnp.uint8) == [3, 254], "it has changed"
assert restored("step", jnp.bfloat16) == [2.0**24], "it has changed"
assert restored("w", jnp.float32, (3,)) is None
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py" "$folder" 2> "$folder/log" || {
  cat "$folder/log"
  exit 1
}
