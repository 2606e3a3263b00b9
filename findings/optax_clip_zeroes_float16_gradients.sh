#!/usr/bin/env bash
# Clipping by the global norm sets float16 gradients to zero, silently, where their norm is above 256.
#
# The guess: clip_by_global_norm, which is there to survive large gradients, scales them to norm 1, or
# gives infinities, that loss scaling and checks for finite gradients look for. Seen: squares are
# added up in the type of the gradients. Above 65,504 = 256 squared the sum is infinite in float16, the
# gradients, which are finite, are divided by it, and every update is 0. Training goes on, finite, and
# learns nothing; with loss scaling, whose gradients are large by design, if clipping comes before
# they are scaled back. In bfloat16 the norm is rounded alone (1.004 for 1).
#
# optax 0.2.8, jax 0.10.2, CPU. Seen, 1,000 gradients of 20 (norm 632), clipped to norm 1:
#   float32 1.000 | bfloat16 1.004 | float16 0.000, global_norm inf
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import jax.numpy as jnp
import numpy as np
import optax

found, clip = {}, optax.clip_by_global_norm(1.0)
for kind in (jnp.float32, jnp.bfloat16, jnp.float16):
    gradients = {"w": jnp.full((1000,), 20.0, kind)}
    updates, _ = clip.update(gradients, clip.init(gradients))
    found[kind] = np.linalg.norm(np.asarray(updates["w"], np.float64))
    print(f"{kind.__name__}: {found[kind]:.3f}, global_norm {optax.global_norm(gradients)}")
if found[jnp.float16] != 0 or abs(found[jnp.float32] - 1) > 1e-3:
    raise SystemExit("it has changed: float16 gradients of norm 632 were clipped to 0")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
