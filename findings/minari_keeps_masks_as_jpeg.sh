#!/usr/bin/env bash
# Minari may give back other object numbers than were recorded: it keeps masks as JPEG.
#
# The guess: a data set for offline learning gives back the arrays that were put in; at most what is
# told to be a picture is compressed. Seen: every uint8 array of two or three axes whose first two
# are at least 32 and whose space is 0 to 255 is a JPEG, in either format. Of a segmentation of
# 64 x 64 (four objects, numbered 0 to 3) a quarter of the pixels comes back as other numbers. The
# same array in a space of 0 to 3 comes back as it was. Grey pictures with an axis for their channel
# and stacks of four frames, as those of Atari, raise an error of Pillow when an episode is written.
#
# It helps to give jpeg_encoding=False, or to say the true bounds of what is no picture.
#
# minari 0.5.4, pillow 12.2.0, Python 3.11. Seen, after hdf5 and arrow alike:
#   mask (64, 64), 0 to 255: 25.2 % changed, by up to 2
#   mask (64, 64), 0 to 3: 0.0 % changed
#   mask (64, 64), 0 to 255, jpeg_encoding=False: 0.0 % changed
#   grey (84, 84, 1): TypeError
#   stack (84, 84, 4): OSError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  "minari[hdf5,arrow]==0.5.4" pillow==12.2.0
cat > "$folder/ask.py" <<'PYTHON'
import warnings

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

warnings.simplefilter("ignore")
STEPS = 3
BOX = gym.spaces.Box
ABOUT = {key: "of nothing" for key in ("algorithm_name", "code_permalink", "author", "author_email")}


def changed(name, image, high, **options):
    episode = EpisodeBuffer(
        id=0,
        observations=[image] * (STEPS + 1),
        actions=[np.zeros(1, np.float32)] * STEPS,
        rewards=[0.0] * STEPS,
        terminations=[False] * STEPS,
        truncations=[False] * (STEPS - 1) + [True],
        infos={},
    )
    spaces = dict(observation_space=BOX(0, high, image.shape, np.uint8), action_space=BOX(-1, 1, (1,)))
    try:
        kept = minari.create_dataset_from_buffers(name, [episode], **spaces, **ABOUT, **options)
    except (TypeError, OSError) as error:
        return type(error).__name__
    error = np.abs(np.asarray(kept[0].observations[0], int) - image)
    return f"{100 * (error > 0).mean():.1f} % changed" + f", by up to {error.max()}" * bool(error.any())


place = np.add.outer(np.arange(64), np.arange(64))
mask, grey = (place // 16 % 4).astype(np.uint8), np.zeros((84, 84, 1), np.uint8)
asked = {
    "mask (64, 64), 0 to 255": (mask, 255, {}),
    "mask (64, 64), 0 to 3": (mask, 3, {}),
    "mask (64, 64), 0 to 255, jpeg_encoding=False": (mask, 255, {"jpeg_encoding": False}),
    "grey (84, 84, 1)": (grey, 255, {}),
    "stack (84, 84, 4)": (np.repeat(grey, 4, 2), 255, {}),
}
found = []
for i, (what, (image, high, options)) in enumerate(asked.items()):
    both = [
        changed(f"tests/{form}{i}-v0", image, high, data_format=form, **options)
        for form in ("hdf5", "arrow")
    ]
    assert both[0] == both[1], both
    found.append(both[0])
    print(f"{what}: {both[0]}")
assert "by up to" in found[0] and found[1] == found[2] == "0.0 % changed", "it has changed"
assert found[3:] == ["TypeError", "OSError"], "it has changed"
PYTHON
MINARI_DATASETS_PATH="$folder/data" "$folder/venv/bin/python" "$folder/ask.py"
