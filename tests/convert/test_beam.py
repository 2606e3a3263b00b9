"""Apache Beam does the work of the local processes, byte for byte, in the environment it wants."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rlds_files
import video_files

from data_pipelines.convert import conversion, decode, rlds, video

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.prefix) / "beam" / "bin" / "python"
# DirectRunner would first look for another runner in the network, to fall back to this one.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

needs_beam = pytest.mark.skipif(
    not PYTHON.exists(), reason="the environment of Apache Beam is not there: make test makes it"
)

# In the other environment: converts, with parts and shards so small that there are several.
SCRIPT = """
import json, sys
from pathlib import Path
from data_pipelines.convert import conversion, decode, rlds, video

videos, bridge, out, runner = sys.argv[1:5]
out = Path(out)
conversion.PART_RECORDINGS, conversion.SHARD_BYTES = 2, 3000
beam = dict(progress=False, runner=runner)
def convert(source, out, **options):
    return video.convert_videos(video.Options(source=source, out=out, **options))
def convert_rlds(source, out, **options):
    return rlds.convert_rlds(rlds.Options(source=source, out=out, **options))
report = convert(videos, out / "videos", size=(32, 32), name="same", **beam)
resumed = convert(videos, out / "resumed", size=(32, 32), name="same", **beam)
convert_rlds(bridge, out / "bridge", size=(16, 16), name="same", **beam)
errors = []
try:
    convert(videos, out / "bad", size=(32, 32), max_bad_fraction=0.1, **beam)
except conversion.TooManyBadError as error:
    errors.append(str(error))
def read(path, settings):
    raise decode.UnknownFpsError(f"{path.name} needs --source_fps")
decode.read_clips = read
try:
    convert(videos, out / "no_fps", size=(32, 32), **beam)
except conversion.NeedsSettingError as error:
    errors.append(str(error))
heavy = [name for name in ("jax", "tensorflow") if name in sys.modules]
print(json.dumps([report.to_json(), resumed.resumed_parts, errors, heavy]))
"""


def convert(source, out, **options):
    return video.convert_videos(video.Options(source=source, out=out, **options))


def convert_rlds(source, out, **options):
    return rlds.convert_rlds(rlds.Options(source=source, out=out, **options))


def content(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.mark.slow
@needs_beam
def test_beam_writes_the_same_bytes(tmp_path, monkeypatch):
    videos = tmp_path / "clips"
    for number in range(5):
        frames = video_files.grey_frames(8 + 2 * number)
        video_files.write_video(videos / f"{number}.mp4", frames)
    (videos / "5.mp4").write_bytes(b"no video")
    bridge = rlds_files.write_bridge(tmp_path)
    monkeypatch.setattr(conversion, "PART_RECORDINGS", 2)
    monkeypatch.setattr(conversion, "SHARD_BYTES", 3000)
    here = dict(size=(32, 32), name="same", progress=False, max_bad_fraction=0.2)
    local = convert(videos, tmp_path / "local" / "videos", **here)
    convert_rlds(bridge, tmp_path / "local" / "bridge", size=(16, 16), name="same", progress=False)
    other = tmp_path / "beam"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # Beam continues it
        original = decode.read_clips

        def stop(path, settings):
            if path.name == "2.mp4":
                raise KeyboardInterrupt
            return original(path, settings)

        patch.setattr(decode, "read_clips", stop)
        convert(videos, other / "resumed", **here)
    script = SCRIPT.replace('name="same", **beam', 'name="same", max_bad_fraction=0.2, **beam')
    done = subprocess.run(
        [PYTHON, "-c", script, videos, bridge, other, RUNNER],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report, resumed_parts, errors, heavy = json.loads(done.stdout.rsplit("\n", 2)[-2])
    for name, same in (("videos", "videos"), ("resumed", "videos"), ("bridge", "bridge")):
        assert content(other / name) == content(tmp_path / "local" / same), name
    assert report["shards"] == local.shards > 1 and report["episodes"] == local.episodes == 5
    assert report["bad"] == [list(entry) for entry in local.bad]
    assert resumed_parts == 1 and heavy == []
    assert "1 of 6 videos" in errors[0] and "needs --source_fps" in errors[1]


@pytest.mark.skipif(importlib.util.find_spec("apache_beam"), reason="Apache Beam is installed here")
def test_without_beam_the_error_names_the_extra(tmp_path):
    video_files.write_video(tmp_path / "v" / "x.mp4", video_files.grey_frames(8))
    with pytest.raises(ValueError, match=r"DirectRunner needs Apache Beam.*make .venv/.beam"):
        convert(tmp_path / "v", tmp_path / "out", runner="DirectRunner")
