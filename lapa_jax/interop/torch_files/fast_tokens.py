"""FAST tokens: which may follow, and the chunk of actions that they say. NumPy alone.

fast_grammar.json holds tables: of each state (which bytes of a number are open) and each token the
next state (-1: it cannot follow), how many numbers it completes, the one of them that was open
before (-1: none), and the others; how many tokens so many numbers need at least; the smallest
number and the scale. The last id is the end.
"""

import json

import numpy as np

TABLES = ("next", "count", "first", "own", "least")


class FastTokens:
    def __init__(self, data):
        held = json.loads(data)
        self.next, self.count, self.first, self.own, self.least = (
            np.array(held[name], np.int64) for name in TABLES
        )
        self.low, self.scale, self.shape = held["min_token"], held["scale"], tuple(held["shape"])
        self.end, self.numbers = len(self.own) - 1, self.shape[0] * self.shape[1]

    def start(self, examples):
        """(state, numbers that are still to come) of each."""
        return np.zeros(examples, np.int64), np.full(examples, self.numbers)

    def allowed(self, state, slots):
        """bool (B, ids): what may come next, in the first of so many slots."""
        open_B, left_B = state
        after, left = self.next[open_B], left_B[:, None] - self.count[open_B]
        least = self.least[np.maximum(after, 0), np.clip(left, 0, self.numbers)]
        may = (after >= 0) & (left >= 0) & (least + 2 <= slots)
        may[:, self.end] = (open_B == 0) & (left_B == 0)
        return may

    def advance(self, state, token_B):
        open_B, left_B = state
        more = token_B != self.end
        after = np.where(more, self.next[open_B, token_B], open_B)
        return after, left_B - np.where(more, self.count[open_B, token_B], 0)

    def actions(self, ids):
        """Normalised (B, steps, dimensions) of ids (B, n). ValueError for ids that say none."""
        return np.stack([self._restored(self._read(row)) for row in np.asarray(ids)])

    def _read(self, ids):
        state, found = 0, []
        for token in ids.tolist():
            if token == self.end:
                break
            after = self.next[state, token]
            if after < 0:
                raise ValueError(f"FAST token {token} cannot follow the ones before it")
            count, first = self.count[state, token], self.first[state, token]
            found += [first] if first >= 0 else []
            found += self.own[token, : count - (first >= 0)].tolist()
            state = after
        else:
            raise ValueError("these FAST tokens have no end")
        if state or len(found) != self.numbers:
            raise ValueError(f"FAST tokens of {len(found)} numbers instead of {self.numbers}")
        return np.array(found, np.float64) + self.low

    def _restored(self, numbers):
        """The inverse of the orthonormal cosine transform over time."""
        steps = self.shape[0]
        waves = np.arange(steps) * (np.arange(steps)[:, None] + 0.5) * np.pi / steps
        basis = np.cos(waves) * np.sqrt(2.0 / steps)
        basis[:, 0] = np.sqrt(1.0 / steps)
        return basis @ (numbers.reshape(self.shape) / self.scale)
