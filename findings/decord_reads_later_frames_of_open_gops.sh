#!/usr/bin/env bash
# decord, asked for one frame of a video, may give another, three frames later.
#
# The guess: VideoReader[i], which is advertised for random access, is frame i, as reading from the
# start gives it. Seen: so it is where each group of pictures stands alone. Where frames before a
# keyframe in time refer to the group before it (an open GOP: broadcasts, cameras, x264 where it is
# told so), they are lost on the way, unless reading came from the frame before, and are not counted:
# five frames around each keyframe come out as those of three steps later. Of HEVC, where open groups
# are what x265 makes unless told otherwise, the frame is the right one, drawn wrongly. Nothing is
# raised; a line of FFmpeg's on standard error is all.
#
# It matters for pairs of frames a short window apart, which loaders of clips draw at random: one of
# them may be a tenth of a second late where the window is a fifth. Reading in order, from the
# start, is right.
#
# decord 0.6.0, av 18.1.0 (makes the video), Linux x86-64. Seen, 60 frames, a keyframe each 12, frames
# asked for one by one that differ from those read in order:
#   closed groups: 0 | open groups: 20, all of them the frame of three later
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check decord==0.6.0 av==18.1.0 \
  numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import sys

import av
import decord
import numpy as np

found = {}
for is_open in (0, 1):
    path = f"{sys.argv[1]}/{is_open}.mp4"
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.options = {"x264-params": f"open-gop={is_open}:keyint=12:bframes=3:scenecut=0"}
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(60):
            picture = np.full((64, 64, 3), 4 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    with av.open(path) as file:
        true = [f.to_ndarray(format="rgb24")[32, 32, 0] for f in file.decode(video=0)]
    true = np.array(true, int)
    ordered = decord.VideoReader(path).get_batch(range(60)).asnumpy()[:, 32, 32, 0]
    alone = [decord.VideoReader(path)[i].asnumpy()[32, 32, 0] for i in range(60)]
    wrong = [i for i in range(60) if abs(int(alone[i]) - true[i]) > 2]
    later = [i for i in wrong if abs(true - int(alone[i])).argmin() == i + 3]
    found[is_open] = len(wrong), len(later), int(abs(ordered - true).max())
    print(f"open groups {bool(is_open)}: {len(wrong)} wrong, {len(later)} of three later")
if found != {0: (0, 0, 0), 1: (20, 20, 0)}:
    print(f"it has changed: {found}")
    sys.exit(1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder" 2> /dev/null
