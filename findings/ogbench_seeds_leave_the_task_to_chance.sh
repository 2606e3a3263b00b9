#!/usr/bin/env bash
# env.reset(seed=3) of OGBench gives another task every time.
#
# The guess: a seed decides the start and the goal, as Gymnasium asks of environments; so policies that
# are compared on seeds 0 to 49 are compared on the same 50 tasks. Seen: which of its five evaluation
# tasks an environment takes is drawn from NumPy's global numbers, and of mazes the noise on start and
# goal, too. The seed decides only the small noise on the arm and on objects. Two policies, or one
# policy in two processes, meet other tasks, and what else draws from the global numbers in between
# (a loader, an augmentation) changes which.
#
# It helps to pass options={"task_id": k}, and in mazes to seed NumPy before every reset.
#
# ogbench 1.2.2, mujoco 3.3.0, dm_control 1.0.28, gymnasium 1.4.0, Python 3.11. Twenty resets. Seen:
#   cube-single-v0, seed 3: 5 tasks, 5 starts; and task 2: 1 start
#   scene-v0, seed 3: 5 tasks, 5 starts; and task 2: 1 start
#   pointmaze-medium-v0, seed 3: 5 tasks, 20 starts; and task 2: 20 starts
#   cube-single-v0, seed 3, NumPy's 0: 1 task
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  ogbench==1.2.2 mujoco==3.3.0 dm_control==1.0.28 gymnasium==1.4.0
cat > "$folder/ask.py" <<'PYTHON'
import gymnasium
import numpy as np
import ogbench  # noqa: F401  it registers them


def resets(env, options=None, numpy_seed=None):
    """Of 20 resets by one seed: how many tasks, and how many starts."""
    found = []
    for _ in range(20):
        if numpy_seed is not None:
            np.random.seed(numpy_seed)
        start, _ = env.reset(seed=3, options=options)
        found.append((env.unwrapped.cur_task_id, start.tobytes()))
    return len({task for task, _ in found}), len({start for _, start in found})


np.random.seed(1)
for name in ("cube-single-v0", "scene-v0", "pointmaze-medium-v0"):
    env = gymnasium.make(name)
    (tasks, starts), (_, of_task) = resets(env), resets(env, {"task_id": 2})
    plural = "s" * (of_task > 1)
    print(f"{name}, seed 3: {tasks} tasks, {starts} starts; and task 2: {of_task} start{plural}")
    if tasks != 5 or of_task != (20 if "maze" in name else 1):
        raise SystemExit("it has changed")
tasks, _ = resets(gymnasium.make("cube-single-v0"), numpy_seed=0)
print(f"cube-single-v0, seed 3, NumPy's 0: {tasks} task")
if tasks != 1:
    raise SystemExit("it has changed")
PYTHON
MUJOCO_GL=disable "$folder/venv/bin/python" "$folder/ask.py" 2> "$folder/said" \
  || { cat "$folder/said"; exit 1; }
