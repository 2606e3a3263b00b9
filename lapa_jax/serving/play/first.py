"""The frame that a game starts from: of an image file, or of a step of a corpus."""

from pathlib import Path

import numpy as np

from data_pipelines.convert.conversion import FITS
from data_pipelines.index import CorpusIndex
from data_pipelines.loader.frames import FrameReader
from lapa_jax.serving import images
from lapa_jax.serving.limits import Limits, Refused


def of_file(path: str, size: tuple[int, int], resizing: str) -> np.ndarray:
    """uint8 (H, W, 3) of a JPEG or PNG, of `size`; raises ValueError for others, OSError where it
    cannot be read."""
    try:
        image = images.decode(Path(path).read_bytes(), Limits())
    except Refused as refusal:
        raise ValueError(f"--frame {path}: {refusal.reason}") from refusal
    except OSError as error:
        raise OSError(f"--frame {path}: {error.strerror}") from error
    return _fitted(image, size, resizing, f"--frame {path}")


def of_corpus(
    index: CorpusIndex, episode: int, step: int, size: tuple[int, int], resizing: str
) -> np.ndarray:
    """The same of a step of an episode, both counted from 0."""
    if episode >= index.num_episodes:
        raise ValueError(
            f"--episode {episode}: {index.directory} has {index.num_episodes} episodes, from 0"
        )
    steps = int(index.episode_length[episode])
    if step >= steps:
        raise ValueError(f"--step {step}: episode {episode} has {steps} steps, from 0")
    own = index.other_sizes.get(episode, index.image_size)
    if own is None:
        raise ValueError(f"no first frame of {index.directory} can be read: its size is unknown")
    reader = FrameReader(index, own)
    try:
        frames, bad = reader.read(np.array([index.episode_start[episode] + step]))
    finally:
        reader.close()
    if bad:
        raise ValueError(f"--step {step} of --episode {episode} cannot be read: {bad[0]}")
    return _fitted(frames[0], size, resizing, f"--corpus {index.directory}")


def _fitted(image: np.ndarray, size: tuple[int, int], resizing: str, flag: str) -> np.ndarray:
    if image.shape[:2] != tuple(size) and resizing == "none":
        raise ValueError(
            f"{flag}: an image of {image.shape[0]}x{image.shape[1]} (rows x columns), and the "
            f"model's frames are of {size[0]}x{size[1]}: resize it, or set --resizing to one of "
            f"{list(FITS)}"
        )
    return images.resize(image, size, resizing)
