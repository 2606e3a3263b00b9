"""Trained models: what training, `lapa import` and the `load_...` functions of lapa_jax give, and
what every verb works with.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from ml_collections import ConfigDict

from data_pipelines.storage import given_folder, places
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.nn import int8, lora
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.module import flatten
from lapa_jax.parallel import distributed
from lapa_jax.policy.modality import WITH_IDS
from lapa_jax.stages.dynamics import DynamicsStage
from lapa_jax.stages.image_tokenizer import ImageTokenizerStage
from lapa_jax.stages.policy import PolicyStage
from lapa_jax.stages.quantizer import QuantizerStage
from lapa_jax.training import checkpoint, checksum


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, and where it comes from. What LoRA has learned is in the kernels, and those
    in int8 are floats: `config`, `stage` and `params` are without factors and scales."""

    of: ClassVar[type] = object  # the stage of its runs; here any
    what: ClassVar[str] = "a model"

    config: ConfigDict
    stage: Any
    params: dict[str, Any]  # the moving average where the run keeps one
    variables: dict[str, Any]
    workdir: Path = Path()
    step: int = 0
    assets: dict[str, bytes] = dataclasses.field(default_factory=dict)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    params_hash: str = ""  # of all parameters: where labels and policies come from

    @property
    def control_hz(self) -> float:
        """Actions a second of a policy's data; 0.0: unknown."""
        statistics = self.stage.head.statistics
        known = self.provenance.get("control_hz") or (statistics and statistics.control_hz)
        rates = {corpus.fps for corpus in self.config.data.corpora.values()}
        return known or (rates.pop() if len(rates) == 1 else 0.0)


Kind = TypeVar("Kind", bound=Model)


def require(model: Model, kind: type[Kind]) -> Kind:
    """The model itself; raises ValueError where it is of another kind."""
    if not isinstance(model, kind):
        raise ValueError(
            f"{model.workdir} is a run of stage {model.config.stage!r}, not {kind.what}"
        )
    return model


def _of_model(name: str) -> Any:
    """A setting of the model, as an attribute of what is loaded."""
    return property(lambda self: getattr(self.stage.model_config, name))


def _jitted(method: str) -> Any:
    """A method of the stage, compiled when it is first called."""
    return cached_property(lambda self: jax.jit(getattr(self.stage, method)))


class LoadedQuantizer(Model):
    """A trained quantizer; its methods are jitted and take NumPy or JAX arrays.

    Frames are (B, H, W, 3), uint8 or float in [0, 1], of `image_size`.
    """

    of = QuantizerStage
    what = "a quantizer"

    image_size: tuple[int, int] = _of_model("image_size")
    codebook_size: int = _of_model("codebook_size")
    code_length: int = _of_model("code_length")
    _quantize, _decode = _jitted("quantize"), _jitted("decode")

    def encode(self, first: np.ndarray | jax.Array, last: np.ndarray | jax.Array) -> jax.Array:
        """The latent actions z int32 (B, code_length) of frame pairs."""
        first, last = self._frames(first, "first"), self._frames(last, "last")
        return self._quantize(self.params, self.variables, first, last)

    def decode(self, first: np.ndarray | jax.Array, z: np.ndarray | jax.Array) -> jax.Array:
        """The later frames (B, H, W, 3) that z int (B, code_length) predicts, float32, not
        clipped; of a model that predicts features, those (B, rows, columns, width)."""
        first, z = self._frames(first, "first"), jnp.asarray(z)
        if not jnp.issubdtype(z.dtype, jnp.integer) or z.shape != (len(first), self.code_length):
            raise ValueError(
                f"z {z.dtype}{list(z.shape)} must be integers of shape "
                f"({len(first)}, {self.code_length})"
            )
        z = _in_codebook(z, "z", self.codebook_size)
        return self._decode(self.params, self.variables, first, z)

    def _frames(self, frames: np.ndarray | jax.Array, name: str) -> jax.Array:
        frames = jnp.asarray(frames)
        if frames.dtype != jnp.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {frames.dtype}: uint8, or float in [0, 1]")
        if frames.ndim != 4 or frames.shape[1:] != (*self.image_size, 3):
            raise ValueError(
                f"{name} of shape {frames.shape} must be (B, {self.image_size[0]}, "
                f"{self.image_size[1]}, 3)"
            )
        if frames.dtype != jnp.uint8 and ((frames < 0.0) | (frames > 1.0)).any():
            raise ValueError(
                f"{name} holds values from {frames.min()} to {frames.max()}: float frames are in "
                "[0, 1]"
            )
        return frames


class LoadedImageTokenizer(Model):
    """An image tokenizer; its methods are jitted and take NumPy or JAX arrays.

    A code stands for `factor` x `factor` pixels; images may have any size that it divides.
    """

    of = ImageTokenizerStage
    what = "an image tokenizer"

    codebook_size: int = _of_model("codebook_size")
    factor: int = _of_model("factor")
    _encode, _decode = _jitted("encode"), _jitted("decode")

    def encode(self, images: np.ndarray | jax.Array) -> jax.Array:
        """The codes int32 (B, h, w) of images uint8 (B, H, W, 3), row by row."""
        return self._encode(self.params, self.variables, jnp.asarray(images))

    def decode(self, codes: np.ndarray | jax.Array) -> jax.Array:
        """The images float32 (B, H, W, 3) of codes int (B, h, w), in [-1, 1]: black is -1, white
        1."""
        codes = jnp.asarray(codes)
        if not jnp.issubdtype(codes.dtype, jnp.integer) or codes.ndim != 3 or not codes.size:
            raise ValueError(
                f"codes {codes.dtype}{list(codes.shape)} must be integers of shape (B, h, w)"
            )
        codes = _in_codebook(codes, "codes", self.codebook_size)
        return self._decode(self.params, self.variables, codes)


class LoadedDynamics(Model):
    """A dynamics model. Frames are uint8 of `image_size`; z are as its label set has them."""

    of = DynamicsStage
    what = "a dynamics model"

    image_size: tuple[int, int] = _of_model("image_size")

    @cached_property
    def _imagine(self) -> Any:
        return jax.jit(self.stage.imagine, static_argnames="temperature")

    def imagine(
        self,
        first_frames: np.ndarray,
        z: np.ndarray,
        key: jax.Array | None = None,
        *,
        temperature: float = 0.0,
    ) -> jax.Array:
        """The S frames float32 (B, S, H, W, 3) in [0, 1] that follow T first ones, uint8 (B, T, H,
        W, 3), a window of the label set apart.

        z: what follows each frame, first ones and imagined ones, T − 1 + S of them: codes int (B,
        T − 1 + S, L), or vectors float (B, T − 1 + S, L, width). The model sees as many frames as
        it was trained on clips of, less one. Temperature 0: the likeliest tokens; above, they are
        drawn by `key`. Raises ValueError for arrays of another kind or shape.
        """
        frames, z = np.asarray(first_frames), np.asarray(z)
        if frames.dtype != np.uint8 or frames.ndim != 5 or not frames.size:
            raise ValueError(
                f"first_frames {frames.dtype}{list(frames.shape)} must be uint8 of shape (B, T, "
                "height, width, 3)"
            )
        if frames.shape[2:] != (*self.image_size, 3):
            raise ValueError(
                f"first_frames of {frames.shape[2]}x{frames.shape[3]} are not of "
                f"{self.image_size[0]}x{self.image_size[1]}, as the training data were"
            )
        if z.ndim != (4 if self.stage.statistics else 3) or z.shape[0] != len(frames):
            raise ValueError(f"z of shape {list(z.shape)} is not of {len(frames)} clips")
        if z.shape[1] < frames.shape[1]:
            raise ValueError(
                f"z tells what follows {z.shape[1]} frames, and there are {frames.shape[1]} first "
                "ones: nothing is left to imagine"
            )
        if not np.isfinite(z).all():
            raise ValueError("z holds values that are not finite")
        if not 0 <= temperature < np.inf:
            raise ValueError(f"{temperature=} must be at least 0, and finite")
        if (temperature > 0) != (key is not None):
            given = "without a key" if key is None else "with a key"
            raise ValueError(f"{temperature=} {given}: drawing tokens takes both")
        key = jax.random.key(0) if key is None else key
        given = (self.params, self.variables, frames, self.stage.z(z), key)
        return self._imagine(*given, temperature=float(temperature))


class Prediction(NamedTuple):
    """What a policy says, of one example or, with a leading B, of several."""

    # z int32 (code_length,), or a float32 (action_dim,) in the data's units; (n, action_dim) of a
    # head whose answers are for n steps
    values: jax.Array
    # float32 (tokens, vocabulary): of each id of z or of the tokens of a, given those before it;
    # None of a head without tokens
    probabilities: jax.Array | None


@dataclasses.dataclass(frozen=True)
class LoadedPolicy(Model):
    """A policy; its methods are jitted and take NumPy or JAX arrays.

    Images are uint8 (H, W, 3) of `image_size` with one instruction, or (B, H, W, 3) with B; of
    several images an example (N, H, W, 3), or (B, N, H, W, 3), earliest first. A policy that was
    trained on cached image tokens needs the image tokenizer that made them.
    """

    of = PolicyStage
    what = "a policy"

    image_tokenizer: LoadedImageTokenizer | None = None

    @property
    def weights(self) -> str:
        """Of WEIGHTS: what it decodes with."""
        return "int8" if self.stage.model_config.base_dtype == "int8" else "trained"

    @property
    def image_size(self) -> tuple[int, int]:
        return self.config.data.image_size

    @property
    def execution_horizon(self) -> int:
        """Actions of an answer that are taken before the next question, where nobody says other."""
        return self.config.evaluation.execution_horizon

    @cached_property
    def _predict(self) -> Any:
        stage = self.stage

        def predict(*args, **options) -> Prediction:
            found = stage.predict(*args, **options)
            likely = None if found.logits is None else jax.nn.softmax(found.logits)
            return Prediction(found.values, likely)

        return jax.jit(predict, static_argnames=("temperature", "top_k"))

    @cached_property
    def _logits(self) -> Any:
        stage = self.stage
        heads = dict.fromkeys(stage.with_logits)
        return jax.jit(
            lambda params, variables, *rows: stage.model.apply(
                params, variables, "outputs", *rows, slots=heads
            )[0]
        )

    def logits(
        self, tokens: np.ndarray | jax.Array, modality: np.ndarray | jax.Array
    ) -> dict[str, jax.Array]:
        """Logits float32 (B, T, vocabulary) of every head of tokens, by name, for tokens int32 (B,
        T) of modality int8 (B, T): 0 text, 1 image, 2 latent, 3 action. No padding."""
        tokens, modality = np.asarray(tokens), np.asarray(modality)
        if tokens.ndim != 2 or tokens.shape != modality.shape:
            raise ValueError(
                f"tokens {tokens.shape} and modality {modality.shape} must both be (B, T)"
            )
        for name, array in (("tokens", tokens), ("modality", modality)):
            if array.dtype.kind not in "iu":
                raise ValueError(f"{name} has dtype {array.dtype}: integers are expected")
        if not np.isin(modality, range(len(WITH_IDS))).all():
            raise ValueError(f"modality holds {modality.min()} to {modality.max()}, not 0 to 3")
        for number, name in enumerate(WITH_IDS):
            ids, size = tokens[modality == number], self.stage.vocabularies[name]
            if ids.size and (ids.min() < 0 or ids.max() >= size):
                raise ValueError(
                    f"{name} ids run from {ids.min()} to {ids.max()}; the model has {size}"
                )
        rows = [jnp.asarray(x, jnp.int32) for x in (tokens, modality, np.ones_like(modality))]
        return self._logits(self.params, self.variables, *rows)

    def predict_latent(
        self, image: np.ndarray | jax.Array, instruction: str | Sequence[str], **options
    ) -> jax.Array:
        """z int32 (code_length,), or (B, code_length): greedy, or by `temperature`, `top_k` and
        `seed`."""
        self.require_head("latent")
        return self.predict(image, instruction, **options).values

    def predict_action(
        self, image: np.ndarray | jax.Array, instruction: str | Sequence[str], **options
    ) -> jax.Array:
        """a float32 (action_dim,), or (B, action_dim), in the units of the data; options as of
        `predict_latent`."""
        self.require_head("action")
        return self.predict(image, instruction, **options).values

    def predict(
        self,
        image: np.ndarray | jax.Array,
        instruction: str | Sequence[str],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int | None = None,
        state: np.ndarray | None = None,
        going_on: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Prediction:
        """What this policy's head says, with the model's probabilities (of temperature 1, among the
        ids that may be chosen). A head that begins with noise draws it by `seed`, 0 if None, the
        same for all examples: an answer is a function of the observation and the seed. `state`: the
        robot's, float (S,) or (B, S) in the units of the data, for a policy that sees it.
        `going_on`: of real-time chunking (envs/execution.py), with a head `flow`: the actions that
        the answer is to follow, (n, action_dim) or (B, n, action_dim), and their weights (n,),
        or (B, n). Raises ValueError for an image of another size or dtype, a state of another
        width, and an instruction of more than `model.text_length` tokens."""
        self._require_foresight()
        self.stage.check_sampling(temperature, top_k)
        if self.stage.head.draws:
            seed = seed or 0
        elif (seed is None) == (temperature > 0):
            raise ValueError(f"{temperature=} and {seed=}: sampling takes both")
        options = {"top_k": top_k} if top_k else {}  # heads without tokens have none
        if temperature:
            options["temperature"] = temperature
        if seed is not None:
            options["key"] = jax.random.key(seed)
        single = isinstance(instruction, str)
        check_texts(instruction)
        if going_on is not None:
            examples = () if single else (len(instruction),)
            options["going_on"] = self._going_on(*going_on, examples)
        texts = [instruction] if single else list(instruction)
        images = self._images(np.asarray(image), len(texts), single)
        own = state if state is None else np.asarray(state)[None] if single else np.asarray(state)
        ids = None
        if not self.stage.from_pixels:
            ids, images = self._image_ids(images), None
        found = self._predict(
            self.params,
            self.variables,
            self.stage.prompts(texts, ids, own),
            images,
            **options,
        )
        return jax.tree.map(lambda x: x[0], found) if single else found

    def _going_on(
        self, before: np.ndarray, weights: np.ndarray, examples: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        head = self.stage.head
        if not head.guided:
            raise ValueError(f"the head {head.name!r} cannot follow an answer before: only 'flow'")
        before, weights = np.asarray(before, np.float32), np.asarray(weights, np.float32)
        wanted = (*examples, head.horizon, head.describe()["dim"])
        if before.shape != wanted or weights.shape not in (wanted[-2:-1], wanted[:-1]):
            raise ValueError(
                f"going_on is of shapes {list(before.shape)} and {list(weights.shape)}: this "
                f"policy's actions are {list(wanted)}, and weights {list(wanted[-2:-1])}"
            )
        if not (np.isfinite(before).all() and np.isfinite(weights).all()):
            raise ValueError("going_on holds a number that is not finite")
        return before.reshape(-1, *wanted[-2:]), weights

    def require_head(self, head: str) -> None:
        """Raises ValueError where the policy predicts something else, or cannot act."""
        self._require_foresight()
        if self.stage.head.modality != head:
            raise ValueError(f"this policy predicts the {self.stage.head.modality}, not the {head}")

    def _require_foresight(self) -> None:
        if self.stage.inverse_dynamics:
            raise ValueError(
                f"{self.workdir} has model.inverse_dynamics=True: it says what was done between "
                "two frames, for `lapa label --what actions`, and cannot act"
            )

    def _images(self, image: np.ndarray, count: int, single: bool) -> np.ndarray:
        """(B, N, H, W, 3)."""
        shape = (*self.image_size, 3)
        if self.stage.num_images > 1:
            shape = (self.stage.num_images, *shape)
        expected = shape if single else (count, *shape)
        if image.dtype != np.uint8 or image.shape != expected:
            raise ValueError(
                f"image {image.dtype}{list(image.shape)} must be uint8{list(expected)}: resize it "
                "as the training data were"
            )
        return image.reshape(count, self.stage.num_images, *self.image_size, 3)

    def _image_ids(self, images: np.ndarray) -> np.ndarray:
        if self.image_tokenizer is None:
            raise ValueError(
                "this policy takes image tokens: give load_policy the image_tokenizer that made "
                "those of its training"
            )
        B, N = images.shape[:2]
        codes = self.image_tokenizer.encode(images.reshape(B * N, *images.shape[2:]))
        return np.asarray(codes).reshape(B, N, -1)


def check_texts(instruction: str | Sequence[str]) -> None:
    """ValueError for what is neither a text nor several."""
    several = isinstance(instruction, Sequence | np.ndarray) and not isinstance(instruction, bytes)
    if not (several and all(isinstance(text, str) for text in instruction)):
        raise ValueError(f"the instruction is {instruction!r:.80}, not a text or a list of texts")


def _in_codebook(codes: jax.Array, name: str, size: int) -> jax.Array:
    if ((codes < 0) | (codes >= size)).any():
        raise ValueError(
            f"{name} holds codes from {codes.min()} to {codes.max()}, the codebook has {size}"
        )
    return codes.astype(jnp.int32)


def load(workdir: str | Path, step: int | None = None) -> Model:
    """The model of a run directory at its newest good checkpoint, or at `step`: read whole, on one
    device of this process. What it can do beside goes by its stage: a LoadedQuantizer, ...

    Raises FileNotFoundError when the directory holds no checkpoint.
    """
    directory, meta = open_checkpoints(workdir, step)
    config = configs.from_dict(meta["config"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    loaded = checkpoint.load_params(directory, step, ema=averages(meta), shardings=device)
    params, params_hash = loaded.params, digest(loaded.records)
    if int8.scales(params) or lora.is_adapted(params):
        # Products round their kernels to the dtype that they compute in.
        dtype = dtype_of(config.compute_dtype)
        params = lora.merge(params, config.model.lora_alpha, dtype)
        config.model.lora_rank = 0
        if config.model.base_dtype in int8.HELD:
            config.model.base_dtype = "bfloat16" if dtype == jnp.bfloat16 else "param_dtype"
        params_hash = digest(
            {
                path: {
                    "dtype": str(x.dtype),
                    "shape": list(x.shape),
                    "checksum": checksum.of_array(x),
                }
                for path, x in flatten(params).items()
            }
        )
    stage = stages.build(config, loaded.meta["assets"])
    kinds = (LoadedQuantizer, LoadedImageTokenizer, LoadedDynamics, LoadedPolicy, Model)
    return next(kind for kind in kinds if isinstance(stage, kind.of))(
        config=config,
        stage=stage,
        params=params,
        variables=loaded.variables,
        workdir=places.directory(workdir),
        step=loaded.step,
        assets=loaded.meta["assets"],
        provenance=loaded.meta["provenance"],
        params_hash=params_hash,
    )


def load_quantizer(directory: str | Path) -> LoadedQuantizer:
    """The quantizer of a run directory, trained here or made by `lapa import`."""
    return require(load(directory), LoadedQuantizer)


def load_dynamics(directory: str | Path) -> LoadedDynamics:
    """The dynamics model of a run directory."""
    return require(load(directory), LoadedDynamics)


def load_image_tokenizer(directory: str | Path) -> LoadedImageTokenizer:
    """The image tokenizer of a run directory, trained here or made by `lapa import`."""
    return require(load(directory), LoadedImageTokenizer)


def load_policy(
    directory: str | Path,
    *,
    image_tokenizer: str | Path | LoadedImageTokenizer | None = None,
    weights: str = "trained",
) -> LoadedPolicy:
    """The policy of a run directory, trained here or made by `lapa import`, laid out for decoding.
    `image_tokenizer`: what `load_image_tokenizer` returned, or its directory. `weights`: "trained",
    or "int8", which is rounded (docs/serving.md)."""
    if isinstance(image_tokenizer, str | Path):
        image_tokenizer = load_image_tokenizer(image_tokenizer)
    policy = require(load(directory), LoadedPolicy)
    stage, params = policy.stage.for_decoding(policy.params, weights)
    return dataclasses.replace(policy, stage=stage, params=params, image_tokenizer=image_tokenizer)


def open_checkpoints(workdir: str | Path, step: int | None = None) -> tuple[Path, dict[str, Any]]:
    """(checkpoints of a run, meta)."""
    workdir = places.directory(workdir)
    if not places.is_remote(workdir):
        given_folder(workdir, "the directory of a run")
    directory = workdir / "checkpoints"
    return directory, checkpoint.load_meta(directory, step)


def newest_meta(workdir: str | Path) -> dict[str, Any] | None:
    """Meta of a run's newest good checkpoint; None where no step was saved."""
    directory = places.directory(workdir) / "checkpoints"
    if distributed.from_first(lambda: checkpoint.latest_step(directory)) is None:
        return None
    return open_checkpoints(workdir)[1]


def averages(meta: dict[str, Any]) -> bool:
    """Whether a run keeps a moving average, which is then what others use."""
    return meta["config"]["optimizer"]["ema_decay"] > 0


def digest(records: dict[str, dict]) -> str:
    """Of all parameters: names, dtypes, shapes and values, by their checksums."""
    hashed = xxhash.xxh3_128()
    for path in sorted(records, key=lambda path: path.split("/")):
        r = records[path]
        hashed.update(f"{path} {r['dtype']} {r['shape']} {r['checksum']} ".encode())
    return hashed.hexdigest()
