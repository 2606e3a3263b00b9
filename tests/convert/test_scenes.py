"""Cuts begin episodes; motion, light and flashes do not."""

import numpy as np
import pytest
import video_files as files

from data_pipelines.convert import decode, video

HEIGHT, WIDTH = 96, 160


def world(seed, height=HEIGHT, width=3 * WIDTH):
    """A picture larger than the frame: patches of its own few colours."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (5, 3))
    patches = palette[rng.integers(0, 5, (height // 8, width // 8))]
    return np.kron(patches, np.ones((8, 8, 1))).astype(np.uint8)


def pan(seed, count, speed=2):
    """`count` frames of a camera that moves by `speed` pixels a frame."""
    picture = world(seed, width=WIDTH + speed * count)
    return [np.ascontiguousarray(picture[:, speed * i : speed * i + WIDTH]) for i in range(count)]


def lengths(path, frames, **changes):
    files.write_video(path, frames)
    values = dict(fps=20.0, height=32, width=32, fit="crop", quality=92)
    values |= dict(clip_seconds=0.0, source_fps=0.0, cut_threshold=0.3) | changes
    return [len(clip.images) for clip in decode.read_clips(path, decode.VideoSettings(**values))]


def test_cuts_are_found_where_they_are(tmp_path):
    frames = pan(0, 12) + pan(1, 7) + pan(2, 1) + pan(3, 15)
    assert lengths(tmp_path / "cuts.mp4", frames) == [12, 7, 1, 15]
    assert lengths(tmp_path / "cuts.mp4", frames, cut_threshold=0.0) == [35]
    assert lengths(tmp_path / "cuts.mp4", frames, clip_seconds=0.25) == [5, 5, 2, 5, 2, 1, 5, 5, 5]


def test_a_lower_rate_keeps_scenes_apart(tmp_path):
    frames = pan(0, 11) + pan(1, 9)  # the first frame of the second scene is not chosen
    assert lengths(tmp_path / "cuts.mp4", frames, fps=10.0) == [6, 4]


@pytest.mark.parametrize("speed", [8, 24])
def test_fast_motion_is_no_cut(tmp_path, speed):
    still, moving = pan(4, 6, 0), pan(4, 20, speed)
    assert lengths(tmp_path / "fast.mp4", still + moving + still) == [32]


def test_light_and_flashes_are_no_cuts(tmp_path):
    frames = pan(5, 20)
    darker = [(frame * (1 - 0.03 * i)).astype(np.uint8) for i, frame in enumerate(frames)]
    assert lengths(tmp_path / "light.mp4", darker) == [20]
    frames[9] = np.full_like(frames[9], 255)
    assert lengths(tmp_path / "flash.mp4", frames) == [20]


def test_each_scene_is_an_episode(tmp_path):
    frames = pan(0, 6) + pan(1, 1) + pan(2, 8)
    files.write_video(tmp_path / "v" / "a.mp4", frames)
    values = dict(fps=20.0, size=(32, 32), split_scenes=0.3, progress=False)
    options = video.Options(source=tmp_path / "v", out=tmp_path / "out", **values)
    report = video.convert_videos(options)
    assert (report.episodes, report.frames) == (2, 14)
    assert report.short == [("a.mp4#0001", "1 frame at 20 fps, an episode needs 2")]


def test_the_threshold_is_checked(tmp_path):
    with pytest.raises(ValueError, match="cut_threshold=2.0.*--split_scenes"):
        lengths(tmp_path / "x.mp4", pan(0, 3), cut_threshold=2.0)
