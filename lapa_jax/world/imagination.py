"""Latent actions as controls: frames that a trained model imagines one by one, z by z.

Two kinds of run can: a quantizer whose decoder draws frames, trained here or imported, and a
dynamics model. The first has no memory: the next frame is decoded from the current one and z, a
window of its training later. The second sees the frames and z that it was trained to see.

Shape suffixes: B frames side by side, H, W image rows and columns, L codes or vectors of a z.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from data_pipelines.normalise import Normaliser
from lapa_jax.runs import corrections
from lapa_jax.runs.loaded import LoadedDynamics, LoadedPolicy, LoadedQuantizer, Model, load
from lapa_jax.world.dynamics import Scene


class Imagination:
    """A model that goes on from frames by z; `open_imagination` makes one.

    model: the loaded run. codes: values of a code of z, 0 where z is of vectors. length: codes, or
    vectors, of a z. width: of a vector, 0 where z is of codes. image_size: (rows, columns) of a
    frame, pixels. window_seconds: between a frame and the next; 0.0 where the run does not tell one
    time. statistics: of the vectors of a dynamics model's training, None otherwise.
    """

    def __init__(self, model: Model):
        if not isinstance(model, LoadedDynamics | LoadedQuantizer):
            raise ValueError(
                f"{model.workdir} is a run of stage {model.config.stage!r}: frames are imagined by "
                "those of stage 'quantizer' and 'dynamics'"
            )
        self.model, config = model, model.stage.model_config
        # States lie where a step leaves them, or the second step would be compiled again.
        self._device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self._held = jax.device_put((model.params, model.variables), self._device)
        self.image_size: tuple[int, int] = tuple(config.image_size)
        self.statistics: Normaliser | None = None
        if isinstance(model, LoadedDynamics):
            self.codes, self.length = config.latent_codes, config.latent_length
            self.width = config.latent_dim
            self.statistics = model.stage.statistics
            self._begin, self._step = jax.jit(model.stage.begin), jax.jit(model.stage.step)
        else:
            if config.predicts != "pixels":
                raise ValueError(
                    f"{model.workdir} is a quantizer whose decoder predicts {config.predicts}: it "
                    "draws no frames. Name another run with --workdir"
                )
            self.codes = config.codebook_size if config.has_codes else 0
            self.length = config.code_length
            self.width = 0 if config.has_codes else config.quant_dim
            self._begin, self._step = jax.jit(_unit), jax.jit(self._decoded)
        windows = {corpus.window_seconds for corpus in model.config.data.corpora.values()}
        self.window_seconds: float = windows.pop() if len(windows) == 1 else 0.0

    @property
    def rate(self) -> float:
        """Frames a second, 1 / window_seconds; 0.0 where that is not known."""
        return 1.0 / self.window_seconds if self.window_seconds else 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one z: (length,) of codes, (length, width) of vectors."""
        return (self.length,) if self.codes else (self.length, self.width)

    def start(self, frames: np.ndarray) -> Any:
        """The state of B frames uint8 (B, H, W, 3) of `image_size` with no past: a pytree, which
        `step` takes and leaves as it is, so that any state can be gone on from again. Raises
        ValueError for other frames."""
        frames = np.asarray(frames)
        wanted = (*self.image_size, 3)
        if frames.dtype != np.uint8 or frames.shape[1:] != wanted or not frames.size:
            raise ValueError(
                f"frames {frames.dtype}{list(frames.shape)} must be uint8 of shape (B, "
                f"{', '.join(map(str, wanted))}): resize them as the training data were"
            )
        return jax.device_put(self._begin(*self._held, frames), self._device)

    def step(self, state: Any, z: np.ndarray) -> tuple[Any, jax.Array]:
        """(the state after it, the next frames float32 (B, H, W, 3) in [0, 1]) of what leads there:
        codes int (B, length), or vectors float (B, length, width) as a label set has them.

        The same answer each time: a dynamics model takes the likeliest tokens. What a decoder draws
        below 0 or above 1, which no picture has, is set to these. Compiled once for each B. Raises
        ValueError for z of another kind or shape, or out of range.
        """
        z, count = self.checked(z), len(state.frame_BIJC if isinstance(state, Scene) else state)
        if len(z) != count:
            raise ValueError(f"z of {len(z)} frames, and the state is of {count}")
        return self._step(*self._held, state, z)

    def checked(self, z: np.ndarray) -> np.ndarray:
        """z (B, ...) as the model takes it; raises ValueError as `step`."""
        z = np.asarray(z)
        kind, dtype = ("integers", "iu") if self.codes else ("floats", "f")
        if z.dtype.kind not in dtype or z.shape[1:] != self.shape or not z.size:
            raise ValueError(
                f"z {z.dtype}{list(z.shape)} must be {kind} of shape (B, "
                f"{', '.join(map(str, self.shape))})"
            )
        if self.codes and (z.min() < 0 or z.max() >= self.codes):
            raise ValueError(
                f"z holds codes from {z.min()} to {z.max()}, the codebook has {self.codes}"
            )
        if not np.isfinite(z).all():
            raise ValueError("z holds values that are not finite")
        if isinstance(self.model, LoadedDynamics):
            return self.model.stage.z(z)
        return z.astype(np.int32 if self.codes else np.float32)

    def warm(self, batch: int = 1) -> None:
        """Compiles `start` and `step` of so many frames, so that the next ones are fast."""
        z = np.zeros((batch, *self.shape), np.int32 if self.codes else np.float32)
        state = self.start(np.zeros((batch, *self.image_size, 3), np.uint8))
        jax.block_until_ready(self.step(state, z))

    def _decoded(self, params, variables, frames_BHWC, z):
        stage = self.model.stage
        decode = stage.decode if self.codes else stage.decode_latent
        drawn = jnp.clip(decode(params, variables, frames_BHWC, z).astype(jnp.float32), 0.0, 1.0)
        return drawn, drawn


def _unit(params, variables, frames_BHWC):
    del params, variables
    return frames_BHWC.astype(jnp.float32) / 255.0


def open_imagination(workdir: str | Path) -> Imagination:
    """The imagination of a run's directory, of stage `quantizer` or `dynamics`, at its newest good
    checkpoint. Raises ValueError for a run that cannot draw frames, and as `load`."""
    return Imagination(load(workdir))


def check_policy(imagination: Imagination, policy: LoadedPolicy) -> None:
    """Raises ValueError for a policy of other z than an imagination's, or that needs more than the
    frame and the instruction."""
    stage, where = policy.stage, f"--policy {policy.workdir}"
    try:
        policy.require_head("latent")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if stage.num_images > 1 or not stage.from_pixels or stage.state:
        raise ValueError(
            f"{where}: imagined frames are for a policy that sees one image, as pixels, and no "
            "state of the robot"
        )
    said = stage.head.describe()
    pairs = [("image size", tuple(policy.image_size), imagination.image_size)]
    pairs.append(("code_length", policy.config.code_length, imagination.length))
    if imagination.codes:
        pairs.append(("codebook_size", said.get("codebook_size"), imagination.codes))
    else:
        pairs.append(("width of z", said.get("dim"), imagination.width))
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise ValueError(f"{where}: its {what} is {theirs}, that of the imagining run {ours}")
    check_labels("--policy", policy, imagination.model)


def corrected(imagination: Imagination, policy: LoadedPolicy) -> corrections.Of:
    """What games have in common that are played with an imagination and corrected where a latent
    VLA is wrong; their label set is named as that of its training, else "corrections". Raises
    ValueError where the time between frames, or whose z they are, is not known."""
    where = imagination.model.workdir
    if not imagination.window_seconds:
        raise ValueError(
            f"{where}: its corpora differ in window_seconds, or it has none, so that the time "
            "between its frames is not known: its games cannot be saved as a corpus"
        )
    known = [one for one in map(quantizers_of, (imagination.model, policy)) if one]
    hashes = set.intersection(*known) if known else set()
    if len(hashes) != 1:
        raise ValueError(
            f"whose z {where} and {policy.workdir} have in common is not known (quantizers "
            f"{sorted(hashes)}): games cannot be saved with labels"
        )
    names = {corpus.label_set for corpus in policy.config.data.corpora.values()} - {""}
    return corrections.Of(
        image_size=imagination.image_size,
        window_seconds=imagination.window_seconds,
        shape=imagination.shape,
        codes=imagination.codes,
        quantizer_hash=hashes.pop(),
        label_set=names.pop() if len(names) == 1 else corrections.CORPUS,
    )


def quantizers_of(model: Model) -> set[str]:
    """Hashes of the quantizers whose z a run was trained on, or its own; none if untold."""
    if isinstance(model, LoadedQuantizer):
        return {model.params_hash}
    sets = model.provenance.get("label_sets", {}).values()
    return {labels["quantizer_hash"] for labels in sets}


def check_labels(flag: str, other: Model, model: Model) -> None:
    """Raises ValueError where z of one run, which `flag` names, are of another quantizer than those
    of `model`; where a run does not tell, that is said in the log."""
    check_quantizers(f"{flag} {other.workdir}", quantizers_of(other), model)


def check_quantizers(what: str, theirs: set[str], model: Model) -> None:
    """As `check_labels`, of what has z of the quantizers with these hashes, none if untold."""
    ours = quantizers_of(model)
    if not ours or not theirs:
        logging.warning(
            "whether z of %s is that of %s is not known: %s does not tell whose z it has",
            *(what, model.workdir, what if ours else model.workdir),
        )
    elif theirs.isdisjoint(ours):
        raise ValueError(
            f"{what}: its z is of the quantizer {sorted(theirs)}, that of {model.workdir} of "
            f"{sorted(ours)}"
        )
