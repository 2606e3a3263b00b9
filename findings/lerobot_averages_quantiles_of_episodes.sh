#!/usr/bin/env bash
# q01 and q99 in a LeRobot data set are not its 1 % and 99 % quantiles.
#
# The guess: the quantiles in meta/stats.json, by which policies with normalisation QUANTILES (pi0.5)
# map actions to [-1, 1], are of all frames: kept as histograms, or as the widest of the episodes.
# Seen: each episode has its own (by a histogram), and those of the data set are their mean, weighted
# by length. Where episodes differ in place more than they move, as joint angles and positions do
# from one object to the next, q01 and q99 lie close together around the mean of the data, and what
# is normalised by them is far outside of [-1, 1]: here four fifths of the numbers. What is constant
# within each episode (the height of a torso, here 1 in every tenth) has q01 and q99 that differ by
# the rounding of the histogram's edges alone, which no guard against equal quantiles catches. Mean,
# deviation, least and greatest value are right. (Code after this release takes the widest quantiles
# of the episodes.)
#
# It matters for tokens of actions (FAST, bins) and for clipping: compute the quantiles of all frames.
#
# lerobot 0.4.4, numpy 2.2.6, Python 3.11; its statistics alone, without the reader of images, which
# needs torch. Seen, of 200 episodes of 100 frames:
#   position: q01 -0.24, q99 0.23 (of all frames: -2.33, 1.92); outside of [-1, 1]: 82 %, up to 11
#   torso: q01 0.10, q99 0.10 (of all frames: 0.00, 1.00); outside of [-1, 1]: 100 %, up to 5e+13
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile numpy==2.2.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps \
  lerobot==0.4.4
cat > "$folder/ask.py" <<'PYTHON'
import sys
import types

import numpy as np

reader = types.ModuleType("lerobot.datasets.utils")
reader.load_image_as_numpy = None
sys.modules["lerobot.datasets.utils"] = reader
from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats

EPISODES, FRAMES = 200, 100
rng = np.random.default_rng(0)
position = rng.normal(size=(EPISODES, 1)) + 0.1 * rng.normal(size=(EPISODES, FRAMES))
torso = np.repeat(np.arange(EPISODES) % 10 == 0, FRAMES).reshape(EPISODES, FRAMES)
data = np.stack([position, torso], -1).astype(np.float32)
features = {"action": {"dtype": "float32", "shape": (2,)}}
episodes = [compute_episode_stats({"action": one}, features) for one in data]
found = aggregate_stats(episodes)["action"]
frames = data.reshape(-1, 2)
low, high = np.quantile(frames, [0.01, 0.99], axis=0)
x = 2 * (frames - found["q01"]) / (found["q99"] - found["q01"]) - 1
out, most = (np.abs(x) > 1.001).mean(0), np.abs(x).max(0)
for d, name in enumerate(("position", "torso")):
    print(f"{name}: q01 {found['q01'][d]:.2f}, q99 {found['q99'][d]:.2f} (of all frames: "
          f"{low[d]:.2f}, {high[d]:.2f}); outside of [-1, 1]: {100 * out[d]:.0f} %, up to {most[d]:.2g}")
np.testing.assert_allclose(found["mean"], frames.mean(0), atol=1e-4)
np.testing.assert_allclose(found["std"], frames.std(0), atol=1e-3)
assert (found["min"] == frames.min(0)).all() and (found["max"] == frames.max(0)).all()
for q in ("q01", "q99"):
    mean = np.mean([one["action"][q] for one in episodes], axis=0)
    np.testing.assert_allclose(found[q], mean, atol=1e-6, err_msg="it has changed")
assert out[0] > 0.5 and most[0] > 5 and 0 < found["q99"][1] - found["q01"][1] < 1e-6
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
