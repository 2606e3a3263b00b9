#!/usr/bin/env bash
# gym-pusht, told where the T lies, puts it up to 90 of 512 px away, and further with every round.
#
# The guess: reset(options={"reset_to_state": state}) gives that state, so that an episode can begin
# where a recorded one began, and a state that was observed can be restored. Seen: the place is set
# first and the angle then, which turns the T about its centre of mass while the place is of another
# point, and so moves it: by 90 px times the sine of half the angle, and not at all where the angle is 0.
# What is observed then, given back to another reset, moves it again by as much. It is done so on
# purpose, that old recordings start as they did; a state observed in this environment does not.
#
# It helps to subtract the shift, which depends on the angle alone: read it off one reset at that angle.
#
# gym-pusht 0.1.8, pymunk 6.11.1, gymnasium 1.4.0, Python 3.11. Seen (px from where it was told to be):
#   angle 0.00: 0.0 px, then 0.0 px; less the shift: 0.0 px
#   angle 0.70: 30.9 px, then 61.7 px; less the shift: 0.0 px
#   angle 1.57: 63.6 px, then 127.3 px; less the shift: 0.0 px
#   angle 3.14: 90.0 px, then 180.0 px; less the shift: 0.0 px
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  gym-pusht==0.1.8 pymunk==6.11.1 gymnasium==1.4.0
cat > "$folder/ask.py" <<'PYTHON'
import gym_pusht  # noqa: F401  it registers it
import gymnasium
import numpy as np

env = gymnasium.make("gym_pusht/PushT-v0", obs_type="state")


def put(state):
    """What is observed after a reset to (agent x, y, block x, y, angle)."""
    return env.reset(seed=0, options={"reset_to_state": np.asarray(state)})[0]


def distance(a, b):
    return np.linalg.norm((np.asarray(a) - b)[2:4])


for angle in (0.0, 0.7, np.pi / 2, np.pi):
    told = np.array([100.0, 150.0, 256.0, 256.0, angle])
    once = put(told)
    twice = put(once)
    corrected = put(told - np.r_[0, 0, (once - told)[2:4], 0])
    print(
        f"angle {angle:.2f}: {distance(once, told):.1f} px, then {distance(twice, told):.1f} px; "
        f"less the shift: {distance(corrected, told):.1f} px"
    )
    np.testing.assert_allclose(once[[0, 1, 4]], told[[0, 1, 4]], atol=1e-9)
    arm = 45.0  # px from the point that is placed to the centre of mass
    np.testing.assert_allclose(distance(once, told), 2 * arm * np.sin(angle / 2), atol=0.1)
    np.testing.assert_allclose(distance(twice, told), 2 * distance(once, told), atol=0.1)
    np.testing.assert_allclose(distance(corrected, told), 0, atol=1e-6)
PYTHON
SDL_VIDEODRIVER=dummy PYGAME_HIDE_SUPPORT_PROMPT=1 "$folder/venv/bin/python" -W ignore "$folder/ask.py"
