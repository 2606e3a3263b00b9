#!/usr/bin/env bash
# TensorFlow Datasets says float64, and its numbers are float32: clocks in RLDS stand still.
#
# The guess: a feature declared float64 comes back as it was given, or is refused when it is written;
# tf.train.Example has no doubles, but TFDS has types of its own for its users. Seen: it is written as
# float32, read as float32 and cast, so that dtype and declaration say float64 and the value is the
# nearest float32. Of seconds since 1970, which robots stamp steps with, those are 128 s apart: all
# steps of most episodes get one and the same time, and differences are 0 or 128. Positions of the
# earth (latitude) lose metres. Only a Tensor with encoding="bytes" (or "zlib") keeps its numbers;
# int64 does, too.
#
# It helps to stamp steps from the start of the episode, or in integers.
#
# tensorflow-datasets 4.9.10, tensorflow-cpu 2.21.0, Python 3.11. Seen:
#   scalar: float64, 10 steps a second: 1 time for 100 steps, off by up to 10 s
#   tensor: float64, 10 steps a second: 1 time for 100 steps, off by up to 10 s
#   bytes: float64, 10 steps a second: 100 times for 100 steps, off by up to 0 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  tensorflow-datasets==4.9.10 tensorflow-cpu==2.21.0
mkdir "$folder/clock"
cat > "$folder/clock/ask.py" <<'PYTHON'
import sys

import numpy as np
import tensorflow_datasets as tfds

TIMES = 1_700_000_000 + np.arange(100) / 10  # s


class Clock(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        tensor = tfds.features.Tensor
        features = {
            "scalar": tfds.features.Scalar(np.float64),
            "tensor": tensor(shape=(1,), dtype=np.float64),
            "bytes": tensor(shape=(1,), dtype=np.float64, encoding="bytes"),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, time in enumerate(TIMES):
            yield i, {"scalar": time, "tensor": [time], "bytes": np.array([time])}


builder = Clock(data_dir=sys.argv[1])
builder.download_and_prepare()
examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
found = {}
for key in ("scalar", "tensor", "bytes"):
    assert {x[key].dtype for x in examples} == {np.dtype(np.float64)}
    times = np.sort([float(np.squeeze(x[key])) for x in examples])
    off = np.abs(times - TIMES).max()
    found[key] = len(set(times)), off
    print(f"{key}: float64, 10 steps a second: {len(set(times))} time{'s' * (len(set(times)) > 1)} "
          f"for 100 steps, off by up to {off:.0f} s")
if found["bytes"] != (100, 0) or any(found[key][0] != 1 for key in ("scalar", "tensor")):
    raise SystemExit("it has changed")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" "$folder/clock/ask.py" \
  "$folder/data" 2> "$folder/said" || { cat "$folder/said"; exit 1; }
