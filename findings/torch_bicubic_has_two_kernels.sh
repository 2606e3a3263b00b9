#!/usr/bin/env bash
# Where an image is enlarged there is nothing to filter, and yet antialias=True gives another bicubic.
#
# The guess: antialias of torch's interpolate widens the filter where an image gets smaller, and does
# nothing where it gets larger, as with bilinear; and jax.image.resize "cubic" is torch's "bicubic",
# with antialias set alike. Seen: torch has two kernels, Keys' with a = -3/4 without antialias and
# with a = -1/2 with it. JAX and Pillow have a = -1/2 in both. So an enlarged position table
# (DINOv2 resizes one of 37 x 37) agrees with torch to 1e-6 if it was made with antialias=True, and is
# a fifth of a standard deviation off at places if it was made without.
#
# torch 2.13.0, jax 0.10.2, pillow 12.0.0, CPU. Seen, 16 x 16 normal numbers enlarged to 24 x 24:
#   bilinear, with and without antialias: 0.0000 apart | bicubic: 0.2233 apart
#   jax and torch with antialias: 0.0000 | without: 0.2233 | Pillow and torch with: 0.0000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 jax==0.10.2 \
  pillow==12.0.0
cat > "$folder/ask.py" <<'PYTHON'
import jax
import numpy as np
import torch
from PIL import Image

image = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)


def torchs(mode, antialias):
    tensor = torch.tensor(image)[None, None]
    settings = dict(size=(24, 24), mode=mode, antialias=antialias, align_corners=False)
    return torch.nn.functional.interpolate(tensor, **settings)[0, 0].numpy()


def apart(one, other):
    return np.abs(one - other).max()


plain, filtered = (torchs("bicubic", antialias) for antialias in (False, True))
jaxs = np.asarray(jax.image.resize(image, (24, 24), "cubic", antialias=False))
pillows = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC))
linear = apart(torchs("bilinear", False), torchs("bilinear", True))
print(f"bilinear {linear:.4f}, bicubic {apart(plain, filtered):.4f} apart")
told = f"with antialias {apart(jaxs, filtered):.4f}, without {apart(jaxs, plain):.4f}"
print(f"jax and torch: {told}; Pillow and torch with: {apart(pillows, filtered):.4f}")
same = max(linear, apart(jaxs, filtered), apart(pillows, filtered))
if same > 1e-4 or apart(plain, filtered) < 0.1:
    raise SystemExit("it has changed: bicubic without antialias was another kernel")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
