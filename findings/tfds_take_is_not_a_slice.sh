#!/usr/bin/env bash
# The first 25 episodes of a split are others by take(25) than by "train[:25]".
#
# The guess: a slice of TensorFlow Datasets says which examples of the split in its order, so that a
# small set of labels is the same by as_dataset(split="train[:25]") and by as_dataset("train").take(25).
# Seen: a slice counts shard by shard, while reading takes 16 of each shard in turn: both begin with the
# same 16 and then part. What is meant as one set of labels in two programs is two; with
# interleave_cycle_length=1 both are one.
#
# It helps to slice, and to hold what was read against the slice by its ids (ReadConfig's add_tfds_id).
#
# tensorflow-datasets 4.9.10, tensorflow-cpu 2.21.0, Python 3.11. 1,000 examples in 8 shards. Seen:
#   first 10: 10 in both
#   first 25: 16 in both
#   first 100: 16 in both
#   first 100, one shard at a time: 100 in both
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  tensorflow-datasets==4.9.10 tensorflow-cpu==2.21.0
mkdir "$folder/numbers"
cat > "$folder/numbers/ask.py" <<'PYTHON'
import sys

import tensorflow as tf
import tensorflow_datasets as tfds


class Numbers(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"number": tf.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(1000):
            yield number, {"number": number}


builder = Numbers(data_dir=sys.argv[1])
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=8))
assert builder.info.splits["train"].num_shards == 8


def read(split, n, **settings):
    config = tfds.ReadConfig(**settings)
    dataset = builder.as_dataset(split=split, read_config=config).take(n)
    return [int(example["number"]) for example in tfds.as_numpy(dataset)]


def shared(n, **settings):
    sliced, taken = read(f"train[:{n}]", n, **settings), read("train", n, **settings)
    assert len(set(sliced)) == len(set(taken)) == n
    return len(set(sliced) & set(taken))


found = [shared(n) for n in (10, 25, 100)]
for n, both in zip((10, 25, 100), found, strict=True):
    print(f"first {n}: {both} in both")
one = shared(100, interleave_cycle_length=1)
print(f"first 100, one shard at a time: {one} in both")
if found != [10, 16, 16] or one != 100:
    raise SystemExit("it has changed")
PYTHON
PYTHONPATH="$folder/numbers" TF_CPP_MIN_LOG_LEVEL=3 \
  "$folder/venv/bin/python" -W ignore "$folder/numbers/ask.py" "$folder/data" 2> "$folder/said" \
  || { cat "$folder/said"; exit 1; }
