#!/usr/bin/env bash
# Pictures that ffmpeg takes of a video at a lower rate are half a period late, or begin with two neighbours.
#
# The guess: of a video of 30 frames a second `-vf fps=1` writes frames 0, 30, 60, ..., one a second from the
# first on, and `-r 1` writes the same. Seen: neither does. The filter writes for second k the last frame that
# is nearer to it than to the next one: frame 14 is picture 0, and all pictures are half a period late. With
# `-r` the first two pictures, which count as a second apart, are frames 0 and 1, and later ones are four
# frames early. Who joins picture k with the action of time k / fps takes what was done half a period before,
# and a pair of the first two pictures by `-r` shows a thirtieth of the motion that all others show.
#
# `fps=1:round=up` writes frames 0, 30, 60, ... where the one rate divides the other.
#
# imageio-ffmpeg 0.6.0 (its ffmpeg is 7.0.2), numpy 2.4.6, pillow 12.2.0, Python 3.11. Seen (frames of 120):
#   1 a second: fps [14, 44, 74, 104], -r [0, 1, 26, 56, 86, 116], round=up [0, 30, 60, 90]
#   2 a second: fps [7, 22, 37, 52, 67, 82], -r [0, 1, 13, 28, 43, 58], round=up [0, 15, 30, 45, 60, 75]
#   5 a second: fps [2, 8, 14, 20, 26, 32], -r [0, 1, 5, 11, 17, 23], round=up [0, 6, 12, 18, 24, 30]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  imageio-ffmpeg==0.6.0 numpy==2.4.6 pillow==12.2.0
cat > "$folder/ask.py" <<'PYTHON'
import pathlib
import subprocess
import sys

import imageio_ffmpeg
import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
RATE, COUNT = 30, 120


def ffmpeg(*args, **more):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *args], check=True, **more)


# A video without loss whose frame n is of grey 2n.
frames = np.full((COUNT, 16, 16), 2 * np.arange(COUNT)[:, None, None], np.uint8)
read = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "16x16", "-r", str(RATE), "-i", "-"]
write = ["-c:v", "libx264", "-qp", "0", "-pix_fmt", "gray", folder / "video.mp4"]
ffmpeg(*read, *write, input=frames.tobytes())


def taken(*how):
    """Which frames the pictures are that are written so."""
    for path in folder.glob("*.png"):
        path.unlink()
    ffmpeg("-i", folder / "video.mp4", *how, folder / "%04d.png")
    return [int(np.asarray(Image.open(path)).flat[0]) // 2 for path in sorted(folder.glob("*.png"))]


for fps in (1, 2, 5):
    every = RATE // fps
    own, rate, up = (
        taken(*how)
        for how in (("-vf", f"fps={fps}"), ("-r", str(fps)), ("-vf", f"fps={fps}:round=up"))
    )
    print(f"{fps} a second: fps {own[:6]}, -r {rate[:6]}, round=up {up[:6]}")
    late = (every - 1) // 2
    assert own == list(range(late, COUNT, every)), own
    assert rate[:2] == [0, 1] and rate[2] < every and set(np.diff(rate[2:])) == {every}, rate
    assert up == list(range(0, COUNT, every)), up
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder"
