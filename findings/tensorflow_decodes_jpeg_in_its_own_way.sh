#!/usr/bin/env bash
# A JPEG that TensorFlow decodes is not the array that others decode, at high quality least of all.
#
# The guess: all of them are libjpeg-turbo, so one file is one array; at most a 1 here or there, and
# less at quality 95 than at 75. Seen: Pillow, OpenCV and simplejpeg agree in every number. TensorFlow
# (tf.io.decode_jpeg and decode_image, which TFDS and RLDS pipelines use) takes a fast, inexact
# cosine transform where nothing is said: two thirds of all numbers differ, at quality 95 by up to 8 and
# 1.4 on average, more than at quality 75, because finer steps leave it less precision. With
# dct_method="INTEGER_ACCURATE" it agrees with the others, too.
#
# It matters where a model that learnt from RLDS is compared with its port, or acts on pictures that
# another decoder reads: the difference is larger than that of many resizing methods.
#
# tensorflow-cpu 2.21.0, pillow 12.3.0, opencv-python-headless 4.13.0.92, simplejpeg 1.9.0,
# Python 3.11, x86-64. Seen, beside Pillow:
#   quality 75: opencv 0.0 %; simplejpeg 0.0 %; tensorflow 61.2 %, up to 3, mean 0.94;
#               tensorflow, INTEGER_ACCURATE 0.0 %
#   quality 95: opencv 0.0 %; simplejpeg 0.0 %; tensorflow 73.7 %, up to 8, mean 1.46;
#               tensorflow, INTEGER_ACCURATE 0.0 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  tensorflow-cpu==2.21.0 pillow==12.3.0 opencv-python-headless==4.13.0.92 simplejpeg==1.9.0
cat > "$folder/ask.py" <<'PYTHON'
import io

import cv2
import numpy as np
import simplejpeg
import tensorflow as tf
from PIL import Image

y, x = np.mgrid[:256, :256]
waves = [np.sin(x / 9 + y / 30), np.sin(y / 7), np.cos((x + y) / 13)]
picture = 127 + 120 * np.stack(waves, -1)
picture += np.random.default_rng(0).normal(0, 10, picture.shape)
picture = picture.clip(0, 255).astype(np.uint8)
picture[64:128, 64:128] = (220, 20, 20)

found = {}
for quality in (75, 95):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    data = buffer.getvalue()
    pillow = np.asarray(Image.open(buffer)).astype(int)
    decoded = {
        "opencv": cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
        "simplejpeg": simplejpeg.decode_jpeg(data),
        "tensorflow": tf.io.decode_jpeg(data).numpy(),
        "tensorflow, INTEGER_ACCURATE": tf.io.decode_jpeg(
            data, dct_method="INTEGER_ACCURATE"
        ).numpy(),
    }
    assert (decoded["tensorflow"] == tf.io.decode_image(data).numpy()).all()
    for name, pixels in decoded.items():
        off = np.abs(pixels - pillow)
        found[quality, name] = off.mean()
        print(
            f"quality {quality}, {name}: {100 * (off > 0).mean():.1f} % differ, up to {off.max()}, "
            f"mean {off.mean():.2f}"
        )
for (quality, name), mean in found.items():
    assert (mean > 0.5) == (name == "tensorflow"), "it has changed"
assert found[95, "tensorflow"] > 1.2 > found[75, "tensorflow"], "it has changed"
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/ask.py"
