"""How frames look: colours at every size, light, gamut, range, orientation, cropping."""

import io
import types
from fractions import Fraction

import av
import numpy as np
import pytest
import simplejpeg
import video_files as files
from PIL import Image

from data_pipelines.convert import decode, looks, video

BARS = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1]]) * 188


def bars(height=48, width=70):
    return np.repeat(BARS, width // 7, 0).astype(np.uint8)[None].repeat(height, 0)


def read(path, size=(48, 64), fit="crop"):
    settings = decode.VideoSettings(10.0, *size, fit, 100)
    (clip,) = decode.read_clips(path, settings)
    return [simplejpeg.decode_jpeg(image).astype(int) for image in clip.images], clip.notes


def as_frame(image, pixels, matrix=None, narrow_or_full=None):
    """An image in another pixel format."""
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=pixels,
        dst_colorspace=matrix,
        dst_color_range=narrow_or_full,
        interpolation=looks._FLAGS | av.video.reformatter.Interpolation.AREA,
    )


def waves(height=96, width=128):
    y, x = np.mgrid[:height, :width]
    channels = np.sin(x / 17), np.sin(y / 13), np.sin((x + y) / 9)
    return (127 + 120 * np.stack(channels, -1)).astype(np.uint8)


def edit_coded(path, out, edit):
    """Another file with the coded stream of one of H.264 changed, and what the container says."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        coded = av.bitstream.BitStreamFilterContext(
            f"h264_metadata={edit}", source.streams.video[0], stream
        )
        for packet in source.demux(video=0):
            for edited in coded.filter(packet) if packet.size else ():
                edited.stream = stream
                target.mux(edited)
    return out


# ---------------------------------------------------------------- sizes


def test_colours_are_those_of_pictures_that_are_resized_as_rgb(tmp_path):
    pictures = [np.full((96, 128, 3), 255, np.uint8), waves()]
    path = files.write_video(tmp_path / "v.mp4", pictures, fps=10)
    with av.open(str(path)) as container:
        white, wavy = container.decode(video=0)
    whole = Image.fromarray(looks.fit_frame(wavy, (96, 128), "crop"))
    for width in range(40, 301):
        height = round(width * 0.75)
        found = looks.fit_frame(wavy, (height, width), "pad").astype(float)
        found = found[found.any((1, 2))][:, found.any((0, 2))]  # without bars
        wanted = whole.resize(found.shape[1::-1], Image.LANCZOS)
        assert np.abs((found - wanted).mean((0, 1))).max() < 0.5, width
        assert np.abs(found - wanted).mean() < 3, width
        for fit in decode.FITS:
            for size in ((height, width), (width, 40), (64, width)):
                image = looks.fit_frame(white, size, fit)
                assert (image == 255).all() or (fit == "pad" and set(np.unique(image)) == {0, 255})


@pytest.mark.parametrize(
    "pixels",
    "yuv420p yuvj420p yuv422p yuv444p yuv411p nv12 uyvy422 yuv420p10le p010le yuv444p12le yuva420p"
    " rgb24 bgr0 rgba gbrp rgb48le rgb555le bgr565le gray gray10le ya8".split(),
)
def test_white_black_and_means_of_every_pixel_format(pixels):
    frame = as_frame(waves(), pixels)
    mean = looks.fit_frame(frame, (96, 128), "crop").mean((0, 1))
    for size in ((24, 32), (33, 44), (60, 80), (120, 160), (123, 164)):
        assert np.abs(looks.fit_frame(frame, size, "crop").mean((0, 1)) - mean).max() < 0.5
        for level in (0, 255):
            flat = as_frame(np.full((96, 128, 3), level, np.uint8), pixels)
            assert (looks.fit_frame(flat, size, "crop") == level).all()


def test_pictures_of_the_right_size_and_paletted_ones_stay_exact():
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    np.testing.assert_array_equal(looks.fit_image(picture, (33, 47), "crop"), picture)
    few = Image.fromarray(picture).quantize(16)
    file = io.BytesIO()
    few.save(file, "PNG")
    np.testing.assert_array_equal(decode._decode_png(file.getvalue()), few.convert("RGB"))


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize(("matrix", "number"), [("ITU601", 6), ("ITU709", 1), ("SMPTE240M", 7)])
@pytest.mark.parametrize("full", [1, 2])
def test_matrix_and_range_are_those_of_the_frame(matrix, number, full):
    frame = as_frame(bars(), "yuv444p", matrix, full)
    frame.colorspace = number
    image = looks.fit_frame(frame, (24, 35), "crop").astype(int)
    assert np.abs(image[12, 2::5] - BARS).max() <= 3


def test_grey_of_narrow_range_is_widened():
    frame = as_frame(np.full((16, 16, 3), 235, np.uint8), "gray")
    assert (looks.fit_frame(frame, (8, 8), "crop") == 235).all()
    frame.color_range = 1
    assert (looks.fit_frame(frame, (8, 8), "crop") == 255).all()


def hdr_frame(light):
    """The bars by BT.2100 with reference white at 203 cd/m2."""
    to_2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    shown = 203 * (bars() / 255) ** 2.4 @ np.transpose(to_2020)  # cd/m2
    luma = np.array([0.2627, 0.6780, 0.0593])
    if light == "pq":
        y = (shown / 10000) ** 0.1593017578125
        coded = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    else:
        scene = shown / 1000 * np.maximum(shown @ luma / 1000, 1e-9)[..., None] ** (1 / 1.2 - 1)
        high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        coded = np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
    y = coded @ luma
    cb, cr = (coded[..., 2] - y) / 1.8814, (coded[..., 0] - y) / 1.4746
    planes = np.stack([16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr], -1) * 256
    frame = av.VideoFrame.from_ndarray(planes.round().astype(np.uint16), format="yuv444p16le")
    frame.colorspace, frame.color_primaries, frame.color_range = 9, 9, 1
    frame.color_trc = {"pq": 16, "hlg": 18}[light]
    return frame


@pytest.mark.parametrize("light", ["pq", "hlg"])
def test_hdr_is_mapped_to_sdr_and_named(light):
    frame = hdr_frame(light)
    image = looks.fit_frame(frame, (24, 35), "crop").astype(int)
    assert np.abs(image[12, 2] - 188).max() <= 3, "reference white"
    assert np.abs(image[12, 2::5] - BARS).max() <= 36
    assert looks.notes(frame) == {f"HDR ({light.upper()}): mapped to SDR"}
    frame.colorspace = frame.color_primaries = 2  # the light alone is told
    np.testing.assert_array_equal(looks.fit_frame(frame, (24, 35), "crop"), image)


def test_colours_that_the_container_alone_tells_are_used(tmp_path):
    path = tmp_path / "coded.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, width=70, height=48, pix_fmt="yuv444p")
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        stream.options = {"qp": "0"}
        frame = as_frame(bars(), "yuv444p", 1, 1)
        frame.color_primaries = frame.color_trc = 1
        for number in range(2):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    named = "colour_primaries={}:transfer_characteristics={}:matrix_coefficients={}".format
    unsaid = edit_coded(path, tmp_path / "unsaid.mkv", named(2, 2, 2))
    images, notes = read(unsaid, (48, 70))
    assert np.abs(images[0] - bars())[:, 3::10].max() < 12 and not notes
    data = unsaid.read_bytes()
    transfer, primaries = (b"\x55\xba\x81%c", b"\x55\xbb\x81%c")
    assert data.count(transfer % 1) == data.count(primaries % 1) == 1
    unsaid.write_bytes(
        data.replace(transfer % 1, transfer % 16).replace(primaries % 1, primaries % 9)
    )
    assert read(unsaid, (48, 70))[1] == {"HDR (PQ): mapped to SDR"}


def test_a_wide_gamut_is_noted_and_what_cannot_be_mapped_refused():
    frame = as_frame(bars(), "yuv444p", "ITU709")
    frame.colorspace, frame.color_trc, frame.color_primaries = 1, 1, 9
    assert looks.notes(frame) == {"colours of BT2020, BT709: mapped to BT.709"}
    frame.color_trc = 9  # logarithmic
    with pytest.raises(looks.VideoError, match="BT2020, LOG.* cannot be mapped"):
        looks.fit_frame(frame, (24, 35), "crop")
    frame.color_trc, frame.colorspace = 1, 10  # constant luminance
    with pytest.raises(looks.VideoError, match="matrix 10"):
        looks.fit_frame(frame, (24, 35), "crop")


def test_a_shape_that_would_fill_the_size_only_far_too_large_is_refused():
    frame = as_frame(bars(), "yuv420p")
    with pytest.raises(looks.VideoError, match=r"70x48 with pixels of 1/65535:1 would fill"):
        looks.fit_frame(frame, (48, 64), "crop", Fraction(1, 65535))
    assert looks.fit_frame(frame, (48, 64), "pad", Fraction(1, 65535)).any()


def test_what_others_may_show_otherwise_is_noted():
    def frame(*kinds, trc=2, matrix=2, pixels="yuv420p", interlaced=False):
        return types.SimpleNamespace(
            colorspace=matrix,
            color_trc=trc,
            color_primaries=2,
            interlaced_frame=interlaced,
            format=types.SimpleNamespace(name=pixels),
            side_data=[types.SimpleNamespace(type=kind) for kind in kinds],
        )

    kinds = av.sidedata.sidedata.Type
    assert not looks.notes(frame())
    for given, told in (
        (frame(interlaced=True), "interlaced"),
        (frame(matrix=9), "without saying whether HDR"),
        (frame(kinds.STEREO3D), "stereo 3D"),
        (frame(kinds.SPHERICAL), "360 degrees"),
        (frame(kinds.ICC_PROFILE), "ICC profile"),
        (frame(kinds.DOVI_METADATA, trc=16), "HDR .PQ."),
    ):
        (note,) = looks.notes(given)
        assert told.replace(".PQ.", "(PQ)") in note
    with pytest.raises(looks.VideoError, match="Dolby Vision"):
        looks.notes(frame(kinds.DOVI_METADATA))


# ---------------------------------------------------------------- orientation and cropping


@pytest.mark.parametrize("pixel_aspect", [None, Fraction(1, 2)])
def test_all_orientations(tmp_path, pixel_aspect):
    """The matrix [a b; c d] says that a step to the right goes to (a, b), one down to (c, d)."""
    stored = files.corner_frames(2)[0]
    for matrix, turn in {
        (1, 0, 0, 1): lambda x: x,
        (-1, 0, 0, 1): lambda x: x[:, ::-1],
        (1, 0, 0, -1): lambda x: x[::-1],
        (-1, 0, 0, -1): lambda x: np.rot90(x, 2),
        (0, 1, -1, 0): lambda x: np.rot90(x, -1),
        (0, -1, 1, 0): lambda x: np.rot90(x),
        (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
        (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
    }.items():
        path = files.write_video(
            tmp_path / "v.mp4", [stored] * 2, matrix=matrix, pixel_aspect=pixel_aspect
        )
        wanted = turn(stored)
        images, notes = read(path, size=wanted.shape[:2])
        assert np.abs(images[0] - wanted).mean() < (40 if pixel_aspect else 9), matrix
        assert files.corners(decode.encode_jpeg(wanted)) == files.corners(
            decode.encode_jpeg(images[0].astype(np.uint8))
        ), matrix
        assert not notes


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (1, 0.5, 0, 1)])
def test_other_angles_and_shears_are_refused(tmp_path, matrix):
    path = files.write_video(tmp_path / "v.mp4", files.corner_frames(2), matrix=matrix)
    with pytest.raises(decode.VideoError, match="not a multiple of 90, or sheared"):
        read(path)


def test_marks_of_mjpeg_turn_and_those_of_pictures_do_not(tmp_path):
    stored, exif, file = files.corner_frames(1)[0], Image.Exif(), io.BytesIO()
    exif[0x112] = 6  # a quarter turn clockwise
    Image.fromarray(stored).save(file, "JPEG", exif=exif, quality=95, subsampling=0)
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=64, height=48, pix_fmt="yuvj444p")
        container.start_encoding()
        for number in range(2):
            packet = av.Packet(file.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 10), stream
            container.mux(packet)
    images, _ = read(tmp_path / "v.avi", size=(64, 48))
    assert np.abs(images[0] - np.rot90(stored, -1)).mean() < 5
    settings = decode.VideoSettings(10.0, 24, 32, "crop", 95)
    assert files.corners(decode.convert_picture(file.getvalue(), settings)) == files.corners(
        decode.encode_jpeg(stored)
    )


def test_cropping_by_the_coded_stream_and_by_the_container(tmp_path):
    wide = np.zeros((48, 80, 3), np.uint8)
    wide[:, 16:] = files.corner_frames(1)[0]  # at the left 16 columns that are not shown
    path = files.write_video(tmp_path / "v.mkv", [wide] * 2, stereo_mode="left_right")
    data = path.read_bytes()
    stereo, crop_left = b"\x53\xb8\x81\x01", b"\x54\xcc\x81\x10"
    assert data.count(stereo) == 1
    (tmp_path / "container.mkv").write_bytes(data.replace(stereo, crop_left))
    edit_coded(path, tmp_path / "coded.mp4", "crop_left=16")
    _, notes = read(path)
    assert notes == {"stereo 3D: the views are side by side, as stored"}
    for name in ("container.mkv", "coded.mp4"):
        images, notes = read(tmp_path / name)
        assert np.abs(images[0] - wide[:, 16:]).mean() < 9, name
        assert not notes


def test_a_size_that_changes_and_the_report(tmp_path):
    folder = tmp_path / "clips"
    frames = [np.full((48, 64, 3), 90, np.uint8)] * 3, [np.full((96, 64, 3), 90, np.uint8)] * 3
    parts = [
        files.write_video(tmp_path / f"{n}.ts", f, fps=10, times=[n + k / 10 for k in range(3)])
        for n, f in enumerate(frames)
    ]
    folder.mkdir()
    (folder / "a.mkv").write_bytes(b"".join(part.read_bytes() for part in parts))
    clear = np.full((48, 64, 4), 90, np.uint8)
    files.write_video(folder / "b.mov", [clear] * 3, codec="qtrle", pixels="argb", fps=10)
    clear[..., 3] = 255
    files.write_video(folder / "c.mov", [clear] * 3, codec="qtrle", pixels="argb", fps=10)
    report = video.convert_videos(
        video.Options(source=folder, out=tmp_path / "out", size=(24, 32), progress=False)
    )
    told = {"transparent: shown without its transparency": ["b.mov"]}
    assert (report.episodes, report.seen) == (3, told)
    assert "transparent: shown without its transparency: 1 (b.mov)" in report.table()
