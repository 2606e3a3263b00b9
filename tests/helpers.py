"""Tiny configs and synthetic frame pairs shared by the model tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lapa_jax.latent import Quantizer, QuantizerConfig
from lapa_jax.latent.objectives import objective_config
from lapa_jax.nn.module import Functional

NSVQ = dict(
    name="nsvq",
    dead_fraction=0.125,
    replace_every_steps=10,
    recent_size=512,
    replace_noise=0.01,
    commitment_weight=0.0,
    continuous_steps=0,
    ramp_steps=0,
)

WAYS = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)])


def quantizer_config(**changes) -> QuantizerConfig:
    settings = dict(
        image_size=(16, 16),
        num_frames=2,
        patch_size=4,
        dim=48,
        mlp_dim=96,
        heads=2,
        head_dim=16,
        spatial_depth=1,
        temporal_depth=1,
        decoder_depth=1,
        quant_dim=8,
        codebook_size=8,
        code_length=1,
        collapse_fraction=0.25,
        normalize_decay=0.0,
        bottleneck=NSVQ,
        objective={"name": "pixels"},
        predict="residual",
        spatial_sees="clip",
        legacy=False,
        compute_dtype="float32",
        attention="xla",
        remat="none",
        unroll=1,
    )
    return QuantizerConfig(**{**settings, **changes})


def moving_squares(
    key: jax.Array, batch: int, size: int = 16, frames: int = 2
) -> tuple[jax.Array, jax.Array]:
    """Clips (batch, frames, size, size, 3), of at most three frames, of a coloured 4x4 square that
    moves 3 pixels a frame in one of 8 directions."""
    place, way, tint = jax.random.split(key, 3)
    corner = jax.random.randint(place, (batch, 2), 3, size - 7)
    direction = jax.random.randint(way, (batch,), 0, 8)
    colour = jax.random.uniform(tint, (batch, 1, 1, 3), minval=0.5)
    rows, columns = np.indices((size, size))

    def draw(corner):
        top, left = corner[:, 0, None, None], corner[:, 1, None, None]
        inside = (rows >= top) & (rows < top + 4) & (columns >= left) & (columns < left + 4)
        return inside[..., None] * colour

    step = 3 * jnp.asarray(WAYS)[direction]
    return jnp.stack([draw(corner + t * step) for t in range(2 - frames, 2)], axis=1), direction


def batch_of(config: QuantizerConfig, key: jax.Array, batch: int) -> dict[str, jax.Array]:
    """Moving squares as an objective reads them: of several views by a second camera that sees them
    mirrored, and with its columns."""
    frames, direction = moving_squares(key, batch, frames=config.num_frames)
    objective, settings = objective_config(config.objective)
    if objective.views(settings):
        frames = jnp.stack([frames, frames[:, :, :, ::-1]], axis=2)
        frames = frames.reshape(batch, -1, *frames.shape[3:])
    made = {"frames": frames}
    for name, spec in objective.columns(settings).items():
        shape = (batch, *spec.shape)
        found = COLUMNS[name](frames, direction, shape) if name in COLUMNS else jnp.zeros(shape)
        made[name] = found.astype(spec.dtype)
    return made


def _actions(frames: jax.Array, direction: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What moves a square, in the first two dimensions and again in the next two, ..."""
    found = jnp.resize(jnp.asarray(WAYS)[direction].T, (shape[-1], shape[0])).T
    return jnp.broadcast_to(found.reshape(-1, *[1] * (len(shape) - 2), shape[-1]), shape)


def _flow(frames: jax.Array, direction: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of the squares, in pixels to the right and down, in as many cells a side as there are."""
    square = frames[:, 0].max(axis=-1, keepdims=True) > 0
    flow = square * 3.0 * jnp.asarray(WAYS)[direction][:, None, None, ::-1]
    cells = round(shape[1] ** 0.5)
    by_cell = flow.reshape(len(flow), cells, flow.shape[1] // cells, cells, -1, 2)
    return by_cell.mean(axis=(2, 4)).reshape(shape)


def _words(_: jax.Array, direction: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One or two words, which do not tell the direction."""
    rows = jnp.arange(shape[0])[:, None]
    return (rows % 3 + 1) * (jnp.arange(shape[1]) <= rows % 2)


COLUMNS = {
    "words": _words,
    "action": _actions,
    "action_known": lambda frames, direction, shape: jnp.arange(shape[0]) % 4 > 0,
    "action_mask": lambda frames, direction, shape: jnp.indices(shape)[0] % 4 > 0,
    "corpus": lambda frames, direction, shape: jnp.arange(shape[0]) % 2,
    "flow": _flow,
}


def at_random(model: Functional) -> tuple[Any, Any]:
    """(params, variables) without the compilation that `init` takes; integers are 0."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), model.abstract()
    )


class Training:
    """A quantizer trained on moving squares, the batch of a step the same in every run."""

    def __init__(self, config: QuantizerConfig, level: int = 1):
        self.config = config
        self.model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
        self._optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3, b2=0.99))
        # A hundred steps take longer than to compile one with some optimisation; tiny ones do not.
        quick = {"xla_backend_optimization_level": level}
        self._step = jax.jit(self._one_step, compiler_options=quick)
        self._evaluate = jax.jit(self._metrics)

    def start(self):
        """Not compiled as one program: what its few kinds of operations take is compiled once."""
        return self.model.init(jax.random.key(0))

    def run(self, params, variables, steps):
        """(params, variables, metrics on other squares) after these steps."""
        opt_state = self._optimizer.init(params)
        for i in steps:
            params, variables, opt_state = self._step(params, variables, opt_state, jnp.int32(i))
        metrics = self._evaluate(params, variables)
        return params, variables, {k: float(v) for k, v in metrics.items()}

    def _one_step(self, params, variables, opt_state, i):
        data, noise, update = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 3)
        batch = batch_of(self.config, data, 64)

        def loss(params):
            out, new = self._apply(params, variables, batch, train=True, rng=noise)
            return out["loss"], new

        (_, variables), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = self._optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return *self.model.after_update(params, variables, i, update), opt_state

    def _metrics(self, params, variables):
        batch = batch_of(self.config, jax.random.key(99), 256)
        return self._apply(params, variables, batch, train=False)[0]["metrics"]

    def _apply(self, params, variables, batch, **options):
        columns = dict(batch)
        frames = columns.pop("frames")
        return self.model.apply(params, variables, "__call__", frames, **columns, **options)
