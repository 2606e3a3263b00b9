#!/usr/bin/env bash
# Video that is scaled to packed RGB is 2 of 255 darker where the new width is even.
#
# The guess: a width decides how many pixels there are, not their colours. swscale, asked to scale
# yuv420p and make rgb24 of it at once, takes a fast path at even widths, whose arithmetic turns white
# into 253 and which shares chroma between two pixels. At odd widths, to planar RGB (gbrp), and with
# the flags for full chroma, white is 255. Planar RGB is also the fastest of them.
#
# It matters for data sets: crops of 64 and of 65 pixels of one video differ in brightness.
#
# av 18.1.0 (FFmpeg 8.1.2), Linux x86-64. Seen, white scaled from 130x94:
#   rgb24, 64 wide 253; rgb24, 65 wide 255; rgb24 with flags, 64 wide 255; gbrp, 64 wide 255
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

white = av.VideoFrame(130, 94, "yuv420p")
for plane, level in zip(white.planes, (235, 128, 128), strict=True):
    plane.update(np.full(plane.buffer_size, level, np.uint8).tobytes())
area, full = Interpolation.AREA, Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
found = []
for kind, width, how in (
    ("rgb24", 64, area),
    ("rgb24", 65, area),
    ("rgb24", 64, area | full),
    ("gbrp", 64, area),
):
    scaled = VideoReformatter().reformat(
        white, width=width, height=48, format=kind, interpolation=how
    )
    found.append(int(scaled.to_ndarray().max()))
print(found)
assert found == [253, 255, 255, 255], "it has changed"
PYTHON
