"""`lapa demo --videos`: a report is of the clips that are there, or refused by name."""

import json
import shutil

import pytest
import video_files as files

from data_pipelines.loader import order
from lapa_jax import cli
from lapa_jax.studies import demo, demo_page
from lapa_jax.studies.study import Part


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What was trained, without training: clips are converted, the rest is noted."""
    found = []

    def trained(name, config, workdir):
        def work():
            found.append(config().data.corpora.videos.fraction)

        return Part(name, work)

    def write(workdir, config, quantizer, evaluation, seconds):
        (workdir / "report.html").write_text("page")
        return {"held_out": evaluation}

    monkeypatch.setattr(demo, "train_part", trained)
    monkeypatch.setattr(demo, "load", lambda workdir: None)
    monkeypatch.setattr(
        demo, "evaluate_quantizer", lambda run, corpus, max_pairs, held_out: held_out
    )
    monkeypatch.setattr(demo_page, "write_videos", write)
    return found


def clips(folder, count):
    frames = files.grey_frames(8)
    for i in range(count):
        files.write_video(
            folder / f"{i}.avi", frames[: 6 + i % 3], codec="mjpeg", pixels="yuvj420p"
        )
    return folder


def refused(capsys, folder, workdir, size="tiny"):
    arguments = ["--videos", str(folder), "--workdir", str(workdir), "--size", size]
    assert cli.main(["demo", *arguments]) == 2
    return capsys.readouterr().err


def test_other_clips_are_refused_by_name(told, tmp_path, capsys):
    folder, workdir = clips(tmp_path / "clips", 3), tmp_path / "demo"
    assert "does not exist" in refused(capsys, tmp_path / "nowhere", workdir)
    assert not workdir.exists(), "nothing is made for a folder that is not there"

    demo.run_videos(folder, workdir, "tiny")
    demo.run_videos(folder, workdir, "tiny")
    shutil.copytree(folder, tmp_path / "moved")
    demo.run_videos(tmp_path / "moved", workdir, "tiny")  # the same clips elsewhere
    assert told == [1.0], "trained once, on all: three clips leave none to hold out"
    assert not json.loads((workdir / "summary.json").read_text())["held_out"]

    kept = workdir / "report.html"
    before = kept.stat().st_mtime_ns
    assert "does not exist" in refused(capsys, tmp_path / "nowhere", workdir)
    text = refused(capsys, folder, workdir, "small")
    assert "size: tiny there, small now" in text and "choose another folder" in text
    shutil.copy(folder / "0.avi", folder / "new.avi")
    text = refused(capsys, folder, workdir)
    assert "clips.new.avi: absent there" in text and "clips.0.avi" not in text
    (folder / "new.avi").unlink()
    (folder / "1.avi").unlink()
    text = refused(capsys, folder, workdir)
    assert "clips.1.avi" in text and "absent now" in text
    other = bytearray((folder / "2.avi").read_bytes())
    other[-9] ^= 1  # of one size
    (folder / "1.avi").write_bytes((tmp_path / "moved" / "1.avi").read_bytes())
    (folder / "2.avi").write_bytes(other)
    assert "clips.2.avi" in refused(capsys, folder, workdir)
    assert kept.stat().st_mtime_ns == before


def test_what_tells_clips_apart_and_how_many_are_left_out(tmp_path):
    clip = tmp_path / "clip"
    data = bytearray(3 << 20)
    known = set()
    for place in (0, len(data) // 2, len(data) - 1):
        data[place] = 1
        clip.write_bytes(data)
        known.add(demo._identity(clip))
    assert len(known) == 3
    counts = {}
    for clips in (1, 6, 8, 9, 10, 14, 35, 96, 1000):
        drawn = order.drawn_from(1 - demo._holdout(clips), clips)
        counts[clips] = int((~drawn).sum())
    assert counts == {1: 0, 6: 0, 8: 0, 9: 3, 10: 3, 14: 3, 35: 4, 96: 10, 1000: 100}


def test_clips_of_an_earlier_version_are_not_guessed(told, tmp_path, capsys):
    folder, workdir = clips(tmp_path / "clips", 1), tmp_path / "demo"
    demo.run_videos(folder, workdir, "tiny")
    (workdir / "study.json").unlink()
    assert "earlier version" in refused(capsys, folder, workdir)


def test_what_is_there_counts_until_it_is_converted(told, tmp_path, monkeypatch, capsys):
    folder, workdir = clips(tmp_path / "clips", 2), tmp_path / "demo"

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "build_index", stop)
        with pytest.raises(KeyboardInterrupt):
            demo.run_videos(folder, workdir, "tiny")
    clips(folder, 24)
    demo.run_videos(folder, workdir, "tiny")
    counts = json.loads((workdir / "data" / "dataset_info.json").read_text())["splits"]
    assert sum(int(n) for n in counts[0]["shardLengths"]) == 24
    assert 0.5 < told[0] < 1.0 and json.loads((workdir / "summary.json").read_text())["held_out"]
    (folder / "away.avi").symlink_to("away.avi")
    assert "clips.away.avi: absent there" in refused(capsys, folder, workdir)
    (folder / "away.avi").unlink()
    arguments = ["--videos", str(folder), "--workdir", str(workdir), "--size", "tiny"]
    assert cli.main(["demo", *arguments]) == 0
    assert f"next: lapa evaluate --workdir {workdir}/quantizer --holdout" in "".join(
        capsys.readouterr()
    )
