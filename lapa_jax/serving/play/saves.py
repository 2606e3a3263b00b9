"""From a game on the page to an episode of corrections."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from lapa_jax.runs.corrections import Corrections, FullError, Game
from lapa_jax.serving.limits import Refused
from lapa_jax.serving.play.player import Moment


class Saves:
    """Where the games of a server go."""

    def __init__(self, corpus: Corrections, instruction: str, told: dict[str, Any]):
        """told: of the imagining run, the policy and the first frame, as JSON values."""
        self.corpus, self.instruction, self.told = corpus, instruction, told

    def save(self, moments: Sequence[Moment], z: np.ndarray) -> dict[str, int]:
        """Adds the game of n z and n + 1 moments; a z is the person's where the policy said another
        one. Raises Refused where there is no more room, or it cannot be written."""
        frames = np.stack([one.frame for one in moments])
        said = np.stack([one.said for one in moments[:-1]]).astype(z.dtype)
        others = (z != said).reshape(len(z), -1).any(axis=1)
        game = Game(frames, z, others, self.instruction, self.told)
        try:
            found = self.corpus.add([game])
        except FullError as error:
            raise Refused(409, f"{error}: train on them, and save to another folder") from error
        except (OSError, ValueError) as error:  # they name files, which clients are not told
            logging.error("corrections: %s", error)
            raise Refused(503, "corrections cannot be written; the server's log says why") from None
        return {"episodes": found.episodes, "pairs": found.pairs, "corrected": found.corrected}
