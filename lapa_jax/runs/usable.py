"""Whether data can be trained on by a stage: looked at before anything is written or computed."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.loader import DataSettings, Loader, open_mixture
from data_pipelines.loader.columns import COLUMNS, LATENT_ACTIONS
from data_pipelines.loader.corpus import Corpus
from data_pipelines.loader.mixture import Mixture
from data_pipelines.loader.unusable import judge
from lapa_jax.stages.stage import Stage

_ROWS = 2**20  # of a label set that are looked at in one go


def usable(mixture: Mixture, stage: Stage) -> Mixture:
    """The mixture without what the stage cannot use, where `data.unusable_episodes` says so.

    Raises ValueError with the number of such episodes, the first ones, and the key to change; and
    for what no choice of episodes mends, as labels of another codebook.
    """
    found = [_unusable(corpus, mixture, stage) for corpus in mixture.corpora]
    if any(which.any() for which in found):
        mixture = mixture.without(found)
    for corpus in mixture.corpora:
        _check_window(corpus, stage)
        for rows in _telling(corpus, mixture):
            try:
                stage.check({name: COLUMNS[name](corpus, rows) for name in mixture.columns})
            except ValueError as error:
                raise ValueError(f"corpus {corpus.name!r}: {error}") from error
    return mixture


def open_loader(
    config: ConfigDict, data: DataSettings, stage: Stage, global_batch: int, **hosts: int
) -> Loader:
    """The batches of a stage from `data`, read as those of a run's config are, of what is usable.
    `hosts`: host and num_hosts."""
    fields = stage.fields_of(config)
    return Loader(
        data,
        fields=fields,
        global_batch=global_batch,
        seed=config.seed,
        prepare=stage.prepare,
        mixture=usable(open_mixture(data, fields), stage),
        **hosts,
    )


def _unusable(corpus: Corpus, mixture: Mixture, stage: Stage) -> np.ndarray:
    """Of the episodes that are drawn from, those with an instruction that the stage refuses."""
    index, none = corpus.index, np.zeros(corpus.index.num_episodes, bool)
    if "instruction" not in mixture.columns:
        return none
    texts, why, remedy = stage.unusable(index.instructions)
    which = np.append(texts, False)[index.instruction_of_episode] & (corpus.counts > 0)
    judge(mixture.data.unusable_episodes, corpus.name, index, which, why, remedy)
    return which


def _check_window(corpus: Corpus, stage: Stage) -> None:
    """Raises ValueError where the stage reads the actions of a window and takes it for longer or
    shorter than it is."""
    wanted = stage.window_steps()
    known = corpus.actions.known & (corpus.counts > 0)
    if wanted is None or not known.any():
        return
    steps = np.unique(corpus.chains.window[known])
    if steps.tolist() != [wanted]:
        told = " to ".join(map(str, dict.fromkeys((steps[0], steps[-1]))))
        raise ValueError(
            f"corpus {corpus.name!r}: {corpus.settings.key('window_seconds')}="
            f"{corpus.settings.window_seconds:g} is {told} steps, but the actions of {wanted} are "
            "read as those of a window: change it, or data.action_horizon and the horizon of "
            "model.objective"
        )


def _telling(corpus: Corpus, mixture: Mixture) -> Iterator[np.ndarray]:
    """Rows (1, num_frames) of examples that tell whether columns fit: the first one that is drawn,
    and one with the greatest label."""
    first = corpus.frame_rows(np.zeros(1, int), np.zeros(1, np.uint64), 0)
    yield first
    labels = corpus.labels
    if LATENT_ACTIONS & set(mixture.columns) and labels.codebook_size is not None:
        most, row = -1, 0
        for start in range(0, corpus.index.num_frames, _ROWS):
            rows = np.arange(start, min(start + _ROWS, corpus.index.num_frames))
            greatest = labels.labels(rows).max(axis=1)
            if greatest.max() > most:
                most, row = int(greatest.max()), start + int(greatest.argmax())
        yield np.full_like(first, row)
