"""Times in steps: how many lie between the frames of an example, in each episode of a corpus."""

import numpy as np

from data_pipelines.index import CorpusIndex
from data_pipelines.loader.settings import CorpusSettings


def window_steps(settings: CorpusSettings, index: CorpusIndex) -> np.ndarray:
    """Between the frames of a pair, int64 (E,)."""
    key = settings.key("window_seconds")
    return steps_between("window", key, settings.window_seconds, settings, index)


def steps_between(
    what: str, key: str, seconds: float, settings: CorpusSettings, index: CorpusIndex
) -> np.ndarray:
    """Steps of each episode in the time of `key`, int64 (E,)."""
    if not (np.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{key} is {seconds}; it must be positive")
    fps = fps_of(settings, index)
    steps = np.rint(seconds * fps).astype(np.int64)
    if steps.min() < 1:
        raise ValueError(
            f"{key} {seconds} is shorter than half a step at {fps[steps.argmin()]:g} fps; the "
            f"{what} needs at least one step"
        )
    return steps


def fps_of(settings: CorpusSettings, index: CorpusIndex) -> np.ndarray:
    """Frames per second of each episode, float64 (E,): those of the settings, or its own."""
    fps = index.fps.astype(np.float64)
    if settings.fps:
        fps = np.full_like(fps, settings.fps)
    bad = np.count_nonzero(~(np.isfinite(fps) & (fps > 0)))
    if bad:
        raise ValueError(
            f"the fps of corpus {settings.name!r} is unknown: {settings.key('fps')} is "
            f"{settings.fps} and {bad} of {len(fps)} episodes have no valid "
            f"episode_metadata/fps; set {settings.key('fps')}"
        )
    return fps
