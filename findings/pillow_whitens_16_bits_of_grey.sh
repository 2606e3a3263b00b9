#!/usr/bin/env bash
# A picture of distances (a PNG with 16 bits of grey) is nearly all white where Pillow makes 8 bits.
#
# The guess: convert("RGB") of 16 bits keeps the upper eight, as decoders of TensorFlow and OpenCV do
# when asked for 8 bits; so a depth camera's millimetres become a dark, coarse, usable picture. Seen:
# Pillow cuts off at 255. All that is further than 26 cm is white, and nothing is said; of a PNG with
# 16 bits of each colour the same program keeps the upper eight. Three readers, three answers: FFmpeg
# (PyAV) rounds. Loaders of episodes and processors of images that begin with convert("RGB") train on
# white pictures, and the same episodes as RLDS show the room.
#
# It helps to read arrays (mode I;16), and to scale them oneself.
#
# pillow 13.0.0, av 18.1.0, opencv-python-headless 5.0.0.93, tensorflow-cpu 2.21.0, Python 3.11.
# Seen, of 0 100 255 256 1000 5000 40000 65535:
#   Pillow, grey:   0 100 255 255 255 255 255 255
#   Pillow, colour: 0 0 0 1 3 19 156 255
#   OpenCV:         0 0 0 1 3 19 156 255
#   TensorFlow:     0 0 0 1 3 19 156 255
#   FFmpeg:         0 0 1 1 4 20 156 255
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  pillow==13.0.0 av==18.1.0 opencv-python-headless==5.0.0.93 tensorflow-cpu==2.21.0
cat > "$folder/ask.py" <<'PYTHON'
import io

import av
import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

told = [0, 100, 255, 256, 1000, 5000, 40000, 65535]
grey = np.array([told, told], np.uint16)
of_grey, of_colour = (
    cv2.imencode(".png", x)[1].tobytes() for x in (grey, np.stack([grey] * 3, axis=-1))
)
with av.open(io.BytesIO(of_grey)) as container:
    frame = next(container.decode(video=0))
found = {
    "Pillow, grey": Image.open(io.BytesIO(of_grey)).convert("RGB"),
    "Pillow, colour": Image.open(io.BytesIO(of_colour)).convert("RGB"),
    "OpenCV": cv2.imdecode(np.frombuffer(of_grey, np.uint8), cv2.IMREAD_COLOR),
    "TensorFlow": tf.io.decode_png(of_grey, channels=3, dtype=tf.uint8),
    "FFmpeg": frame.to_ndarray(format="rgb24"),
}
found = {name: [int(x) for x in np.asarray(image)[0, :, 0]] for name, image in found.items()}
for name, values in found.items():
    print(f"{name}:", *values)
upper = [x >> 8 for x in told]
same = [name for name, values in found.items() if values == upper]
if found["Pillow, grey"] != [min(x, 255) for x in told] or same != list(found)[1:4]:
    raise SystemExit("it has changed")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" "$folder/ask.py" \
  2> "$folder/said" || { cat "$folder/said"; exit 1; }
