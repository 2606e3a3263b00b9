#!/usr/bin/env bash
# Whether jax.device_put copies a NumPy array on a CPU depends on where its memory happens to begin.
#
# The guess: a JAX array cannot change, so what is put is a copy; at the least with may_alias=False,
# which asks for one. Seen: memory that begins at a multiple of 64 bytes is taken over as it is, and
# who writes to the NumPy array afterwards changes the JAX array. All other memory is copied. Which of
# the two an array of np.ones is, is chance. may_alias=False changes nothing here; jnp.asarray,
# jnp.array and arguments of a jitted function are copies in this version.
#
# It matters for loaders that fill one buffer again and again, and on machines of CPUs alone, as those
# of tests: some batches are those of the step after. Loaders must not write to what was put while the
# array that was put is in use, or must put a copy.
#
# jax 0.10.2, numpy 2.4.6, Linux x86-64. Seen, by where memory begins:
#   device_put: 0 shared, 4 copied, 16 copied, 32 copied | with may_alias=False: the same
#   jnp.asarray: copied | of 200 arrays of np.ones, put and then written to: 47 changed, each time others
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


def begins_at(offset):
    """1,000 ones that begin `offset` bytes after a multiple of 64."""
    raw = np.zeros(4256, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    found = raw[start : start + 4000].view(np.float32)
    found[:] = 1
    return found


def is_shared(put, array):
    there = jax.block_until_ready(put(array))
    array[:] = 5
    return float(there[0]) == 5


def unshared(array):
    return jax.device_put(array, may_alias=False)


seen, ways = {}, {"device_put": jax.device_put, "may_alias=False": unshared}
for name, put in {**ways, "asarray": jnp.asarray}.items():
    seen[name] = [is_shared(put, begins_at(offset)) for offset in (0, 4, 16, 32)]
    print(name, ["shared" if shared else "copied" for shared in seen[name]])
draw = np.random.default_rng(0)
ones = [np.ones(draw.integers(10, 5000), np.float32) for _ in range(200)]
print("of 200 arrays", sum(is_shared(jax.device_put, array) for array in ones), "are shared")
by_luck = [True, False, False, False]
if list(seen.values()) != [by_luck, by_luck, [False] * 4]:
    raise SystemExit("it has changed: memory at multiples of 64 bytes was shared")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
