#!/usr/bin/env bash
# The bits of a sum depend on how many threads XLA has on a CPU.
#
# The guess: threads share the elements of the output, each element is summed by one of them in one
# order, so the number of threads cannot be seen in the result. That holds for matrix products,
# convolutions and the sum of all elements. A mean over the first axis of a tall array comes out with
# other bits with one thread than with two; two, four and eight agree.
#
# It matters for runs that continue on another machine, and for recordings that tests compare bit by
# bit: NPROC=1 makes such a recording independent of the machine's cores.
#
# jax 0.10.2, jaxlib 0.10.2, Linux x86-64 with AVX2. Seen (equal to NPROC=1?):
#   NPROC=2 matmul True conv True total True rows False
#   NPROC=8 matmul True conv True total True rows False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/sums.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def conv(x, w):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)


np.savez(
    sys.argv[1],
    matmul=jax.jit(jnp.matmul)(normal(64, 8192), normal(8192, 64)),
    conv=jax.jit(conv)(normal(8, 32, 32, 16), normal(3, 3, 16, 32)),
    total=jax.jit(jnp.sum)(normal(1 << 20)),
    rows=jax.jit(lambda x: jnp.mean(x, axis=0))(normal(100_000, 64)),
)
PYTHON
for threads in 1 2 8; do
  JAX_PLATFORMS=cpu NPROC=$threads "$folder/venv/bin/python" "$folder/sums.py" "$folder/$threads.npz"
done
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np

one = np.load(f"{sys.argv[1]}/1.npz")
for threads in (2, 8):
    found = np.load(f"{sys.argv[1]}/{threads}.npz")
    same = {name: one[name].tobytes() == found[name].tobytes() for name in one.files}
    print(f"NPROC={threads}", *(f"{name} {value}" for name, value in same.items()))
    assert same == {"matmul": True, "conv": True, "total": True, "rows": False}, "it has changed"
PYTHON
