"""A folder of videos -> a corpus: skipping, captions, clips, resume, workers."""

import json
import subprocess
import sys

import pytest
import video_files as files
from corpora import read

from data_pipelines import storage
from data_pipelines.convert import conversion, decode, folders, staging, video
from data_pipelines.rlds import shards, tfrecord, writer


def convert(source, out, **changes):
    values = dict(fps=10.0, size=(32, 32), name="clips", progress=False)
    return video.convert_videos(video.Options(source=source, out=out, **(values | changes)))


def episodes(out, split="train"):
    """{episode_id: (frame numbers, instruction, has_language)} in the order of the shards."""
    found = {}
    for path in shards.find_shards(out, split):
        for record in tfrecord.read_payloads(path):
            features = tfrecord.parse_example(record)
            item = {key: feature for key, feature in features.items()}
            name = item["episode_metadata/episode_id"].byte_items(record)[0].decode()
            texts = item["steps/language_instruction"].byte_items(record)
            images = item["steps/observation/image"].byte_items(record)
            assert len(set(texts)) == 1 and len(texts) == len(images)
            assert "steps/action" not in item
            found[name] = (
                files.frame_numbers(images),
                texts[0].decode(),
                bool(item["episode_metadata/has_language"].ints(record)[0]),
            )
    return found


def content(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.is_dir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five good videos in a tree; video i has 8 + 2 i frames at 20 fps."""
    root = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(["a/x.mp4", "a/y.mkv", "b/c/z.MP4", "m.webm", "n.mov"]):
        codec = {"y": "ffv1", "m": "libvpx-vp9"}.get(name.split(".")[0][-1], "libx264")
        files.write_video(root / name, files.grey_frames(8 + 2 * i), codec=codec)
    (root / "notes.txt").write_text("no video")
    return root


def test_folder_becomes_a_corpus(folder, tmp_path):
    report = convert(folder, tmp_path / "out", per_shard=2)
    wanted = {
        name: (list(range(0, 8 + 2 * i, 2)), "", False)
        for i, name in enumerate(["a/x.mp4", "a/y.mkv", "b/c/z.MP4", "m.webm", "n.mov"])
    }
    assert episodes(tmp_path / "out") == wanted
    assert list(episodes(tmp_path / "out")) == sorted(wanted)
    assert (report.found, report.episodes, report.shards) == (5, 5, 3)
    assert report.frames == sum(len(numbers) for numbers, _, _ in wanted.values())
    assert report.hours == pytest.approx(report.frames / 10 / 3600)
    assert report.bad == report.short == []
    info = writer.read_info(tmp_path / "out")
    assert info["splits"][0]["shardLengths"] == ["2", "2", "1"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir())[0].startswith("clips-train")
    assert "hours" in report.table() and "unconvertible       0" in report.table()
    assert "  not used: files ending in .txt: 1 (notes.txt)" in report.table()


def spoil(folder, root):
    """A copy of the folder with three files that cannot be converted and one short one."""
    for name in ["a/x.mp4", "a/y.mkv", "m.webm", "n.mov"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((folder / name).read_bytes())
    (root / "empty.mp4").write_bytes(b"")
    (root / "junk.avi").write_bytes(b"junk" * 1000)
    files.write_audio(root / "sound.mp4")
    files.write_video(root / "short.mp4", files.grey_frames(1))
    return root


ENDINGS = [  # container, codec
    *((suffix, "libx264") for suffix in (".m4v", ".ts", ".MTS", ".flv", ".3gp", ".qt")),
    *((suffix, "mpeg2video") for suffix in (".mpg", ".mpeg", ".vob")),
    *((".wmv", "wmv2"), (".asf", "msmpeg4"), (".gif", "gif"), (".divx", "mpeg4")),
]
FORMATS = {".divx": "avi", ".qt": "mov", ".vob": "mpeg", ".wmv": "asf", ".asf": "asf"}


def test_videos_of_all_endings_are_taken(tmp_path):
    for suffix, codec in ENDINGS:
        pixels = "rgb8" if codec == "gif" else "yuv420p"
        fps = 25 if codec == "mpeg2video" else 20
        path = tmp_path / "v" / f"a{suffix}"
        kind = FORMATS.get(suffix)
        files.write_video(
            path, files.grey_frames(8), codec=codec, pixels=pixels, fps=fps, kind=kind
        )
    report = convert(tmp_path / "v", tmp_path / "out")
    assert not report.bad and not any(report.passed_over.values())
    found = episodes(tmp_path / "out")
    assert set(found) == {f"a{suffix}" for suffix, _ in ENDINGS}
    for name, (numbers, _, _) in found.items():
        assert len(numbers) in (3, 4) and numbers == sorted(set(numbers)), name


def test_linked_folders_are_read_once_and_the_rest_is_counted(folder, tmp_path):
    root, elsewhere = tmp_path / "v", tmp_path / "elsewhere"
    for path in (root / "z" / "real.mp4", elsewhere / "b.mp4", elsewhere / "deep" / "c.mkv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / "a/x.mp4").read_bytes())
    (root / "a_link").symlink_to(root / "z")  # sorted before it, but it really lies in z
    (root / "more").symlink_to(elsewhere)
    (root / "more again").symlink_to(elsewhere / "deep")
    (elsewhere / "deep" / "loop").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tmp_path)
    (root / "twice.mp4").symlink_to("z/real.mp4")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "notes.TXT").write_text("")
    (root / "README").write_text("")
    (root / "z" / "._real.mp4").write_bytes(b"\0")
    report = convert(root, tmp_path / "out")
    assert list(episodes(tmp_path / "out")) == [
        "more/b.mp4",
        "more/deep/c.mkv",
        "twice.mp4",
        "z/real.mp4",
    ]
    assert report.seen == {"the same file as one before it, converted again": ["z/real.mp4"]}
    assert {kind: names for kind, names in report.passed_over.items() if names} == {
        "links to folders seen before": [
            "a_link",
            "more again",
            "more/deep/loop",
            "more/up/elsewhere",
            "more/up/v",
        ],
        "links to nothing": ["gone"],
        "attributes that macOS wrote": ["z/._real.mp4"],
        "files ending in .txt": ["notes.TXT"],
        "files": ["README"],
    }
    told = report.to_json()["passed_over"]["files ending in .txt"]
    assert told == {"count": 1, "first": ["notes.TXT"]}


def test_captions_of_stretches(tmp_path):
    """30 frames at 10 a second: frame i is at i/10 s."""
    files.write_video(tmp_path / "v/a.mp4", files.grey_frames(30), fps=10)
    files.write_video(tmp_path / "v/b.mp4", files.grey_frames(5), fps=10)
    rows = [
        ("a.mp4", "last", "2.5", ""),
        ("a.mp4", "second", "0:01", "00:00:01.5"),
        ("a.mp4", "first", "", "1"),
        ("a.mp4", "across", 0.75, 1.25),
        ("a.mp4", "long", 2.8, 3.2),
        ("a.mp4", "beyond", 4, 5),
        ("b.mp4", "whole", None, None),
    ]
    keys = ("file", "caption", "start", "end")
    table = tmp_path / "captions.jsonl"
    table.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    report = convert(tmp_path / "v", tmp_path / "out", captions=table, max_bad_fraction=0.5)
    found = {name: item[:2] for name, item in episodes(tmp_path / "out").items()}
    assert found == {
        "a.mp4@0-1": (list(range(10)), "first"),
        "a.mp4@0.75-1.25": (list(range(7, 12)), "across"),
        "a.mp4@1-1.5": (list(range(10, 15)), "second"),
        "a.mp4@2.5-": (list(range(25, 30)), "last"),
        "b.mp4": (list(range(5)), "whole"),
    }
    assert dict(report.bad) == {
        "a.mp4@2.8-3.2": "the video ends 2 steps before it does",
        "a.mp4@4-5": "the video ends before it begins",
    }
    assert (report.found, report.notes["stretches"]) == (2, 7)
    report = convert(
        tmp_path / "v", tmp_path / "cut", captions=table, max_bad_fraction=0.5, clip_seconds=0.4
    )
    assert episodes(tmp_path / "cut")["a.mp4@0-1#0001"][:2] == ([4, 5, 6, 7], "first")


def test_columns_of_captions_are_selected(folder, tmp_path):
    rows = [
        {"file": "a/x.mp4", "caption": "no", "said": {"en": " ", "de": "öffne"}, "other": "z"},
        {"file": "n.mov", "caption": "no", "said": {"en": "open", "de": "öffne"}, "other": "z"},
    ]
    table = tmp_path / "captions.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    convert(folder, tmp_path / "out", captions=table, instruction_key="said/en,said/de")
    found = episodes(tmp_path / "out")
    assert (found["a/x.mp4"][1], found["n.mov"][1]) == ("öffne", "open")
    with pytest.raises(ValueError, match="'file' and 'said/fr'"):
        convert(folder, tmp_path / "none", captions=table, instruction_key="said/fr")


def write_pictures(root, count, name="img_{:d}.jpg"):
    root.mkdir(parents=True, exist_ok=True)
    images = [decode.encode_jpeg(image) for image in files.grey_frames(count, 32, 32)]
    for number, image in enumerate(images):
        (root / name.format(number)).write_bytes(image)
    return images


def test_folders_of_pictures_are_clips(tmp_path):
    """In the order of their numbers, at the given rate; the right size keeps its bytes."""
    root = tmp_path / "v"
    images = write_pictures(root / "one", 12)
    write_pictures(root / "two", 3)
    (root / "two" / "thumb.jpg").write_bytes(images[0])
    files.write_video(root / "clip.mp4", files.grey_frames(4), fps=10)
    (root / "one" / "one.txt").write_text("")
    report = convert(root, tmp_path / "plain")
    assert list(episodes(tmp_path / "plain")) == ["clip.mp4"]
    assert report.passed_over["folders of pictures (--picture_fps)"] == ["one", "two"]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif
    reserved = (marker[:-4] + bytes(4)).join((images[0][:2], images[0][2:]))
    write_pictures(root / "cut", 2)
    (root / "cut" / "img_0.jpg").write_bytes(images[0][:-4])
    write_pictures(root / "gap", 4)
    (root / "gap" / "img_2.jpg").unlink()
    (root / "gap" / "img_0.jpg").write_bytes(reserved)
    write_pictures(root / "turned", 2)
    (root / "turned" / "img_0.jpg").write_bytes(images[0][:2] + marker + images[0][2:])
    table = tmp_path / "captions.csv"
    table.write_text("file,caption,start,end\none/,push,0.2,0.6\n")
    report = convert(root, tmp_path / "out", picture_fps=20.0, max_bad_fraction=0.5)
    found = episodes(tmp_path / "out")
    assert {name: item[0] for name, item in found.items()} == {
        "clip.mp4": [0, 1, 2, 3],
        "gap": [0, 3],
        "one": [0, 2, 4, 6, 8, 10],
    }
    gaps = "numbers of pictures leave gaps: shown one step apart all the same"
    assert report.seen == {gaps: ["gap"]}
    assert report.bad == [
        ("cut", "picture img_0.jpg: undecodable: Premature end of JPEG file"),
        ("turned", "picture img_0.jpg: is marked as turned (EXIF 6): turn its pixels"),
        ("two", "pictures of several kinds in one folder: img_#.jpg, thumb.jpg"),
    ]
    assert read(tmp_path / "out")["one"]["image"] == images[::2]
    convert(root, tmp_path / "told", picture_fps=20.0, max_bad_fraction=0.5, captions=table)
    assert episodes(tmp_path / "told")["one@0.2-0.6"][:2] == ([4, 6, 8, 10], "push")
    with pytest.raises(FileNotFoundError, match="1 folders of pictures .--picture_fps"):
        convert(root / "one", tmp_path / "none")


def test_cameras_are_whole_words_the_longest_first():
    files_ = ["cam/1.mp4", "cam_left/1.mp4", "camera/1.mp4", "cam/cam_left.mp4", "cam/1.mkv"]
    whole, bad, others = folders.by_camera(files_, ["cam", "cam_left"])
    assert whole == [("cam/1.mp4", "cam_left/1.mp4")] and others == ["camera/1.mp4"]
    assert bad == {
        "cam/cam_left.mp4": "its path holds ['cam', 'cam_left'], not one camera",
        "cam/1.mkv": "cam/1.mp4 is of the same recording and camera",
    }


def test_videos_of_several_cameras_make_one_corpus(tmp_path):
    root = tmp_path / "v"
    for name, count in (
        ("front/ep1.mp4", 12),
        ("wrist/ep1.mkv", 13),  # a step longer: both are as long as the shorter
        ("front/ep2_front.mp4", 6),
        ("wrist/ep2_wrist.mp4", 6),
        ("front/ep3.mp4", 6),
        ("wrist/ep3.mp4", 9),
        ("front/ep4.mp4", 6),
        ("overview.mp4", 6),
    ):
        files.write_video(root / name, files.grey_frames(count), fps=10)
    table = root / "captions.csv"
    table.write_text("file,caption\nwrist/ep1.mkv,push\n")
    report = convert(
        root, tmp_path / "out", cameras=("front", "wrist"), captions=table, max_bad_fraction=0.5
    )
    assert report.cameras == ["image", "wrist"] and report.found == 4
    assert dict(report.bad) == {
        "front/ep3.mp4": "the cameras front, wrist have [6, 9] frames",
        "front/ep4.mp4": "there is no video of ['wrist'] beside it",
    }
    not_used = {kind: names for kind, names in report.passed_over.items() if names}
    assert not_used == {"videos of no camera": ["overview.mp4"]}
    found = read(tmp_path / "out")
    assert {name: one["language_instruction"] for name, one in found.items()} == {
        "front/ep1.mp4": "push",
        "front/ep2_front.mp4": "",
    }
    for one, count in zip(found.values(), (12, 6), strict=True):
        numbers = list(range(count))
        assert files.frame_numbers(one["image"]) == files.frame_numbers(one["wrist"]) == numbers
    convert(
        root, tmp_path / "cut", cameras=("front", "wrist"), clip_seconds=0.5, max_bad_fraction=0.5
    )
    assert files.frame_numbers(read(tmp_path / "cut")["front/ep1.mp4#0001"]["wrist"]) == [
        *range(5, 10)
    ]
    table.write_text("file,caption,start,end\nwrist/ep1.mkv,push,0.3,0.6\nwrist/ep1.mkv,no,2,3\n")
    report = convert(
        root, tmp_path / "told", cameras=("front", "wrist"), captions=table, max_bad_fraction=0.7
    )
    one = read(tmp_path / "told")["front/ep1.mp4@0.3-0.6"]
    assert files.frame_numbers(one["wrist"]) == files.frame_numbers(one["image"]) == [3, 4, 5]
    assert ("front/ep1.mp4@2-3", "the video ends before it begins") in report.bad
    for words, told in ((("left", "right"), "no recording by all.*of no camera"), (("",), "empty")):
        with pytest.raises(ValueError, match=told):
            convert(root, tmp_path / "none", cameras=words)
    with pytest.raises(ValueError, match="--split_scenes cannot be used with --cameras"):
        convert(root, tmp_path / "none", cameras=("front", "wrist"), split_scenes=0.3)


def test_files_that_cannot_be_converted_are_named_and_limited(folder, tmp_path):
    root, out = spoil(folder, tmp_path / "videos"), tmp_path / "out"
    with pytest.raises(conversion.TooManyBadError, match=r"3 of 8 videos.*max_bad_fraction=0\.1"):
        convert(root, out)
    assert not (out / writer.INFO_FILE).exists()
    # The finished shard is kept, so a higher limit costs no second decoding.
    report = convert(root, out, max_bad_fraction=0.4)
    assert report.resumed_parts == 1
    assert [name for name, _ in report.bad] == ["empty.mp4", "junk.avi", "sound.mp4"]
    reasons = [reason.split(":")[0] for _, reason in report.bad]
    assert reasons == ["empty file", "undecodable", "no video stream"]
    assert report.short == [("short.mp4", "1 frame at 10 fps, an episode needs 2")]
    assert sorted(episodes(out)) == ["a/x.mp4", "a/y.mkv", "m.webm", "n.mov"]
    assert "junk.avi: undecodable" in report.table()


def test_a_shard_without_episodes_leaves_no_file(tmp_path):
    files.write_video(tmp_path / "v/a.mp4", files.grey_frames(1))
    files.write_video(tmp_path / "v/b.mp4", files.grey_frames(4))
    report = convert(tmp_path / "v", tmp_path / "out", per_shard=1)
    assert report.shards == 1 and list(episodes(tmp_path / "out")) == ["b.mp4"]
    with pytest.raises(ValueError, match="gave an episode.*1 frame"):
        (tmp_path / "v/b.mp4").unlink()
        convert(tmp_path / "v", tmp_path / "out2")


def test_a_video_that_breaks_late_leaves_none_of_its_clips(folder, tmp_path, monkeypatch):
    original = decode.read_clips

    def breaks(path, settings):
        clips = original(path, settings)
        yield next(clips)
        if path.name == "y.mkv":
            raise decode.VideoError("broken in the middle")
        yield from clips

    monkeypatch.setattr(decode, "read_clips", breaks)
    report = convert(folder, tmp_path / "out", clip_seconds=0.2, max_bad_fraction=0.5)
    assert report.bad == [("a/y.mkv", "broken in the middle")]
    found = episodes(tmp_path / "out")
    assert found["n.mov#0003"][0] == [12, 14]
    assert not any(name.startswith("a/y.mkv") for name in found)
    assert len(found) == report.episodes == 2 + 3 + 3 + 4
    assert report.short == [("m.webm#0003", "1 frame at 10 fps, an episode needs 2")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_captions(folder, tmp_path, suffix):
    entries = {"a/x.mp4": ' push, "gently" ', "n.mov": "öffne die Tür", "gone.mp4": "nothing"}
    table = tmp_path / f"captions{suffix}"
    if suffix == ".csv":
        lines = [
            "file,caption,Start",
            'a/x.mp4," push, ""gently"" ",',
            "n.mov,öffne die Tür,1",
            "gone.mp4,nothing,",
        ]
        table.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    else:
        table.write_text(
            "\n".join(json.dumps({"file": k, "caption": v}) for k, v in entries.items())
        )
    report = convert(folder, tmp_path / "out", captions=table)
    found = episodes(tmp_path / "out")
    assert found["a/x.mp4"][1:] == ('push, "gently"', True)
    assert found["n.mov"][1:] == ("öffne die Tür", True)
    assert found["m.webm"][1:] == ("", False)
    assert (report.episodes_with_language, report.notes) == (2, {"captions unused": 1})
    if suffix == ".csv":
        assert report.passed_over["columns of the captions"] == ["Start"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "name,text\na,b\n", "'file' and 'caption'"),
        ("c.csv", "file,caption\na.mp4,x\na.mp4,y\n", "second caption"),
        ("c.csv", "file,caption\nelsewhere.mp4,x\n", "relative to that folder"),
        ("c.csv", "", "no captions"),
        ("c.csv", "file,caption\nm.webm,pick, then place\n", "must stand in quotes"),
        ("c.csv", 'file,caption\nm.webm,"pick\nn.webm,put\n', "after line 1.*quotes within"),
        ("c.csv", 'file,caption\nm.webm,"pick" it\n', "after line 1.*quotes within"),
        ("c.csv", "file,caption,caption\nm.webm,x,y\n", "several columns 'caption'"),
        ("c.csv", "\udcff\udcfefile,caption\n", "no UTF-8 text"),
        *(
            ("c.csv", f"file,caption,start,end\nm.webm,x,{start},{end}\n", message)
            for start, end, message in (
                ("2", "1", "entry 1: end is 1, start 2"),
                ("-1", "", "must be seconds from the beginning"),
                ("nan", "", "must be seconds from the beginning"),
                ("", "inf", "must be seconds from the beginning"),
                ("soon", "", "start is 'soon', neither seconds nor H:MM:SS"),
                ("1:75", "", "neither seconds nor H:MM:SS"),
                ("0:90:00", "", "neither seconds nor H:MM:SS"),
                ("1", "2,3", "entry 1: more cells than the 4 columns"),
                ("1", "2\nm.webm,y,1.0,2", "entry 2: second caption for 'm.webm@1-2'"),
            )
        ),
        ("c.jsonl", '{"file": "a.mp4"', "line 1"),
        ("c.jsonl", "[1]", "not a JSON object"),
        ("c.txt", "x", "must end in"),
    ],
)
def test_bad_captions(folder, tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out", captions=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_missing_and_empty_folders_say_what_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*\.mp4.*\.webm"):
        convert(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no video below.*\.mkv.*\.avi, \.mov"):
        convert(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def stop_at(monkeypatch, name):
    """Interrupts when that video is reached; returns the list of videos that were read."""
    original, seen = decode.read_clips, []

    def read(path, settings):
        if path.name == name:
            raise KeyboardInterrupt
        seen.append(path.name)
        return original(path, settings)

    monkeypatch.setattr(decode, "read_clips", read)
    return seen


def test_resume_skips_finished_shards_and_gives_the_same_files(folder, tmp_path, monkeypatch):
    convert(folder, tmp_path / "whole", per_shard=2)
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "m.webm")
        convert(folder, out, per_shard=2)
    assert not (out / writer.INFO_FILE).exists()
    # The rest of an unfinished part, and one whose manifest was not written any more.
    (out / ".staging-train" / "part-00001.tfrecord.incomplete").write_bytes(b"half")
    (out / ".staging-train" / "part-00002.tfrecord").write_bytes(b"who knows")
    with monkeypatch.context() as patch:
        seen = stop_at(patch, "")
        report = convert(folder, out, per_shard=2)
    assert seen == ["z.MP4", "m.webm", "n.mov"]
    assert report.resumed_parts == 1 and report.episodes == 5
    assert content(out) == content(tmp_path / "whole")
    assert not (out / ".staging-train").exists() and not (out / writer.LOCK_FILE).exists()


def test_resume_redoes_a_shard_whose_file_is_gone(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "n.mov")
        convert(folder, out, per_shard=2)
    (out / ".staging-train" / "part-00000.tfrecord").unlink()
    assert convert(folder, out, per_shard=2).resumed_parts == 1
    assert len(episodes(out)) == 5


def test_resume_with_other_settings_or_files_is_refused(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "n.mov")
        convert(folder, out, per_shard=2)
    with pytest.raises(ValueError, match=r"other settings \(fit: 'crop' -> 'pad'; fps"):
        convert(folder, out, per_shard=2, fit="pad", fps=5.0)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.mp4").write_bytes((folder / "a/x.mp4").read_bytes())
    with pytest.raises(ValueError, match="source_hash"):
        convert(tmp_path / "more", out, per_shard=2)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["rename", "info"])
def test_a_stop_while_publishing_is_finished_by_the_next_run(folder, tmp_path, monkeypatch, stop):
    convert(folder, tmp_path / "whole", per_shard=2)
    out = tmp_path / "out"
    original, write_json = writer.os.replace, writer._write_json

    def replace(source, target):
        if str(target).endswith("00001-of-00003"):
            raise KeyboardInterrupt
        original(source, target)

    def write(path, value):
        if path.name == writer.INFO_FILE:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stop == "rename":
            patch.setattr(writer.os, "replace", replace)
        else:
            patch.setattr(writer, "_write_json", write)
        convert(folder, out, per_shard=2)
    assert not (out / writer.INFO_FILE).exists()
    with monkeypatch.context() as patch:
        assert stop_at(patch, "") == []
        report = convert(folder, out, per_shard=2)
    assert report.episodes == 5 and content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_workers_change_nothing(folder, tmp_path):
    convert(folder, tmp_path / "one", per_shard=2)
    convert(folder, tmp_path / "two", per_shard=2, workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_two_splits_and_a_finished_one(folder, tmp_path):
    out = tmp_path / "out"
    convert(folder / "a", out)
    convert(folder / "b", out, split="val")
    assert list(episodes(out)) == ["x.mp4", "y.mkv"] and list(episodes(out, "val")) == ["c/z.MP4"]
    before = content(out)
    with pytest.raises(FileExistsError, match="already holds a finished split 'val'"):
        convert(folder, out, split="val")
    with pytest.raises(ValueError, match="features"):
        convert(folder, out, split="test", size=(16, 16))
    assert content(out) == before


@pytest.mark.slow
def test_a_second_process_is_refused(folder, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, pathlib, time; from data_pipelines.rlds import writer\n"
        "lock = writer.lock_output(pathlib.Path(sys.argv[1])); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(storage.LockedError, match="being written by another process"):
            convert(folder, out)
    finally:
        other.kill()
        other.wait()
    assert convert(folder, out).episodes == 5  # the lock of a dead process is free


@pytest.mark.slow
def test_killed_conversion_continues(folder, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time; from data_pipelines.convert import decode, video\n"
        "original = decode.read_clips\n"
        "def slow(path, settings):\n"
        "    if path.name == 'z.MP4': print('reached', flush=True); time.sleep(60)\n"
        "    return original(path, settings)\n"
        "decode.read_clips = slow\n"
        "values = dict(fps=10.0, size=(32, 32), name='clips', progress=False, per_shard=2)\n"
        "video.convert_videos(video.Options(source=sys.argv[1], out=sys.argv[2], **values))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(out)], stdout=subprocess.PIPE
    )
    assert run.stdout.readline() == b"reached\n"
    run.kill()
    run.wait()
    report = convert(folder, out, per_shard=2)
    assert (report.resumed_parts, report.episodes) == (1, 5)


def test_full_disk_keeps_finished_shards(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    original = tfrecord.write_record
    count = []

    def full(file, payload):
        count.append(1)
        if len(count) == 4:
            raise OSError(28, "No space left on device")
        return original(file, payload)

    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "write_record", full)
        with pytest.raises(writer.NoSpaceError, match="no space left.*00001.tfrecord"):
            convert(folder, out, per_shard=2)
    assert not list(out.rglob("*.incomplete"))
    assert convert(folder, out, per_shard=2).resumed_parts == 1


def test_damaged_manifest_is_named(tmp_path):
    stage = staging.Staging(tmp_path, "train", {"a": 1})
    (stage.folder / "part-00003.json").write_text("garbage")
    with pytest.raises(ValueError, match=r"part-00003.json is not readable JSON.*delete"):
        staging.Staging(tmp_path, "train", {"a": 1})


@pytest.mark.slow
@pytest.mark.real_data
def test_real_video(real_data, tmp_path):
    report = convert(real_data / "videos", tmp_path / "out", size=(48, 64), clip_seconds=2.0)
    assert report.found == 1 and report.episodes == 6 and report.repeated_frames == 0
    assert report.frames == 104  # 10.33 s at 30 fps, every third frame
    names = [f"flipping_a_pancake.mkv#{number:04d}" for number in range(6)]
    assert list(episodes(tmp_path / "out")) == names
