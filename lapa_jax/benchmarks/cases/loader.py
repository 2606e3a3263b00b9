"""Batches of an arm of `lapa data bench`. Work: pairs of frames.

    --first arm=threads --second arm=threads_limit --option folder=/tmp/corpus --option size=64

folder: keeps the corpus, made by the first side.
"""

from collections.abc import Callable
from pathlib import Path

from data_pipelines.bench import arms, corpus
from lapa_jax.settings import corpus_settings, stage_settings

WINDOW_SECONDS = 0.5


def prepare(
    folder: str, arm: str = "threads", size: int = 64, batch: int = 64, batches: int = 100
) -> Callable[[], None]:
    directory = corpus.make(Path(folder), corpus.Shape(size=size))
    data = stage_settings("quantizer").data
    data.image_size = (size, size)
    data.corpora.bench = corpus_settings(str(directory), window_seconds=WINDOW_SECONDS)
    window = round(WINDOW_SECONDS * corpus.FPS)
    stream = arms.ARMS[arm].batches(arms.Setting(directory, data, batch, 2, window))

    def step() -> None:
        for _ in range(batches):
            next(stream)

    step.work = batch * batches
    return step
