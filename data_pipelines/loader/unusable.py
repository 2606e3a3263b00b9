"""Episodes that training cannot use, found before it starts: refused, or left out and counted.

`data.unusable_episodes` chooses. What is left out is a function of the index and of what the model
takes, and part of the mixture hash where there is something.
"""

import numpy as np
from absl import logging

from data_pipelines.index import CorpusIndex

_SHOWN = 3


class UnusableError(ValueError):
    """A corpus has episodes that cannot be trained on."""


def judge(
    choice: str, name: str, index: CorpusIndex, unusable: np.ndarray, why: str, remedy: str
) -> None:
    """Of corpus `name`, the episodes `unusable` bool (E,), if there are: raises UnusableError, or
    where the choice is to leave them out says so on the log. `remedy`: what else can be done."""
    episodes = np.flatnonzero(unusable)
    if not len(episodes):
        return
    places = [
        f"episode {episode} ({index.shards[index.shard_of_episode[episode]].name}:"
        f"{index.record_of_episode[episode]})"
        for episode in episodes[:_SHOWN].tolist()
    ]
    more = ", ..." if len(episodes) > _SHOWN else ""
    told = (
        f"corpus {name!r}: {len(episodes)} of {index.num_episodes} episodes {why}: "
        f"{', '.join(places)}{more}"
    )
    if choice == "refuse":
        raise UnusableError(
            f"{told}. {remedy}, or leave such episodes out: data.unusable_episodes='leave_out'"
        )
    logging.warning("%s. They are left out (data.unusable_episodes).", told)
