#!/usr/bin/env bash
# A training that goes on from an older checkpoint saves nothing until it has passed the newest.
#
# The guess: where a directory holds steps 10, 20 and 30, and training goes on from 10 (a spike in
# the loss, a change of the data), saving step 15 works, and saving step 20 writes over what is there
# or raises. Seen: CheckpointManager.save returns False for every step up to the newest, 15 that does
# not exist among them, and says nothing. What is trained between 10 and 30 is nowhere on disk: if it
# ends there, the newest checkpoint is the old one that was gone back from, and so it is what a
# restart takes. The next step that is saved, 35, then stands in one row with the old 20 and 30, of
# which nothing tells that they are of another training.
#
# It matters for rollbacks: delete the later steps first, or begin a new directory, and look at what
# save returns.
#
# orbax-checkpoint 0.12.8, jax 0.10.2, Python 3.11. Seen:
#   saved after 10 was restored: {15: False, 20: False, 25: False, 30: False, 35: True}
#   steps there: [20, 30, 35]; newest before 35 was saved: 30, with the weights of the first training
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  orbax-checkpoint==0.12.8 jax==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

FIRST, SECOND = 1.0, 2.0


def manager() -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=3, enable_async_checkpointing=False)
    return ocp.CheckpointManager(sys.argv[1], options=options)


def save(to: ocp.CheckpointManager, step: int, value: float) -> bool:
    return to.save(step, args=ocp.args.StandardSave({"weights": jnp.full(3, value)}))


def newest(of: ocp.CheckpointManager) -> tuple[int, float]:
    step = of.latest_step()
    return step, float(of.restore(step, args=ocp.args.StandardRestore())["weights"][0])


with manager() as first:
    assert all(save(first, step, FIRST) for step in (10, 20, 30))
with manager() as second:
    second.restore(10, args=ocp.args.StandardRestore())
    saved = {step: save(second, step, SECOND) for step in (15, 20, 25, 30)}
    assert newest(second) == (30, FIRST)
    saved[35] = save(second, 35, SECOND)
    assert newest(second) == (35, SECOND)
    print("saved after 10 was restored:", saved)
    print("steps there:", second.all_steps())
    assert [step for step, done in saved.items() if done] == [35], "it has changed"
    assert second.all_steps() == [20, 30, 35], "it has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py" "$folder/checkpoints" 2>/dev/null
