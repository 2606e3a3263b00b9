#!/usr/bin/env bash
# The numbers of a slice of a parquet column of actions are, as `.values`, those of the whole column.
#
# The guess: `table.slice(start, length)["action"]`, of lists of a fixed size as LeRobot's tables have them, holds
# the episode's numbers, and `.values` or `.flatten()` gives them for numpy to reshape. Seen: `.values` gives the
# numbers of the whole column, from its first row on, so that the first rows of the file are taken for the
# episode; only the length tells. `.flatten()` heeds the slice, but leaves out rows that are missing: every row after
# one is then the next row's. Neither raises, and reshaped both are rows of four numbers.
#
# What is right in both: `np.stack(column.to_numpy(zero_copy_only=False))`, which fails of a missing row, or
# `.flatten()` where `null_count` is 0.
#
# pyarrow 26.0.1, numpy 2.4.6, Python 3.11. Seen (of rows whose numbers are 10 times the row, and 1 to 4):
#   rows 5 and 6, values: 40 numbers, the first row [1, 2, 3, 4]; flatten: [51, 52, 53, 54], [61, 62, 63, 64]
#   rows 0 to 2 without row 1, values: row 1 is [nan, nan, nan, nan]; flatten: row 1 is [21, 22, 23, 24]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  pyarrow==26.0.1 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

path = f"{sys.argv[1]}/data.parquet"
rows = 10.0 * np.arange(10)[:, None] + np.arange(1, 5)
kind = pa.list_(pa.float32(), 4)


def read(values, start, length):
    """A slice of the column of a file that holds these rows."""
    pq.write_table(pa.table({"action": pa.array(values, kind)}), path)
    column = pq.read_table(path).slice(start, length)["action"]
    assert column.type == kind and len(column) == length
    return column.chunk(0)


def told(numbers):
    return [[float(f"{x:g}") if np.isnan(x) else int(x) for x in row] for row in numbers]


part = read(rows.tolist(), 5, 2)
whole, own = (x.to_numpy(zero_copy_only=False) for x in (part.values, part.flatten()))
first, own = told(whole.reshape(-1, 4))[0], told(own.reshape(-1, 4))
print(f"rows 5 and 6, values: {len(whole)} numbers, the first row {first}; flatten: {own[0]}, {own[1]}")
np.testing.assert_array_equal(whole.reshape(-1, 4), rows)
np.testing.assert_array_equal(own, rows[5:7])
np.testing.assert_array_equal(np.stack(part.to_numpy(zero_copy_only=False)), rows[5:7])

missing = read([*rows[:1].tolist(), None, *rows[2:3].tolist()], 0, 3)
whole, own = (x.to_numpy(zero_copy_only=False) for x in (missing.values, missing.flatten()))
whole, own = whole.reshape(-1, 4), own.reshape(-1, 4)
print(
    f"rows 0 to 2 without row 1, values: row 1 is {told(whole)[1]}; flatten: row 1 is {told(own)[1]}"
)
assert np.isnan(whole[1]).all() and len(own) == 2 and missing.null_count == 1
np.testing.assert_array_equal(own[1], rows[2])
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder"
