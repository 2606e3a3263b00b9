#!/usr/bin/env bash
# A zarr array of actions that lost a file reads as zeros there, and what lost nothing looks the same.
#
# The guess: an array of which a chunk's file is gone (a copy that was cut off) cannot be read, or warns. Seen:
# its steps read as 0, which is an action that robots have, in format 2 (as replay buffers for diffusion
# policies are) and in 3; shapes, attributes and all other steps are right. Nor does it help to count: of an
# array that is whole fewer chunks are there than it has where one holds zeros alone, as those are not written.
#
# With `fill_value=nan` lost steps read as NaN, and with `write_empty_chunks` on, all of an array's chunks
# are there to be counted (`nchunks_initialized`); both are chosen by who writes.
#
# zarr 3.1.6, numpy 2.4.6, Python 3.11. Seen (of 10 chunks, one of zeros; "lost": the mean of the 100 lost steps):
#   format 2: 9 chunks before, 8 after; lost: 0.0
#   format 3: 9 chunks before, 8 after; lost: 0.0
#   format 2, write_empty_chunks: 10 chunks before, 9 after; lost: 0.0
#   format 2, fill_value nan: 10 chunks before, 9 after; lost: nan
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  zarr==3.1.6 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import pathlib
import sys

import numpy as np
import zarr

action = np.full((1000, 7), 0.5, np.float32)
action[300:400] = 0  # the robot rests
lost = slice(700, 800)


def ask(name, zarr_format, **how):
    """(chunks that are there, then, the lost steps) of an array whose eighth chunk is removed."""
    path = pathlib.Path(sys.argv[1], name)
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    array = group.create_array("action", shape=action.shape, dtype="f4", chunks=(100, 7), **how)
    array[:] = action
    before = array.nchunks_initialized
    (path / "action" / ("7.0" if zarr_format == 2 else "c/7/0")).unlink()
    again = zarr.open_group(path, mode="r")["action"]
    found = again[:]
    kept = np.delete(np.arange(1000), np.r_[lost])
    np.testing.assert_array_equal(found[kept], action[kept])
    after = again.nchunks_initialized
    print(f"{name}: {before} chunks before, {after} after; lost: {found[lost].mean():.1f}")
    assert after == before - 1
    return before, found[lost]


for zarr_format in (2, 3):
    before, found = ask(f"format {zarr_format}", zarr_format)
    assert before == 9 and (found == 0).all()
before, found = ask("format 2, write_empty_chunks", 2, config={"write_empty_chunks": True})
assert before == 10 and (found == 0).all()
before, found = ask("format 2, fill_value nan", 2, fill_value=np.nan)
assert before == 10 and np.isnan(found).all()
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder"
