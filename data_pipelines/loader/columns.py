"""What a batch holds beside frames: a column is a function of a corpus and of rows.

A new one is a function here, a line in `COLUMNS`, and in `opening.py` what it needs of a corpus.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.loader.corpus import Corpus
from data_pipelines.sidecar import take


def instructions(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """str objects (b,)."""
    index = corpus.index
    numbers = index.instruction_of_episode[index.episode_of_rows(rows[:, 0])].tolist()
    return np.array(["" if n < 0 else index.instructions[n] for n in numbers], object)


def actions(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """float32 (b, A); (b, horizon, A) of more than one; zeros where it is not known."""
    found = corpus.actions.chunks(rows[:, corpus.frames.current])
    return found if corpus.actions.horizon > 1 else found[:, 0]


def action_mask(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """bool (b, horizon): False past the end of the episode."""
    return corpus.actions.mask(rows[:, corpus.frames.current])


def action_known(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """bool (b,): whether the action of the frame itself is known."""
    return action_mask(corpus, rows)[:, 0]


def states(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """float32 (b, S): of the frame at which an example stands; NaN of a corpus without."""
    if not corpus.settings.state_key:
        return np.full((len(rows), corpus.state_dim), np.nan, np.float32)
    return take(corpus.index.states, rows[:, corpus.frames.current])


def states_ahead(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """float32 (b, horizon, S): of the steps that follow, as many as a chunk has actions; NaN past
    the end of the episode, and of a corpus without."""
    index, standing = corpus.index, rows[:, corpus.frames.current]
    ahead = standing[:, None] + np.arange(1, corpus.actions.horizon + 1)
    found = np.full((*ahead.shape, corpus.state_dim), np.nan, np.float32)
    if corpus.settings.state_key:
        episode = index.episode_of_rows(standing)
        inside = ahead < (index.episode_start[episode] + index.episode_length[episode])[:, None]
        found[inside] = take(index.states, ahead[inside])
    return found


def numbers(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """int32 (b,): which of the corpora, in the order of their names."""
    return np.full(len(rows), corpus.number, np.int32)


def control_hz(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """float32 (b,): steps per second of the episode."""
    return corpus.fps[corpus.index.episode_of_rows(rows[:, 0])].astype(np.float32)


def latent_actions(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """int32 (b, L); float32 (b, L, width) of a quantizer that has no codes."""
    return corpus.labels.labels(rows[:, corpus.frames.current])


def latent_actions_of_pairs(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """int32 (b, num_frames - 1, L), or float32 (b, num_frames - 1, L, width): of the pair that
    begins at each frame of a clip but the last."""
    found = corpus.labels.labels(rows[:, :-1].reshape(-1))
    return found.reshape(len(rows), -1, *found.shape[1:])


def flows(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """float32 (b, cells, 2): of the pair that begins at the frame at which an example stands."""
    return corpus.flow.labels(rows[:, corpus.frames.current])


def image_tokens(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """int32 (b, num_images, tokens)."""
    found = np.stack([tokens.labels(rows) for tokens in corpus.tokens], axis=2)
    return found.reshape(len(rows), -1, found.shape[-1])


LATENT_ACTIONS = {"latent_action", "latent_action_of_pairs"}  # either needs a label set
STATES = {"state", "state_ahead"}  # who asks for either has the index read states

# field → column of a corpus at the rows of b examples, int64 (b, num_frames)
COLUMNS: dict[str, Callable[[Corpus, np.ndarray], np.ndarray]] = {
    "instruction": instructions,
    "action": actions,
    "action_mask": action_mask,  # also where there are several actions and it is not asked for
    "action_known": action_known,  # who asks for it takes examples without, too
    "state": states,
    "state_ahead": states_ahead,
    "corpus": numbers,
    "control_hz": control_hz,
    "latent_action": latent_actions,
    "latent_action_of_pairs": latent_actions_of_pairs,
    "flow": flows,
    "image_tokens": image_tokens,
}
