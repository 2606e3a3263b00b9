#!/usr/bin/env bash
# The interquartile mean of few runs is not of their middle half.
#
# The guess: the IQM, which rliable made the field's usual aggregate, is the mean of the middle 50 %
# of scores, with runs at the edge of it counted in part; so that one outlier of three seeds weighs
# little. Seen: whole runs are left out, a quarter of them rounded down on each side. Of three runs of
# one task none is: the IQM is the mean, outlier and all. Of five runs two are left out (40 %), of
# seven still two (29 %). Runs of all tasks are pooled first, so that with ten tasks and three seeds
# it trims tasks, the easiest and the hardest, and not outlying seeds.
#
# It matters for tables of three to five seeds on one task: "IQM" there says nothing beside the mean.
#
# rliable 1.2.0, scipy 1.15.3. Seen:
#   3 runs: IQM 30.00, mean 30.00, middle half with edges in part 20.00
#   5 runs: IQM 26.67, mean 32.00, middle half with edges in part 25.00
#   7 runs: IQM 20.00, mean 25.71, middle half with edges in part 13.57
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rliable==1.2.0 scipy==1.15.3
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from rliable import metrics


def middle_half(scores):
    """Every run covers 1 / n of the line; what of it lies in the middle half counts."""
    n = len(scores)
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    return 2 * float(np.diff(edges) @ np.sort(scores))


runs = ([0.0, 10.0, 80.0], [0.0, 10.0, 10.0, 60.0, 80.0], [0.0, *[10.0] * 4, 60.0, 80.0])
for scores in map(np.array, runs):
    iqm = float(metrics.aggregate_iqm(scores[:, None]))  # (runs, tasks)
    n, mean, half = len(scores), scores.mean(), middle_half(scores)
    print(f"{n} runs: IQM {iqm:.2f}, mean {mean:.2f}, middle half with edges in part {half:.2f}")
    kept = np.sort(scores)[n // 4 : n - n // 4]
    assert np.isclose(iqm, kept.mean()) and (n > 3) == (abs(iqm - mean) > 1e-9), "it has changed"
PYTHON
