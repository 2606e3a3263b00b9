#!/usr/bin/env bash
# How many worker processes Grain has changes which examples are in a batch, and how many are lost.
#
# The guess: reading is deterministic, so workers change its speed alone: the same seed gives the same
# batches with none, two or three of them. Seen: each worker makes its own batches, of every n-th
# example. With two workers a batch holds examples that are two apart, an epoch ends with a short batch
# of each worker, and with drop_remainder every worker drops its own rest: of 18 examples in fours
# 2 are lost without workers, 2 with two, 6 with three, which then give 3 batches and not 4.
#
# It matters where a run goes on, or is compared, on a host with other workers: other batches, other
# steps an epoch, other examples that are never seen. What is given to workers before batching
# (mp_prefetch, then batch) has the same order whatever their number.
#
# grain 0.2.18, Python 3.11. Seen, of 18 examples in batches of four, the rest dropped:
#   0 workers: [0, 1, 2, 3] [4, 5, 6, 7] [8, 9, 10, 11] [12, 13, 14, 15]
#   2 workers: [0, 2, 4, 6] [1, 3, 5, 7] [8, 10, 12, 14] [9, 11, 13, 15]
#   3 workers: [0, 3, 6, 9] [1, 4, 7, 10] [2, 5, 8, 11]
#   3 workers, batched after them: [0, 1, 2, 3] [4, 5, 6, 7] [8, 9, 10, 11] [12, 13, 14, 15]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
cat > "$folder/ask.py" <<'PYTHON'
import grain.python as grain
import numpy as np


class Numbers:
    def __len__(self):
        return 18

    def __getitem__(self, index):
        return np.int64(index)


def batches(workers, after=False):
    data = grain.MapDataset.source(Numbers()).to_iter_dataset()
    many = grain.MultiprocessingOptions(num_workers=workers)
    if after:
        data = data.mp_prefetch(many).batch(4, drop_remainder=True)
    else:
        data = data.batch(4, drop_remainder=True)
        data = data.mp_prefetch(many) if workers else data
    return [batch.tolist() for batch in data]


if __name__ == "__main__":
    found = {workers: batches(workers) for workers in (0, 2, 3)}
    for workers, each in found.items():
        print(f"{workers} workers:", *each)
    after = batches(3, after=True)
    print("3 workers, batched after them:", *after)
    assert [len(each) for each in found.values()] == [4, 4, 3], "it has changed"
    assert found[2][0] == [0, 2, 4, 6] and after == found[0], "it has changed"
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
