#!/usr/bin/env bash
# In FrankaKitchen an arm that is told to stand still falls, and noise on what is seen moves it.
#
# The guess: actions are joint velocities, so 0 holds the arm; and the environment adds noise to
# observations, as its page says, so that the same actions from the same start give the same motion
# whatever the seed is. Seen: each step asks the position controller for the position that was read
# last, plus velocity times time. Under gravity the arm always hangs a little below what is asked, so
# 0 asks for the lower place, again and again: the hand sinks by 6 cm in 10 steps (0.8 s), by 51 cm in
# 100. And what was read has the noise on it: other seeds end elsewhere, from one and the same start.
# So a policy that predicts no motion moves, a pause in a demonstration is none, and recorded actions
# do not replay unless the seed is known.
#
# It helps to pass robot_noise_ratio=0 to replay; against the fall helps only to act, as people did who
# recorded the demonstrations.
#
# gymnasium-robotics 1.4.2, mujoco 3.3.0, gymnasium 1.4.0, Python 3.11. Seen:
#   actions of 0: the hand is 6.4 cm lower after 10 steps, 51.3 cm after 100
#   actions of 0, other seeds, one start: joints differ by up to 0.0091 rad after 100 steps
#   without noise: joints differ by up to 0.0000 rad after 100 steps
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  gymnasium-robotics==1.4.2 mujoco==3.3.0 gymnasium==1.4.0
cat > "$folder/ask.py" <<'PYTHON'
import gymnasium
import gymnasium_robotics
import numpy as np

gymnasium.register_envs(gymnasium_robotics)


def still(seed, **settings):
    """How high the hand is (m) at steps 0, 10 and 100 of actions of 0; where joints begin and end."""
    env = gymnasium.make("FrankaKitchen-v1", **settings)
    env.reset(seed=seed)
    data = env.unwrapped.data
    heights, start = [data.site("end_effector").xpos[2]], data.qpos.copy()
    for step in range(100):
        env.step(np.zeros(9))
        if step + 1 in (10, 100):
            heights.append(data.site("end_effector").xpos[2])
    return np.array(heights), start, data.qpos[:9].copy()


def apart(**settings):
    found = [still(seed, **settings) for seed in (0, 1, 2)]
    assert all((start == found[0][1]).all() for _, start, _ in found), "starts differ"
    return found[0][0], max(np.abs(end - found[0][2]).max() for _, _, end in found)


heights, noisy = apart()
soon, late = 100 * (heights[0] - heights[1:])
print(f"actions of 0: the hand is {soon:.1f} cm lower after 10 steps, {late:.1f} cm after 100")
print(f"actions of 0, other seeds, one start: joints differ by up to {noisy:.4f} rad after 100 steps")
_, quiet = apart(robot_noise_ratio=0.0)
print(f"without noise: joints differ by up to {quiet:.4f} rad after 100 steps")
if not (soon > 4 and late > 40 and noisy > 1e-3 and quiet == 0):
    raise SystemExit("it has changed")
PYTHON
MUJOCO_GL=disable "$folder/venv/bin/python" -W ignore "$folder/ask.py" 2> "$folder/said" \
  || { cat "$folder/said"; exit 1; }
