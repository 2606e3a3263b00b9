#!/usr/bin/env bash
# In gymnasium's vector environments a chunk that was planned at the end of an episode is acted on in the next one.
#
# The guess: a policy that acts in chunks and forgets its queue where an episode is done plans anew from the
# first observation of the next episode, in `gymnasium.vector` as in one environment that one resets oneself.
# Seen: since 1.0 the step that is done gives the last observation of the old episode, the step after it resets
# and drops its action. So the plan after a forgotten queue is made from the last frame of the old episode; its
# first action goes nowhere, and the others are done in the new one: 3 of 8 steps, with chunks of 4, of every
# episode but the first. Nothing is told of the dropped action but a reward of 0, and a success rate over several
# episodes in a row is of a policy that begins blind.
#
# `autoreset_mode=AutoresetMode.SAME_STEP` gives the first observation with the step that is done (the last one
# is in the infos), as before 1.0, and no step acts on an older plan.
#
# gymnasium 1.4.0, numpy 2.4.6, Python 3.11. Seen (of every step of the third episode, in which it was planned):
#   NEXT_STEP: [2, 2, 2, 3, 3, 3, 3, 3], 24 of 26 actions done
#   SAME_STEP: [3, 3, 3, 3, 3, 3, 3, 3], 24 of 24 actions done
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  gymnasium==1.4.0 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

STEPS, CHUNK = 8, 4


class Numbered(gymnasium.Env):
    """It shows which episode it is in, and notes what it was told to do."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    episode = 0

    def __init__(self):
        self.done = {}

    def shown(self):
        return np.array([self.episode], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self.shown(), {}

    def step(self, action):
        self.time += 1
        self.done.setdefault(self.episode, []).append(int(action[0]))
        return self.shown(), 1.0, False, self.time == STEPS, {}


def run(mode):
    """What was done in every episode by a policy whose actions are the episode that it saw."""
    inner = Numbered()
    envs = SyncVectorEnv([lambda: inner], autoreset_mode=mode)
    observation, _ = envs.reset(seed=0)
    queue, asked = [], 0
    while len(inner.done.get(3, [])) < STEPS:
        if not queue:
            queue = [float(observation[0, 0])] * CHUNK
        observation, _, terminated, truncated, _ = envs.step(np.float32([[queue.pop(0)]]))
        asked += 1
        if terminated[0] or truncated[0]:
            queue = []
    return inner.done, asked


for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
    done, asked = run(mode)
    count = sum(map(len, done.values()))
    print(f"{mode.name}: {done[3]}, {count} of {asked} actions done")
    assert done[1] == [1] * STEPS
    blind = CHUNK - 1 if mode == AutoresetMode.NEXT_STEP else 0
    assert done[2] == [1] * blind + [2] * (STEPS - blind), done
    assert done[3] == [2] * blind + [3] * (STEPS - blind), done
    assert asked - count == (2 if mode == AutoresetMode.NEXT_STEP else 0), (asked, count)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
