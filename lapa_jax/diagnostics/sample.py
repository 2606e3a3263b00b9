"""What is measured: frame pairs, and what a quantizer makes of them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from lapa_jax.diagnostics.probes import one_hot_codes


@dataclasses.dataclass(frozen=True)
class Sample:
    """N frame pairs, in order of time within each episode, and their latent actions."""

    first: np.ndarray  # uint8 (N, H, W, 3), or float in [0, 1]
    last: np.ndarray  # as `first`
    z: np.ndarray | None  # int (N, L); None where the latent stays continuous
    latents: np.ndarray  # float (N, L, Q), before the bottleneck
    actions: np.ndarray | None  # float (N, A) over the window; None where they are not known
    episode: np.ndarray  # int (N,)
    codebook_size: int
    recon: np.ndarray | None = None  # float (N, H, W, 3), the decoder's `last`
    exchanged_mse: np.ndarray | None = None  # float (N,): drawn from `first` and z of another pair
    # (first, latents as the decoder takes them) → frames; a pytree whose leaves are its parameters
    decode: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    @property
    def flat_latents(self) -> np.ndarray:
        return self.latents.reshape(len(self.latents), -1)

    @property
    def latent_action(self) -> np.ndarray:
        """What probes see, (N, D): one-hot codes, or the continuous latent itself."""
        return self.flat_latents if self.z is None else one_hot_codes(self.z, self.codebook_size)

    @property
    def extra(self) -> dict[str, np.ndarray]:
        """Further features that probes see, by name: of codes, the latent before the bottleneck."""
        return {} if self.z is None else {"continuous_latent": self.flat_latents}

    @property
    def episodes(self) -> int:
        return len(np.unique(self.episode))
