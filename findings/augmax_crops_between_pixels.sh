#!/usr/bin/env bash
# A crop of augmax is no part of the picture: it lies between the pixels and softens them.
#
# The guess: RandomCrop copies a window of pixels, as crops of TensorFlow, PyTorch and dm_pix do;
# what is not resized is not changed. Seen: the corner is drawn from the reals, and the window
# interpolated, of uint8 pictures, too (whose values are cut off to whole numbers after it). Fine
# detail is lost by chance, a different part for every example: of white noise up to half of the
# spread. CenterCrop does the same where the difference in size is odd, always at half a pixel, the
# softest place there is: train with RandomCrop and evaluate with CenterCrop and the pictures differ
# in sharpness, not only in place.
#
# It helps to cut with jax.lax.dynamic_slice, and to let augmax do the colours.
#
# augmax 0.4.1, jax 0.10.2 on a CPU, Python 3.11. White noise, 16 x 16. Seen:
#   RandomCrop(8): 0 of 50 are a window of the picture; spread 0.13 to 0.27, the picture's 0.29
#   CenterCrop(8): a window, spread 0.29
#   CenterCrop(9): no window, spread 0.13
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  augmax==0.4.1 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import augmax
import jax
import numpy as np

picture = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)


def crop(transformation, seed=0):
    return np.asarray(augmax.Chain(transformation)(jax.random.PRNGKey(seed), picture))


def is_window(found):
    side = len(found)
    places = np.lib.stride_tricks.sliding_window_view(picture, (side, side), axis=(0, 1))
    return bool((np.abs(places - found.transpose(2, 0, 1)).max(axis=(2, 3, 4)) < 1e-4).any())


drawn = [crop(augmax.RandomCrop(8), seed) for seed in range(50)]
windows, spreads = sum(map(is_window, drawn)), [x.std() for x in drawn]
print(f"RandomCrop(8): {windows} of 50 are a window of the picture; spread {min(spreads):.2f} to "
      f"{max(spreads):.2f}, the picture's {picture.std():.2f}")
found = []
for side in (8, 9):
    middle = crop(augmax.CenterCrop(side))
    found.append(is_window(middle))
    told = "a window" if found[-1] else "no window"
    print(f"CenterCrop({side}): {told}, spread {middle.std():.2f}")
if windows or found != [True, False]:
    raise SystemExit("it has changed")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py" 2> "$folder/said" \
  || { cat "$folder/said"; exit 1; }
