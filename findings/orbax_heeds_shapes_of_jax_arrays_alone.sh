#!/usr/bin/env bash
# Orbax restores into arrays of numpy whatever shape was saved, and into arrays of JAX only what fits.
#
# The guess: a target says what is to be restored, and one of another shape is refused, as the docs of orbax's
# arrays say (strict). Seen: that is so where the target's leaves are of JAX (arrays, or shapes and types). Of
# numpy arrays, as a host that only exports or evaluates has them, the shape counts for nothing: of a
# codebook of 16 the saved one of 8 comes back, with no word, in a tree that says 16, where a lookup of code 12
# is clamped by JAX to the last row. The same holds for a tree of which some leaves are numpy's (a normaliser's
# statistics beside parameters).
#
# Targets of `jax.ShapeDtypeStruct`, or a comparison of shapes after it.
#
# orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6, Python 3.11. Seen (saved: (8, 4)):
#   target of JAX (16, 4): ValueError
#   target of numpy (16, 4): (8, 4)
#   target of numpy (32,): (8, 4)
#   code 12 of what was restored is row 7
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

path = f"{sys.argv[1]}/saved"
checkpointer = ocp.StandardCheckpointer()
saved = np.arange(32, dtype=np.float32).reshape(8, 4)
checkpointer.save(path, {"codebook": jnp.array(saved)})
checkpointer.wait_until_finished()

one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
target = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=one)
try:
    raise SystemExit(f"restored {checkpointer.restore(path, {'codebook': target})}")
except ValueError as error:
    assert "(16, 4) is not compatible with the stored shape: (8, 4)" in str(error), error
    print("target of JAX (16, 4): ValueError")
for shape in ((16, 4), (32,)):
    found = checkpointer.restore(path, {"codebook": np.zeros(shape, np.float32)})["codebook"]
    print(f"target of numpy {shape}: {found.shape}")
    np.testing.assert_array_equal(found, saved)
row = jnp.array(found)[jnp.array(12)]
print(f"code 12 of what was restored is row {int(row[0]) // 4}")
np.testing.assert_array_equal(row, saved[7])
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py" "$folder"
