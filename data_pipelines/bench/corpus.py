"""The corpus that `lapa data bench` reads: made, not downloaded, and like natural video to a JPEG
decoder, whose cost is that of the bytes.

Each episode pans and zooms over a picture whose spectrum falls as that of photographs does, under
moving shapes and the noise of a sensor: about 25 KB per frame of 256 x 256 at quality 95, 4:2:0.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import sidecar
from data_pipelines.index import CorpusIndex, build_index, load_index
from data_pipelines.loader.frames import ShardFiles, places, read_jpeg
from data_pipelines.rlds import schema
from data_pipelines.rlds.writer import RldsWriter

FPS, ACTION_DIM = 10.0, 7
_QUALITY = 95
_PICTURES, _CANVAS = 12, 640  # how many pictures episodes pan over, and their height and width
_FALL = 1.5  # amplitude over frequency: with the shapes' edges, frames of 25 KB


@dataclass(frozen=True)
class Shape:
    """What decides the corpus, and so the folder that it is kept in."""

    episodes: int = 200
    size: int = 256
    steps: int = 40  # of an episode, give or take a quarter
    noise: float = 1.5  # standard deviation of the sensor's noise, of 255
    shard_bytes: int = 25_000_000
    seed: int = 0

    @property
    def folder(self) -> str:
        return f"frames-{sidecar.value_hash(vars(self))[:12]}"


def make(workdir: Path, shape: Shape) -> Path:
    """The corpus with its index, from `workdir` where it was made before."""
    directory = workdir / shape.folder
    if not (directory / "dataset_info.json").is_file():
        spec = schema.EpisodeSpec((shape.size, shape.size, 3), ACTION_DIM, True, "bench", FPS)
        rng = np.random.default_rng(shape.seed)
        pictures = [_picture(rng) for _ in range(_PICTURES)]
        with RldsWriter(
            directory, name="bench", spec=spec, shard_bytes=shape.shard_bytes
        ) as writer:
            for number in range(shape.episodes):
                writer.write(_episode(rng, pictures[number % _PICTURES], number, shape))
    if not (directory / "index/image/train/manifest.json").is_file():
        build_index(directory, progress=False)
    return directory


def array_record(directory: Path) -> Path | None:
    """The frames again, a record each, in row order, for the comparison with Grain; None without
    the package."""
    if importlib.util.find_spec("array_record") is None:
        return None
    from array_record.python.array_record_module import ArrayRecordWriter

    path = directory / "frames.array_record"
    if not path.is_file():
        index = load_index(directory)
        with sidecar.atomic_path(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            for jpeg in jpegs(index, np.arange(index.num_frames)):
                writer.write(jpeg)
            writer.close()
    return path


def jpegs(index: CorpusIndex, rows: np.ndarray) -> list[bytes]:
    files = ShardFiles()
    return [read_jpeg(files, place) for place in places(index, rows)]


def _picture(rng: np.random.Generator) -> Image.Image:
    """A random picture whose channels share most of their structure, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(_CANVAS)[:, None], np.fft.rfftfreq(_CANVAS)[None])
    frequency[0, 0] = np.inf

    def field() -> np.ndarray:
        phase = rng.normal(size=(2, *frequency.shape))
        plane = np.fft.irfft2((phase[0] + 1j * phase[1]) / frequency**_FALL, (_CANVAS, _CANVAS))
        return plane / plane.std()

    grey = field()
    planes = [128 + 52 * grey + 18 * field() for _ in range(3)]
    picture = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    for _ in range(30):  # things with edges
        height, width = rng.integers(12, 120, 2)
        top, left = rng.integers(0, _CANVAS - 120, 2)
        patch = picture[top : top + height, left : left + width]
        patch[:] = (patch * 0.5 + rng.integers(0, 128, 3)).astype(np.uint8)
    return Image.fromarray(picture)


def _episode(
    rng: np.random.Generator, picture: Image.Image, number: int, shape: Shape
) -> schema.Episode:
    import simplejpeg

    steps = int(rng.integers(shape.steps * 3 // 4, shape.steps * 5 // 4 + 1))
    start, stop = rng.uniform(0, _CANVAS - 400, (2, 2))
    zoom = rng.uniform(260, 400, 2)
    thing, colour = rng.uniform(0.1, 0.7, (2, 2)), rng.integers(0, 256, 3)
    noise = rng.normal(0, shape.noise, (shape.size + 64, shape.size + 64, 3)).astype(np.float32)
    images = []
    for part in np.linspace(0, 1, steps):
        left, top = start + (stop - start) * part
        side = zoom[0] + (zoom[1] - zoom[0]) * part
        view = picture.resize(
            (shape.size, shape.size), Image.BILINEAR, (left, top, left + side, top + side)
        )
        y, x = rng.integers(0, 64, 2)
        frame = np.asarray(view, np.float32) + noise[y : y + shape.size, x : x + shape.size]
        y, x = ((thing[0] + (thing[1] - thing[0]) * part) * shape.size).astype(int)
        frame[y : y + shape.size // 6, x : x + shape.size // 5] += colour - 128.0
        frame = np.clip(frame, 0, 255).astype(np.uint8)
        images.append(simplejpeg.encode_jpeg(frame, _QUALITY, colorsubsampling="420"))
    return schema.Episode(
        images=images,
        instruction=f"watch picture {number % _PICTURES}",
        actions=rng.normal(size=(steps, ACTION_DIM)).astype(np.float32),
        episode_id=f"bench-{number}",
        camera="synthetic",
        fps=FPS,
    )
