#!/usr/bin/env bash
# RLDS gives a step the next action at any size of image, the action before up to some 180 pixels.
#
# The guess: rlds.transformations.shift_keys(steps, ["action"], -1), which is how the action before
# comes into a step (a condition of many policies), works wherever +1 does. Seen: it works through
# batches, as large as fit 200,000 bytes, but at least four times the shift; and of a negative shift
# four times is less than none. A step of more than 100,000 bytes, one camera of 224 x 224, makes
# batches of one, and the shift is refused. The error does not say the batch size either, but
# "{batch_size}". So code that was tried on 128 x 128 fails on real data.
#
# It helps to give batch_size, any number above the shift.
#
# rlds 0.1.6, tensorflow-cpu 2.21.0, Python 3.11. Seen, of six steps whose actions are 0 to 5:
#   128 x 128 by +1: [1, 2, 3, 4, 5]
#   128 x 128 by -1: [0, 1, 2, 3, 4]
#   224 x 224 by +1: [1, 2, 3, 4, 5]
#   224 x 224 by -1: ValueError
#   224 x 224 by -1, batch_size=8: [0, 1, 2, 3, 4]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  rlds==0.1.6 tensorflow-cpu==2.21.0
cat > "$folder/ask.py" <<'PYTHON'
import numpy as np
import rlds
import tensorflow as tf


def actions(side, shift, **keys):
    fields = {"action": np.arange(6), "image": np.zeros((6, side, side, 3), np.uint8)}
    steps = tf.data.Dataset.from_tensor_slices(fields)
    try:
        shifted = rlds.transformations.shift_keys(steps, ["action"], shift, **keys)
        return [int(step["action"]) for step in shifted]
    except ValueError as error:
        assert "{batch_size}" in str(error), error
        return "ValueError"


later, before = [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]
for side, shift, keys, known in (
    (128, 1, {}, later),
    (128, -1, {}, before),
    (224, 1, {}, later),
    (224, -1, {}, "ValueError"),
    (224, -1, {"batch_size": 8}, before),
):
    found = actions(side, shift, **keys)
    told = "".join(f", {key}={value}" for key, value in keys.items())
    print(f"{side} x {side} by {shift:+}{told}: {found}")
    assert found == known, "it has changed"
PYTHON
TF_CPP_MIN_LOG_LEVEL=2 "$folder/venv/bin/python" "$folder/ask.py"
