#!/usr/bin/env bash
# An environment of Brax that resets itself begins every episode of a run in the same state.
#
# The guess: with auto_reset=True an episode that ends is followed by one with a new random start, as in
# Gymnasium's vectors, so that 16 environments see other starts and goals all the time. Seen: the state
# of the first reset is kept and put back whenever an episode ends: of the reacher, whose target is
# drawn at a reset, 3 environments know 3 targets, however many episodes pass. What is trained or
# evaluated over 1,000 episodes of 16 environments has seen 16 starts, and an interval over episodes
# counts them as 1,000.
#
# It helps to call reset anew with other keys (evaluators of Brax do, once per evaluation), or to count
# environments instead of episodes.
#
# brax 0.14.2, mujoco 3.3.0, jax 0.10.2, Python 3.11. Seen:
#   3 environments, 20 episodes each: 3 targets
#   the same, reset with other keys 20 times: 60 targets
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  brax==0.14.2 mujoco==3.3.0 mujoco-mjx==3.3.0 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from brax import envs

EPISODES, LENGTH = 20, 5
env = envs.create(
    "reacher", episode_length=LENGTH, auto_reset=True, batch_size=3, backend="spring"
)
reset, step = jax.jit(env.reset), jax.jit(env.step)


def targets(state):
    """Where the targets of the three environments are at an episode's begin (x, y)."""
    return [tuple(place) for place in np.asarray(state.pipeline_state.x.pos[:, -1, :2]).tolist()]


state, seen, ended = reset(jax.random.key_data(jax.random.key(0))), set(), 0
for _ in range(EPISODES):
    seen |= set(targets(state))
    for _ in range(LENGTH):
        state = step(state, jnp.zeros((3, env.action_size)))
    ended += int(state.done.sum())
assert ended == 3 * EPISODES, "episodes did not end where they should"
print(f"3 environments, {EPISODES} episodes each: {len(seen)} targets")
anew = set()
for seed in range(EPISODES):
    anew |= set(targets(reset(jax.random.key_data(jax.random.key(seed)))))
print(f"the same, reset with other keys {EPISODES} times: {len(anew)} targets")
if len(seen) != 3 or len(anew) != 3 * EPISODES:
    raise SystemExit("it has changed")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore "$folder/ask.py" 2> "$folder/said" \
  || { cat "$folder/said"; exit 1; }
