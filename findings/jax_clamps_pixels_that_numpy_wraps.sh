#!/usr/bin/env bash
# Drawn pixels above white become nearly black by numpy's cast to uint8, and stay white by JAX's.
#
# The guess: `(255 * drawn).astype(uint8)` of values a little outside of 0 to 1, as decoders and cubic resizing give
# them, does the same in numpy and in JAX. Seen: numpy takes the lowest byte, so 1.09 is 22 and -0.07 is 238, specks
# that a page or a metric of such pictures shows; JAX takes the nearest end, on a CPU and inside jit, and says 0
# of NaN. A check that was written with one says nothing of the other: pictures of a broken decoder (NaN) are
# black in both.
#
# Clip first, in both; and look for NaN before the cast.
#
# jax 0.10.2, numpy 2.4.6, Python 3.11, x86-64. Seen (of -18.6, -1.0, 278.2, 300.0, nan):
#   uint8: numpy [238, 255, 22, 44, 0], jax [0, 0, 255, 255, 0]
#   int8: numpy [-18, -1, 22, 44, 0], jax [-18, -1, 127, 127, 0]
#   a cubic resize of white beside black, 0 to 255: -15.9 to 270.9; by numpy 4 % of its pixels wrap
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  jax==0.10.2 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

np.seterr(invalid="ignore")
values = np.float32([-18.6, -1, 278.2, 300, np.nan])
for kind, wrapped, clamped in (
    ("uint8", [238, 255, 22, 44, 0], [0, 0, 255, 255, 0]),
    ("int8", [-18, -1, 22, 44, 0], [-18, -1, 127, 127, 0]),
):
    by_numpy = values.astype(kind).tolist()
    by_jax = [np.asarray(f(values)).tolist() for f in (
        lambda x, kind=kind: jnp.asarray(x).astype(kind),
        jax.jit(lambda x, kind=kind: x.astype(kind)),
    )]  # fmt: skip
    print(f"{kind}: numpy {by_numpy}, jax {by_jax[0]}")
    assert by_numpy == wrapped and by_jax == [clamped] * 2, (by_numpy, by_jax)

edge = np.zeros((32, 32), np.float32)
edge[:, 16:] = 255
drawn = np.asarray(jax.image.resize(edge, (48, 48), "cubic"))
low, high = np.clip(drawn, 0, 255).astype(np.uint8), drawn.astype(np.uint8)
share = (np.abs(low.astype(int) - high) > 100).mean()
print(
    f"a cubic resize of white beside black, 0 to 255: {drawn.min():.1f} to {drawn.max():.1f}; "
    f"by numpy {100 * share:.0f} % of its pixels wrap"
)
assert drawn.min() < -10 and drawn.max() > 265 and share > 0.03
np.testing.assert_array_equal(np.asarray(jnp.asarray(drawn).astype(jnp.uint8)), low)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
