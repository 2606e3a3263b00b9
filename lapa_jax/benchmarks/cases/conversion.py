"""Videos of 720p (H.264) to pictures of one size: ours, and what others do. Work: frames shown.

    --first by=ours --second by=loop --option size=224 --option folder=/tmp/videos

by: `ours`, whole conversions to a corpus; `loop`, the same libraries without anything around them;
`ffmpeg`, a command per file that writes frames (of imageio-ffmpeg); `lerobot`, a LeRobot data
set of the same frames (in its own environment). folder: keeps the videos, made by the first side.
"""

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

VIDEOS, SECONDS, SOURCE_FPS = 3, 4, 30
HEIGHT, WIDTH = 720, 1280
QUALITY = 92


def prepare(
    by: str, folder: str, size: int = 64, fps: int = 10, quality: int = QUALITY
) -> Callable[[], None]:
    videos = _videos(Path(folder))
    convert = {"ours": _ours, "loop": _loop, "ffmpeg": _ffmpeg, "lerobot": _lerobot}[by]
    every = SOURCE_FPS // fps

    def step() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            convert(videos, Path(scratch) / "out", size, every)

    step.work = VIDEOS * SECONDS * SOURCE_FPS // every
    return step


def _ours(videos: list[Path], out: Path, size: int, every: int) -> None:
    from data_pipelines.convert import video

    given = dict(source=videos[0].parent, out=out, size=(size, size), fps=SOURCE_FPS / every)
    video.convert_videos(video.Options(**given, progress=False))


def _loop(videos: list[Path], out: Path, size: int, every: int) -> None:
    import av
    import simplejpeg
    from av.video.reformatter import Interpolation

    width, left = round(size * WIDTH / HEIGHT), (round(size * WIDTH / HEIGHT) - size) // 2
    how = dict(width=width, height=size, format="rgb24", interpolation=Interpolation.AREA)
    with out.open("wb") as file:
        for path in videos:
            with av.open(str(path)) as container:
                container.streams.video[0].codec_context.thread_count = 1
                for frame in itertools.islice(container.decode(video=0), 0, None, every):
                    image = frame.reformat(**how).to_ndarray()[:, left : left + size]
                    image = np.ascontiguousarray(image)
                    file.write(simplejpeg.encode_jpeg(image, QUALITY, colorsubsampling="420"))


def _ffmpeg(videos: list[Path], out: Path, size: int, every: int) -> None:
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    chain = f"fps={SOURCE_FPS / every},scale=-2:{size}:flags=area,crop={size}:{size}"
    for path in videos:
        frames = out / path.stem
        frames.mkdir(parents=True)
        words = [program, "-v", "error", "-threads", "1", "-i", path, "-vf", chain]
        subprocess.run([*words, "-q:v", "2", frames / "%06d.jpg"], check=True)


def _lerobot(videos: list[Path], out: Path, size: int, every: int) -> None:
    import av
    from av.video.reformatter import Interpolation
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    features = {"observation.image": dict(dtype="video", shape=(size, size, 3), names=names)}
    made = LeRobotDataset.create("bench/frames", SOURCE_FPS // every, features, root=out)
    width, left = round(size * WIDTH / HEIGHT), (round(size * WIDTH / HEIGHT) - size) // 2
    how = dict(width=width, height=size, format="rgb24", interpolation=Interpolation.AREA)
    for path in videos:
        with av.open(str(path)) as container:
            for frame in itertools.islice(container.decode(video=0), 0, None, every):
                image = frame.reformat(**how).to_ndarray()[:, left : left + size]
                made.add_frame({"observation.image": image, "task": path.stem})
        made.save_episode()
    made.finalize()


def _videos(folder: Path) -> list[Path]:
    """A slow pan over noise whose spectrum falls as that of photographs does, with noise on top."""
    import av

    if not folder.is_dir():
        rng, making = np.random.default_rng(0), folder.with_name(folder.name + ".part")
        making.mkdir(parents=True)
        shape = (HEIGHT + 240, WIDTH + 240)
        frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
        frequency[0, 0] = np.inf
        for number in range(VIDEOS):
            phase = rng.normal(size=(3, 2, *frequency.shape))
            plane = np.fft.irfft2((phase[:, 0] + 1j * phase[:, 1]) / frequency**1.5, shape)
            picture = 128 + 52 * plane / plane.std(axis=(1, 2), keepdims=True)
            picture = np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            with av.open(str(making / f"{number}.mp4"), "w") as container:
                stream = container.add_stream(
                    "libx264", rate=SOURCE_FPS, width=WIDTH, height=HEIGHT
                )
                stream.pix_fmt, stream.bit_rate = "yuv420p", 3_000_000
                stream.options = {"preset": "veryfast"}
                for i in range(SECONDS * SOURCE_FPS):
                    noise = rng.integers(-12, 13, (HEIGHT, WIDTH, 1), np.int16)
                    view = picture[i : i + HEIGHT, 2 * i : 2 * i + WIDTH] + noise
                    frame = av.VideoFrame.from_ndarray(
                        np.clip(view, 0, 255).astype(np.uint8), format="rgb24"
                    )
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
        shutil.move(making, folder)
    return sorted(folder.glob("*.mp4"))
