#!/usr/bin/env bash
# The statistics of an RLDS data set are of its sums modulo 256, where a field is of uint8.
#
# The guess: rlds.transformations.mean_and_std, which answers in float64, casts fields before it adds
# them up. Seen: they are added up in their own type, and the sum is cast. Of a uint8 field (a gripper
# in percent, pixels) the sum wraps around: the mean of steps that are all 200 is below 1, and the
# deviation, which is taken from that mean in float64, is near 200 where it is 0. Of float16 the sum
# is infinite from 65,520 on. No error, no warning. Fields of float32 and int32 are as they should be
# at this length.
#
# It matters where a corpus is normalised by the library's own statistics: cast to float64 in
# get_step_fields.
#
# rlds 0.1.6, tensorflow-cpu 2.21.0, Python 3.11. Seen, of 70,000 steps:
#   uint8   200: mean 0.00, std 200.00
#   float16   1: mean inf, std inf
#   float32   1: mean 1.00, std 0.00
#   int32   200: mean 200.00, std 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  rlds==0.1.6 tensorflow-cpu==2.21.0
cat > "$folder/ask.py" <<'PYTHON'
import rlds
import tensorflow as tf

STEPS = 70_000
found = {}
for dtype, value in (("uint8", 200), ("float16", 1), ("float32", 1), ("int32", 200)):
    fields = {"observation": {"x": tf.fill([STEPS, 1], tf.cast(value, dtype))}}
    fields |= {"action": tf.zeros([STEPS, 2]), "reward": tf.zeros([STEPS])}
    fields["is_last"] = tf.range(STEPS) == STEPS - 1
    steps = tf.data.Dataset.from_tensor_slices(fields)
    episodes = tf.data.Dataset.from_tensors({"steps": steps})
    mean, std = rlds.transformations.mean_and_std(episodes, rlds.transformations.sar_fields_mask)
    found[dtype] = [float(x["observation"]["x"][0]) for x in (mean, std)]
    print(f"{dtype:7} {value:3}: mean {found[dtype][0]:.2f}, std {found[dtype][1]:.2f}")
assert found["uint8"][0] < 1 and found["uint8"][1] > 199, "it has changed"
assert found["float16"][0] == float("inf"), "it has changed"
assert found["float32"] == [1.0, 0.0] and found["int32"] == [200.0, 0.0]
PYTHON
TF_CPP_MIN_LOG_LEVEL=2 "$folder/venv/bin/python" "$folder/ask.py"
