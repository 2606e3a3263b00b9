"""What is measured: frame pairs, and what a quantizer makes of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lapa_jax.diagnostics.probes import one_hot_codes

BATCH = 256  # what a model is asked at once: one shape, one program


@dataclasses.dataclass(frozen=True)
class Chains:
    """C runs of F frames each, from an episode each, that are further apart than a pair's too."""

    frames: np.ndarray  # uint8 (C, F, H, W, 3), or float in [0, 1]
    at: np.ndarray  # float (F,), ascending: when each frame is, in windows; 0, 0.5, 1, 2, ...
    episode: np.ndarray  # int (C,)
    moved: np.ndarray | None = None  # float (C, F, A): actions summed from the first frame on

    def frame(self, windows: float) -> np.ndarray:
        """The frames so many windows after the first, (C, H, W, 3)."""
        return self.frames[:, int(np.flatnonzero(self.at == windows)[0])]

    @property
    def whole(self) -> int:
        """How many whole windows a chain has."""
        return int(self.at[-1])


@dataclasses.dataclass(frozen=True)
class Sample:
    """N frame pairs, in order of time within each episode, and their latent actions.

    `decode` and `read` are the model itself; both are pytrees whose leaves are its parameters.
    """

    first: np.ndarray  # uint8 (N, H, W, 3), or float in [0, 1]
    last: np.ndarray  # as `first`
    z: np.ndarray | None  # int (N, L); None where the latent stays continuous
    latents: np.ndarray  # float (N, L, Q), before the bottleneck
    actions: np.ndarray | None  # float (N, A) over the window; None where they are not known
    episode: np.ndarray  # int (N,)
    codebook_size: int
    recon: np.ndarray | None = None  # float (N, H, W, 3), the decoder's `last` where it is a frame
    # float (N, 2): mean squared error of the decoder's answer, and of a copy of `first`; where not
    # given they are those of `recon`
    errors: np.ndarray | None = None
    exchanged_mse: np.ndarray | None = None  # float (N,): drawn from `first` and z of another pair
    received: np.ndarray | None = None  # float (N, L, Q): what the decoder is given of each pair
    # (first, latents as the decoder takes them) → frames, or features (M, *Y) of the later frame
    decode: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    # frames → what they are where that is compared: features (M, *Y); None: themselves in [0, 1]
    target: Callable[[np.ndarray], np.ndarray] | None = None
    # (first, last) → (z or None, latents, received)
    read: Callable[[np.ndarray, np.ndarray], tuple[Any, ...]] | None = None
    # (latents of a motion, of the next, of none) → latents as the decoder takes them of both
    compose: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    chains: Chains | None = None
    camera_motion: np.ndarray | None = None  # float (N, P) over the window, where it is known
    _read: dict[tuple[float, float], tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def draws_frames(self) -> bool:
        """Whether the decoder gives what can be set beside frames."""
        return self.recon is not None

    def read_chains(self, start: float, end: float) -> tuple[Any, ...]:
        """What `read` gives of two frames of every chain, which are so many windows after its
        first; read once."""
        key = (start, end)
        if key not in self._read:
            frames = (self.chains.frame(at) for at in key)
            self._read[key] = in_batches(self.read, *frames)
        return self._read[key]

    @property
    def flat_latents(self) -> np.ndarray:
        return self.latents.reshape(len(self.latents), -1)

    @property
    def latent_action(self) -> np.ndarray:
        """What probes see, (N, D): one-hot codes, or the continuous latent itself."""
        return self.features(self.z, self.latents)

    def features(self, z: np.ndarray | None, latents: np.ndarray) -> np.ndarray:
        """What probes see of other pairs, (M, D)."""
        return flat(latents) if z is None else one_hot_codes(z, self.codebook_size)

    @property
    def extra(self) -> dict[str, np.ndarray]:
        """Further features that probes see, by name: of codes, the latent before the bottleneck."""
        return {} if self.z is None else {"continuous_latent": self.flat_latents}

    @property
    def episodes(self) -> int:
        return len(np.unique(self.episode))

    def spread_rows(self, count: int) -> np.ndarray:
        """At most so many rows, evenly spread."""
        return np.arange(0, len(self.first), max(1, -(-len(self.first) // count)))


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def in_batches(function: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """What a function of batches makes of all rows of the arrays: an array, or a tuple of arrays
    (and None). The last batch is filled up with rows that are left out again."""
    parts = []
    for start in range(0, len(arrays[0]), BATCH):
        rows = np.arange(start, min(start + BATCH, len(arrays[0])))
        found = function(*(x[np.resize(rows, BATCH)] for x in arrays))
        whole = found if isinstance(found, tuple) else (found,)
        parts.append([None if x is None else np.asarray(x)[: len(rows)] for x in whole])
    joined = tuple(None if x[0] is None else np.concatenate(x) for x in zip(*parts, strict=True))
    return joined if isinstance(found, tuple) else joined[0]
