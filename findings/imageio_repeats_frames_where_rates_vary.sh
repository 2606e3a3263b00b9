#!/usr/bin/env bash
# imageio gives 60 frames of a video that has 30, and says itself that there are 30.
#
# The guess: a reader gives the frames that are in the file, whatever the time between them, as PyAV
# does. Seen: through imageio-ffmpeg a video whose rate varies (phones in poor light, screen
# recordings, a camera that dropped frames) is first made one of an even rate, its nominal 30 a
# second: where frames are 100 ms apart each comes three times, a gap of a second is filled with 30
# equal ones. Frame i is then not frame i of PyAV, nor of whoever made labels or times; pairs a fixed
# number of frames apart show no motion. get_meta_data()["fps"] is that of the frames that are
# stored (15.1), so that times made of it are twice the true ones; count_frames() counts the stored.
#
# It helps to read with PyAV (plugin="pyav"), and by times.
#
# imageio 2.38.1, imageio-ffmpeg 0.8.1, av 18.1.0, Python 3.11. Seen, of videos of 30 frames:
#   even, 33 ms:     reader 30 frames, count_frames 30, fps 30.29, pyav 30
#   a gap of 1 s:    reader 60 frames, count_frames 30, fps 15.07, pyav 30
#   33, then 100 ms: reader 58 frames, count_frames 30, fps 15.56, pyav 30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  imageio==2.38.1 imageio-ffmpeg==0.8.1 av==18.1.0
cat > "$folder/ask.py" <<'PYTHON'
import sys
from fractions import Fraction

import av
import imageio
import numpy as np

MS = Fraction(1, 1000)


def write(path, times):
    """A frame at each time, in ms, each a little brighter."""
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base, stream.options = MS, {"bf": "0"}
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * i, np.uint8))
            frame.pts, frame.time_base = time, MS
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


path, found = f"{sys.argv[1]}/video.mp4", []
for what, times in (
    ("even, 33 ms", [33 * i for i in range(30)]),
    ("a gap of 1 s", [33 * i + 1000 * (i >= 15) for i in range(30)]),
    ("33, then 100 ms", [33 * min(i, 15) + 100 * max(0, i - 15) for i in range(30)]),
):
    write(path, times)
    with imageio.v2.get_reader(path, "ffmpeg") as reader:
        frames, said = sum(1 for _ in reader), reader.count_frames()
        rate = reader.get_meta_data()["fps"]
    stored = len(imageio.v3.imread(path, plugin="pyav"))
    found.append((frames, said, stored))
    print(f"{what}: reader {frames} frames, count_frames {said}, fps {rate}, pyav {stored}")
assert found == [(30, 30, 30), (60, 30, 30), (58, 30, 30)], "it has changed"
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder"
