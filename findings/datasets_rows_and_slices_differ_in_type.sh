#!/usr/bin/env bash
# Hugging Face datasets in the format "numpy": a row has the times that are stored, a slice has not.
#
# The guess: with_format("numpy") gives a column as it is stored, and dataset[5]["time"] is
# dataset[:]["time"][5]. Seen: one row has float64, as stored; slices, columns and batches are cast to
# float32 (an explicit dtype in with_format prevents it). Seconds since 1970 are then multiples of 128:
# all frames of a clip at 30 a second have one time. In the format "jax" rows, too, are cast, and
# integers to int32, by dropping their upper bits: nanoseconds come out as other numbers, some of
# them negative. No warning.
#
# It matters where logs of robots (times since 1970) are put into LeRobot-like tables, and windows are
# found by comparing times: read them with the format "arrow", or store times from the start of each
# episode.
#
# datasets 5.2.0, jax 0.10.2, Python 3.11. Seen, four frames at 30 a second:
#   numpy, row by row: 4 times; [:]: 1; of float64, [:]: 4
#   jax, nanoseconds: [908722176 942055424 975388672 1008722176], of 3 s: [-1294967296]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 jax==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import datasets
import numpy as np

time = 1.7e9 + np.arange(4) / 30
table = datasets.Dataset.from_dict({"time": time, "ns": (time * 1e9).astype(np.int64)})
plain, told = table.with_format("numpy"), table.with_format("numpy", dtype=np.float64)
rows = len({row["time"] for row in plain})
sliced, exact = (len(np.unique(one[:]["time"])) for one in (plain, told))
print(f"numpy, row by row: {rows} times; [:]: {sliced}; of float64, [:]: {exact}")
ns = np.asarray(table.with_format("jax")[:]["ns"])
later = np.asarray(datasets.Dataset.from_dict({"ns": [3_000_000_000]}).with_format("jax")[:]["ns"])
print(f"jax, nanoseconds: {ns}, of 3 s: {later}")
if (rows, sliced, exact) != (4, 1, 4) or ns[0] == table["ns"][0] or later[0] >= 0:
    raise SystemExit("it has changed: slices were of float32 and rows of float64")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
