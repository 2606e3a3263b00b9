"""Chunks by rectified flow (Liu et al. 2022, arXiv:2209.03003): an answer is noise, moved in a few
steps along the velocities that a module beside the backbone gives.

    x_t = t · noise + (1 - t) · a,  velocity = noise - a,  t = 0.999 · Beta(1.5, 1) + 0.001

as in pi0 (Black et al. 2024, arXiv:2410.24164): t = 1 is noise, and much of the training is near
it. With the convention "noise_is_zero" (GR00T) the module is given 1 - t and gives a - noise; the
same points are trained on and passed.

Vectors past the end of an episode, and actions that are not known, are hidden from the others.

An answer may follow the one before it, which is acted on until it comes: real-time chunking (Black
et al. 2025, arXiv:2506.07339), by the Jacobian of where a point is going, as published.

Continuous latent actions may flow beside the actions, at the same t, as in ALAM: further tokens of
the module with maps of their own. They are data: no gradient reaches what made them.

Shape suffixes: B examples, R rows, k examples of a row, n vectors of an example, V numbers of a
vector.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.nn.layers import ACTIVATIONS
from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy.decoding import fed_of
from lapa_jax.policy.expert import CONDITIONING, Expert, Fed, Size
from lapa_jax.policy.heads.base import COLUMNS, Assets, Backbone, Decoded, HeadConfig, Sources
from lapa_jax.policy.heads.vectors import Normalisation, VectorHead, Vectors, masked_mean
from lapa_jax.policy.modality import LATENT, MODALITIES

FORMS = {"expert": "layers", "head": "hidden"}  # → what it sees of the backbone
CONVENTIONS = ("noise_is_one", "noise_is_zero")
LATENTS = MODALITIES[LATENT]
GUIDANCE = 5.0  # most of it, as published


@dataclass(frozen=True, kw_only=True)
class FlowConfig(HeadConfig):
    """Those of every head, and of the module beside the backbone."""

    normalisation: Normalisation = "q01_q99"
    form: Annotated[
        str,
        FORMS,
        "an expert that sees the keys and values of each layer of the backbone, or a head that "
        "sees its last hidden states",
    ] = "expert"
    dim: Annotated[int, "[2, 65536]", "width of its layers, even"] = 64
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of its feed-forwards"] = 256
    depth: Annotated[
        int, "[0, 1024]", "its layers; 0: as many as the backbone, which an expert must have"
    ] = 0
    activation: Annotated[str, ACTIVATIONS, "of its gated feed-forwards"] = "silu"
    conditioning: Annotated[
        str, CONDITIONING, "how it is told the time: beside each vector, or in norms and gates"
    ] = "concatenated"
    convention: Annotated[str, CONVENTIONS, "what it is told as the time of noise"] = "noise_is_one"
    steps: Annotated[int, "[1, 1000]", "Euler's, of an answer"] = 10
    latent_weight: Annotated[
        float,
        "[0, 1e6]",
        "of the loss of latent actions that flow beside the actions, of label sets of vectors; "
        "0.0: they do not. Examples without actions are trained on then, too",
    ] = 0.0


class FlowHead(VectorHead):
    name = "flow"
    draws = guided = True
    num_slots = vocab = 0
    settings: FlowConfig

    def __init__(self, modality: str, settings: FlowConfig, config: ConfigDict, assets: Assets):
        super().__init__(modality, settings, config, assets)
        where = f"model.targets.{modality}"
        self.beside = FORMS[settings.form]
        if settings.dim % 2:
            raise ValueError(f"{where}.dim={settings.dim} must be even: sines and cosines of time")
        self.depth = settings.depth or config.model.depth
        if settings.form == "expert" and self.depth != config.model.depth:
            raise ValueError(
                f"{where}.depth={settings.depth}: an expert has the layers of the backbone, "
                f"model.depth={config.model.depth}; set 0"
            )
        self.streams = {modality: self.vectors}
        if settings.latent_weight:
            if not self.acts:
                raise ValueError(f"{where}.latent_weight is of a head of actions: set 0.0")
            self.streams = {LATENTS: Vectors(LATENTS, config, assets)} | self.streams

    # --- On the host ---

    @staticmethod
    def columns(modality: str, config: ConfigDict) -> tuple[str, ...]:
        found = VectorHead.columns(modality, config)
        if config.model.targets[modality].latent_weight:
            found += (COLUMNS[LATENTS], "action_known")
        return found

    @staticmethod
    def make_assets(
        modality: str, settings: FlowConfig, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        found = VectorHead.make_assets(modality, settings, config, sources)
        if settings.latent_weight:
            found |= Vectors.make_assets(LATENTS, settings.normalisation, sources)
        return found

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        found = {
            self._key(stream, name): values
            for stream, vectors in self.streams.items()
            for name, values in vectors.rows(batch).items()
        }
        return np.zeros((len(found["targets"]), 0), np.int32), found

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            self._key(stream, name): shape
            for stream, vectors in self.streams.items()
            for name, shape in vectors.spec().items()
        }

    def _key(self, stream: str, name: str) -> str:
        return name if stream == self.modality else f"{stream}_{name}"

    # --- In the model ---

    def output(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        settings = self.settings
        size = Size(
            settings.dim,
            settings.mlp_dim,
            self.depth,
            settings.conditioning == "adaptive",
            settings.activation,
        )
        streams = {name: (vectors.count, vectors.dim) for name, vectors in self.streams.items()}
        return Expert(streams, size, model, sees_hidden=self.beside == "hidden", rngs=rngs)

    def draw(self, targets: Mapping[str, jax.Array], rng: jax.Array) -> dict[str, Any]:
        """Noise of each stream, and one time for each example."""
        rng, of_time = jax.random.split(rng)
        R, slots = targets["mask"].shape
        time_Rk = times(of_time, (R, slots // self.vectors.count))
        noise, on_way, known = {}, {}, {}
        for number, (name, vectors) in enumerate(self.streams.items()):
            data = targets[self._key(name, "targets")]
            key = jax.random.fold_in(rng, number)
            noise[name] = jax.random.normal(key, data.shape)
            t = jnp.repeat(time_Rk, vectors.count, axis=1)[..., None]
            on_way[name] = t * noise[name] + (1.0 - t) * data
            known[name] = targets[self._key(name, "mask")]
        return {"fed": Fed(self._told(time_Rk), on_way, known), "noise": noise}

    def loss(
        self, outputs: Mapping[str, jax.Array], targets: Mapping[str, Any]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Squared error of velocities, mean over the vectors that are known and their numbers; of
        several streams summed by their weights."""
        total, metrics = 0.0, self.out_of_range(targets)
        for name in self.streams:
            data, mask = (targets[self._key(name, what)] for what in ("targets", "mask"))
            way = self._signed(targets["noise"][name] - jax.lax.stop_gradient(data))
            loss = masked_mean(jnp.square(outputs[name] - way).mean(axis=-1), mask)
            total += loss * (1.0 if name == self.modality else self.settings.latent_weight)
            metrics[self._key(name, "velocity_error")] = loss
        if len(self.streams) == 1:
            metrics["loss_weight"] = targets["mask"].sum()
        return total, metrics

    def decode(
        self,
        model: Functional,
        params: Tree,
        variables: Tree,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        *,
        key: jax.Array | None = None,
        going_on: tuple[jax.Array, jax.Array] | None = None,
    ) -> Decoded:
        """What `key` (None: that of seed 0) draws, moved in `steps` steps. All examples begin with
        the same noise: an answer depends on the observation and the key alone. `going_on`: vectors
        (B, n, V) in the units of the data that it is to follow, by weights (n,) or (B, n)."""

        def call(method: str, *given: Any) -> Any:
            return model.apply(params, variables, method, *given)[0]

        rows = prompts["tokens"]
        given = (rows, prompts["modality"], prompts["segments"], images)
        context = call("context", *given, self.modality, fed_of(prompts))

        def velocity(x: dict[str, jax.Array], time: jax.Array) -> dict[str, jax.Array]:
            told = jnp.full((len(rows), 1), self._told(time))
            found = call("beside_it", Fed(told, x), context, self.modality)
            return jax.tree.map(self._signed, found)

        noise = {
            name: jnp.broadcast_to(drawn, (len(rows), *drawn.shape))
            for name, drawn in self.noise(key).items()
        }
        if going_on is not None:
            before, weights = self.vectors.statistics.normalise(going_on[0], jnp), going_on[1]

            def off(ended: dict[str, jax.Array]) -> dict[str, jax.Array]:
                nothing = jax.tree.map(jnp.zeros_like, ended)
                mine = weights[..., None] * (before - ended[self.modality])
                return nothing | {self.modality: mine}

            velocity = guided(velocity, off)
        found = euler(velocity, noise, self.settings.steps)
        return Decoded(self.vectors.restored(found[self.modality]))

    def noise(self, key: jax.Array | None = None) -> dict[str, jax.Array]:
        """What answers begin with, (n, V) of each stream."""
        key = key if key is not None else jax.random.key(0)
        return {
            name: jax.random.normal(jax.random.fold_in(key, number), (vectors.count, vectors.dim))
            for number, (name, vectors) in enumerate(self.streams.items())
        }

    def _told(self, time: jax.Array) -> jax.Array:
        """The time that the module is given."""
        return time if self.settings.convention == "noise_is_one" else 1.0 - time

    def _signed(self, velocity: jax.Array) -> jax.Array:
        """From noise - a to what the module gives, and back."""
        return velocity if self.settings.convention == "noise_is_one" else -velocity

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"steps": self.settings.steps}


def times(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of training: 0.999 · Beta(1.5, 1) + 0.001, by the inverse of its distribution, u^(2/3)."""
    return 0.999 * jax.random.uniform(key, shape) ** (2.0 / 3.0) + 0.001


def euler(velocity: Callable[[Any, jax.Array], Any], noise: Any, steps: int) -> Any:
    """From noise at t = 1 to data at t = 0 in so many steps of equal length; `velocity(x, t)`."""

    def step(x: Any, number: jax.Array) -> tuple[Any, None]:
        found = velocity(x, 1.0 - number / steps)
        return jax.tree.map(lambda x, v: x - v / steps, x, found), None

    return jax.lax.scan(step, noise, jnp.arange(steps))[0]


def guided(velocity: Callable[[Any, jax.Array], Any], off: Callable[[Any], Any]) -> Any:
    """The velocities that lead to where `off` is 0: `off(a)` is what the data a that a point is
    going to, x_t - t · velocity, lack. It comes back through the Jacobian of that map."""

    def found(x: Any, time: jax.Array) -> Any:
        def ended(x: Any) -> tuple[Any, Any]:
            v = velocity(x, time)
            return jax.tree.map(lambda x, v: x - time * v, x, v), v

        data, back, v = jax.vjp(ended, x, has_aux=True)
        (mended,) = back(off(data))
        weight = jnp.minimum(((1.0 - time) ** 2 + time**2) / (time * (1.0 - time)), GUIDANCE)
        return jax.tree.map(lambda v, m: v - weight * m, v, mended)

    return found
