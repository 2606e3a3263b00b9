"""One video file -> JPEG frames: timing, geometry, and files that must be refused."""

import itertools
import types
from fractions import Fraction

import numpy as np
import pytest
import simplejpeg
import video_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.convert import decode


def make_settings(**changes):
    values = dict(
        fps=10.0, height=32, width=32, fit="crop", quality=92, clip_seconds=0.0, source_fps=0.0
    )
    return decode.VideoSettings(**(values | changes))


def nearest_frames(frames, fps, tolerance):
    """Of a whole video: (frame, whether it was shown before)."""
    found = decode.nearest_of_spans(frames, fps, tolerance, (decode.Span(),))
    return [(frame, bool(shown)) for _, frame, shown in found if frame is not None]


def read(path, **changes):
    clips = list(decode.read_clips(path, make_settings(**changes)))
    return [image for clip in clips for image in clip.images]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "codec", "pixels"), files.KINDS)
def test_every_container_gives_every_second_frame_at_half_the_rate(tmp_path, suffix, codec, pixels):
    path = tmp_path / f"v{suffix}"
    files.write_video(path, files.grey_frames(12), codec=codec, pixels=pixels, fps=20)
    images = read(path)
    assert files.frame_numbers(images) == [0, 2, 4, 6, 8, 10]
    assert simplejpeg.decode_jpeg_header(images[0])[:2] == (32, 32)
    assert simplejpeg.decode_jpeg_header(images[0])[3] == "420"


def test_same_rate_neither_drops_nor_repeats_when_the_container_rounds_times(tmp_path):
    path = files.write_video(
        tmp_path / "v.mkv", files.grey_frames(25), codec="ffv1", fps=24
    )  # Matroska stores milliseconds
    assert files.frame_numbers(read(path, fps=24)) == list(range(25))


def test_slower_source_repeats_frames_and_counts_them(tmp_path):
    path = files.write_video(tmp_path / "v.mp4", files.grey_frames(4), fps=5)
    (clip,) = decode.read_clips(path, make_settings())
    assert len(clip.images) == 7  # 0.0 .. 0.6 s
    assert clip.repeated == 3
    assert clip.num_bytes == sum(len(image) for image in clip.images)


def test_variable_frame_rate_keeps_real_times(tmp_path):
    times = [0.0, 0.03, 0.12, 0.5, 0.55, 1.0]
    path = files.write_video(tmp_path / "v.mkv", files.grey_frames(6), codec="ffv1", times=times)
    wanted = [int(np.abs(np.array(times) - k / 10).argmin()) for k in range(11)]
    assert files.frame_numbers(read(path)) == wanted


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=0, max_size=20),
    st.sampled_from([1, 3, 10, Fraction(30000, 1001), 60]),
    st.integers(0, 5000),
)
def test_nearest_frames_against_brute_force(gaps, fps, first):
    times = [Fraction(t, 1000) for t in np.cumsum([first, *gaps]).tolist()]
    fps = Fraction(fps)
    got = list(nearest_frames(zip(times, range(len(times)), strict=True), fps, Fraction(0)))
    count = int((times[-1] - times[0]) * fps) + 1
    wanted = [
        min(range(len(times)), key=lambda i, k=k: (abs(times[i] - times[0] - k / fps), i))
        for k in range(count)
    ]
    assert [number for number, _ in got] == wanted
    assert [shown for _, shown in got] == [False] + [a == b for a, b in itertools.pairwise(wanted)]


@pytest.mark.parametrize(
    ("rotation", "wanted"),
    [
        (0, ["red", "green", "blue", "white"]),
        (-90, ["blue", "red", "white", "green"]),  # a quarter turn clockwise
        (90, ["green", "white", "red", "blue"]),
        (180, ["white", "blue", "green", "red"]),
    ],
)
def test_rotation_flags(tmp_path, rotation, wanted):
    path = files.write_video(tmp_path / "v.mp4", files.corner_frames(3), rotation=rotation)
    if rotation == -90:
        # The QuickTime matrix a=0 b=1 c=-1 d=0 maps (x, y) to (-y, x): right becomes down.
        ones = [0, 1, 0, 0xFFFF, 0]
        matrix = b"".join(
            value.to_bytes(2) + b"\0\0" for value in (ones[0], ones[1], 0, ones[3], ones[4])
        )
        assert matrix in path.read_bytes()
    assert files.corners(read(path)[0]) == wanted


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 48), (48, 30), (17, 23)])
@pytest.mark.parametrize("fit", decode.FITS)
def test_output_has_the_asked_size(tmp_path, height, width, fit, rotation):
    path = files.write_video(
        tmp_path / "v.mkv",
        [np.full((47, 33, 3), 200, np.uint8)] * 2,
        codec="ffv1",
        pixels="yuv444p",
    )
    if rotation:
        path = files.write_video(
            tmp_path / "v.mp4", [np.full((46, 34, 3), 200, np.uint8)] * 2, rotation=rotation
        )
    image = simplejpeg.decode_jpeg(read(path, height=height, width=width, fit=fit)[0])
    assert image.shape == (height, width, 3)
    if fit == "crop":
        assert image.min() > 180  # no bars


def test_pad_keeps_all_and_the_aspect_crop_fills(tmp_path):
    path = files.write_video(tmp_path / "v.mp4", [np.full((32, 64, 3), 200, np.uint8)] * 2)
    padded = simplejpeg.decode_jpeg(read(path, fit="pad")[0])
    assert padded[:7].max() < 40 and padded[-7:].max() < 40  # 8 rows of bars at 32 pixels
    assert padded[9:23].min() > 170
    cropped = simplejpeg.decode_jpeg(read(path, fit="crop")[0])
    assert cropped.min() > 180


def test_pixels_that_are_not_square(tmp_path):
    # 32x32 stored pixels, each twice as wide as high: shown 64 wide.
    path = files.write_video(
        tmp_path / "v.mp4", [np.full((32, 32, 3), 200, np.uint8)] * 2, pixel_aspect=Fraction(2)
    )
    padded = simplejpeg.decode_jpeg(read(path, fit="pad")[0])
    assert padded[:7].max() < 40 and padded[9:23].min() > 170


def test_clips(tmp_path):
    path = files.write_video(tmp_path / "v.mp4", files.grey_frames(14), fps=10)
    clips = list(decode.read_clips(path, make_settings(clip_seconds=0.5)))
    assert [files.frame_numbers(clip.images) for clip in clips] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13],
    ]


def write_truncated(path, keep):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    codec = "ffv1" if path.suffix == ".mkv" else "libx264"
    files.write_video(path, list(noise), codec=codec, fps=20)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def refused_files(folder):
    """name -> (path, part of the reason)."""
    folder.mkdir(exist_ok=True)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("this is no video\n" * 100)
    (folder / "playlist.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"
    )
    return {
        "empty": (folder / "empty.mp4", "empty file"),
        "text": (folder / "text.avi", "undecodable"),
        "playlist": (folder / "playlist.mp4", "undecodable"),
        "audio": (files.write_audio(folder / "audio.mp4"), "no video stream"),
        "no_frames": (files.write_video(folder / "none.mkv", [], codec="mpeg4"), "undecodable"),
        "no_index": (write_truncated(folder / "cut.mp4", 0.5), "undecodable"),
        "cut_off": (write_truncated(folder / "cut.mkv", 0.4), "cut off"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["empty", "text", "playlist", "audio", "no_frames", "no_index", "cut_off"]
)
def test_refused_with_a_reason(tmp_path, name):
    path, reason = refused_files(tmp_path / "files")[name]
    with pytest.raises(decode.VideoError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "size_at", "unknown"),
    [
        (".mkv", "ffv1", "yuv420p", b"\x18\x53\x80\x67", b"\x01" + b"\xff" * 7),
        (".webm", "libvpx-vp9", "yuv420p", b"\x18\x53\x80\x67", b"\x01" + b"\xff" * 7),
        (".avi", "mjpeg", "yuvj420p", b"RIFF", b"\xff" * 4),
        (".gif", "gif", "rgb8", None, None),
        (".ogv", "libvpx", "yuv420p", None, None),
    ],
)
def test_what_a_container_misses_at_its_end(tmp_path, suffix, codec, pixels, size_at, unknown):
    path = files.write_video(
        tmp_path / f"v{suffix}", files.grey_frames(20), codec=codec, pixels=pixels, fps=10
    )
    whole = path.read_bytes()
    assert len(read(path)) == 20
    for kept in (len(whole) - 2, len(whole) * 95 // 100):  # a tenth may go by the times alone
        path.write_bytes(whole[:kept])
        with pytest.raises(decode.VideoError, match="cut off"):
            read(path)
    path.write_bytes(whole + b"more")
    assert len(read(path)) == 20
    if size_at:  # as recorders write it that cannot go back
        at = whole.index(size_at) + 4
        path.write_bytes(whole[:at] + unknown + whole[at + len(unknown) :])
        assert len(read(path)) == 20


def test_sound_that_begins_in_the_middle_of_a_file(tmp_path):
    """PyAV ends in an IndexError behind the last frame of such a file."""
    path = files.write_video(tmp_path / "v.flv", files.grey_frames(20) * 6, codec="flv", fps=10)
    data = path.read_bytes()
    sound = b"\x08" + (7).to_bytes(3) + (9500).to_bytes(3) + bytes(4) + b"\x22" + b"\x80" * 6
    path.write_bytes(data + sound + (18).to_bytes(4))
    assert len(read(path)) == 120


def stub_stream(pts, rate, *, coded=None, container="matroska", held=0):
    """A frame for each of `pts`, by as many packets, whose time stamps are `coded`."""
    colours = dict(color_trc=2, color_primaries=2, colorspace=2, color_range=0)
    looks = dict(interlaced_frame=False, side_data=[], **colours)
    shown = types.SimpleNamespace(is_corrupt=False, dts=None, **looks)
    shown.format, shown.time_base = types.SimpleNamespace(name="yuv420p"), Fraction(1, 100)

    def packet(number, pts):
        frame = types.SimpleNamespace(**vars(shown), pts=pts, number=number, duration=held)
        stamp = coded[number] if coded else pts
        return types.SimpleNamespace(pts=stamp, decode=lambda: [frame])

    packets = [packet(number, pts) for number, pts in enumerate(pts)]
    stream = types.SimpleNamespace(
        average_rate=rate, guessed_rate=rate, duration=None, time_base=None, metadata={}, index=0
    )
    stream.codec_context = types.SimpleNamespace(has_b_frames=coded is not None, **colours)
    stream.container = types.SimpleNamespace(
        demux=lambda _: iter(packets),
        streams=types.SimpleNamespace(video=[stream]),
        format=types.SimpleNamespace(name=container),
        dumps_format=lambda: "",
    )
    return stream


def times_of(stream, notes=None, **changes):
    notes = set() if notes is None else notes
    found = list(decode._timed_frames(stream, "a.avi", make_settings(**changes), notes))
    assert [frame.number for _, frame in found] == list(range(len(found)))
    return [float(time) for time, _ in found]


def test_files_without_time_stamps_need_a_rate():
    assert times_of(stub_stream([None] * 3, Fraction(4))) == [0, 0.25, 0.5]
    with pytest.raises(decode.UnknownFpsError, match="a.avi.*--source_fps"):
        times_of(stub_stream([None] * 3, None))
    assert times_of(stub_stream([None] * 3, None), source_fps=2.0) == [0, 0.5, 1]
    # Where the file knows better, the flag changes nothing.
    assert times_of(stub_stream([0, 10, 30], None), source_fps=2.0) == [0, 0.1, 0.3]


def test_time_stamps_of_decoding_are_put_in_the_order_of_the_frames():
    told, other = set(), [0, 40, 10, 20, 30, 80, 50, 60, 70]
    shown = sorted(range(9), key=other.__getitem__)
    ordered = [k / 10 for k in range(9)]
    rising = [10 * k for k in range(9)]
    # Frames carry the stamps of their packets, which count packets: in files made of those of AVI,
    assert times_of(stub_stream([10 * k for k in shown], 10, coded=rising), told) == ordered
    assert told == {"time stamps of decoding: put in the order of the frames"}
    # and in AVI itself, whatever its packets say.
    avi = stub_stream([10 * k for k in shown], 10, coded=other, container="avi")
    assert times_of(avi) == ordered
    # Right ones are left alone, and so is a variable rate without reordered frames.
    told.clear()
    assert times_of(stub_stream(rising, 10, coded=other), told) == ordered
    uneven = [0, 3, 4, 50, 51, 80, 80, 81, 200]
    assert times_of(stub_stream(uneven, 10, coded=uneven), told) == [t / 100 for t in uneven]
    assert not told
    # Few frames of an MPEG program stream have one: others follow the one before.
    sparse = [5, None, None, 17, None]
    assert times_of(stub_stream(sparse, None, held=4)) == [0.05, 0.09, 0.13, 0.17, 0.21]
    broken = stub_stream([0, 20, 10], 10)
    with pytest.raises(decode.VideoError, match="go back from 0.2 s to 0.1 s"):
        list(nearest_frames(decode._timed_frames(broken, "", make_settings(), set()), 10, 0))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".avi", "libx264"), (".avi", "mpeg4"), (".mpg", "mpeg2video"), (".ts", "libx264")],
)
def test_containers_whose_time_stamps_need_repair(tmp_path, suffix, codec):
    path = files.write_video(
        tmp_path / f"v{suffix}",
        files.grey_frames(20),
        codec=codec,
        fps=10,
        options={"bf": "2", "qmax": "3"},
    )
    assert files.frame_numbers(read(path)) == list(range(20))


def test_streams_without_frames_or_with_broken_time_stamps_are_refused():
    with pytest.raises(decode.VideoError, match="no frames"):
        times_of(stub_stream([], Fraction(4)))
    for pts, reason in [([0, 20, 10], "go back"), ([0, 100 * 3600], "gap of 3600 s")]:
        frames = [(Fraction(p, 100), p) for p in pts]
        with pytest.raises(decode.VideoError, match=reason):
            list(nearest_frames(frames, Fraction(10), Fraction(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0.0}, "fps=0.0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"width": 0}, "32x0"),
        ({"fit": "squeeze"}, "squeeze"),
        ({"quality": 101}, "quality=101"),
        ({"clip_seconds": 0.1}, "at least 2"),
        ({"source_fps": -1.0}, "source_fps=-1.0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make_settings(**changes)
