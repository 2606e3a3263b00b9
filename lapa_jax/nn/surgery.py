"""Carrying pretrained parameters into a model with other heads.

Nothing is matched by guess: a parameter is taken, dropped or newly initialised, and the report
lists each. Anything beyond what the patterns allow is an error that names the parameters.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lapa_jax.nn import int8
from lapa_jax.nn.module import Functional, Tree, flatten, unflatten

HEADS = ("embeddings/*", "heads/*", "front_end/*")
ADAPTERS = ("*/lora_a", "*/lora_b")  # may be new; never dropped, since kernels lack what they know
# What the shapes of a policy's parameters follow, by their paths.
KEYS = {
    "embeddings/state/*": "what data.corpora.<name>.state_key names",
    "*/action/*": "data.action_horizon, model.targets.action or the actions",
    "*/latent/*": "config.code_length or model.targets.latent",
    "*/text/*": "model.text_vocab",
}


class Borrowed(NamedTuple):
    """Frozen weights of a model that are those of another run: where a config names the run, what
    that run must be, and whose weights are taken."""

    key: str  # of the config
    run: str  # the workdir that stands there
    hint: str  # what to name there
    stage: str  # of the run
    settings_key: str  # where the config has the `settings` that its model must have (JSON values)
    settings: Mapping[str, Any]  # by dotted names
    theirs: str  # a branch of its parameters; empty: all that it has
    ours: str  # path of a branch of the variables


@dataclass(frozen=True)
class SwapReport:
    """Paths of parameters: taken from the pretrained tree (some from bfloat16 to float32, which is
    exact: `widened`; some in fewer bits: `held`), dropped from it, newly initialised."""

    taken: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]
    widened: tuple[str, ...]
    held: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{len(self.taken)} parameters taken, {len(self.widened)} of them widened from "
            f"bfloat16, {len(self.held)} held in fewer bits; dropped: {list(self.dropped)}; newly "
            f"initialised: {list(self.initialised)}"
        )


def head_swap(
    plan: SwapReport,
    taken: Mapping[str, jax.Array],
    target: Functional,
    key: jax.Array,
    shardings: Mapping[str, Any] | None = None,
) -> Tree:
    """Parameters of `target`: those that the plan takes, by path (with the scales of those that it
    holds), and new ones. Only the new ones are computed, each where `shardings` (by path) says."""
    merged = dict(taken)
    for path in plan.widened:
        merged[path] = merged[path].astype(jnp.float32)
    if plan.initialised:
        where = {path: shardings[path] for path in plan.initialised} if shardings else None

        def fresh(key: jax.Array) -> dict[str, jax.Array]:
            params = flatten(target.init(key)[0])
            return {path: params[path] for path in plan.initialised}

        merged |= jax.jit(fresh, out_shardings=where)(key)
    return unflatten(merged)


def _key(path: str) -> str:
    """Of a config: what a parameter's shape follows."""
    return next(
        (key for pattern, key in KEYS.items() if fnmatchcase(path, pattern)), "config.model"
    )


def plan_swap(
    pretrained: Tree,
    target: Tree,
    *,
    may_change: Sequence[str] = HEADS,
    held: Collection[str] = (),
) -> SwapReport:
    """What of `pretrained` becomes of `target`; both trees may be abstract. Only paths matching
    `may_change` (shell patterns) may be dropped or missing. `held`: paths of `target` that are in
    fewer bits (`Functional.held`)."""
    have, want = flatten(pretrained), flatten(target)
    scales = set(int8.scales(target).values())  # come with their values
    taken, initialised, widened, coarser = [], [], [], []
    for path, leaf in want.items():
        if path in scales and path.removesuffix(int8.SCALE) in have:
            continue
        if path not in have:
            initialised.append(path)
            continue
        if path in held and leaf.dtype != have[path].dtype:
            coarser.append(path)
        elif (have[path].dtype, leaf.dtype) == (jnp.bfloat16, jnp.float32):
            widened.append(path)
        elif leaf.dtype != have[path].dtype:
            raise ValueError(
                f"parameter {path} is {have[path].dtype} in the checkpoint and {leaf.dtype} in the "
                "model: set model.param_dtype to the checkpoint's"
            )
        if leaf.shape != have[path].shape:
            raise ValueError(
                f"parameter {path} is {have[path].dtype}{list(have[path].shape)} in the "
                f"checkpoint and {leaf.dtype}{list(leaf.shape)} in the model: change "
                f"{_key(path)} to what the checkpoint has"
            )
        taken.append(path)
    dropped = [path for path in have if path not in want]
    for what, names, allowed in (
        ("lacks", initialised, (*may_change, *ADAPTERS)),
        ("has unused", dropped, may_change),
    ):
        wrong = [path for path in names if not _matches(path, allowed)]
        if wrong:
            raise ValueError(
                f"the checkpoint {what} {wrong[:8]} ({len(wrong)} in all), which may not change "
                f"(allowed: {list(may_change)})"
            )
    return SwapReport(*map(tuple, (taken, dropped, initialised, widened, coarser)))


def hold(
    path: str, x: jax.Array, target: Mapping[str, Any], shardings: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], float]:
    """({path: array} of a parameter as `target` (by path) holds it, with its scale where it has
    one, each where `shardings` (by path) says; by how much that is off, as a part of its RMS)."""
    dtype, scale = target[path].dtype, path + int8.SCALE
    if dtype == jnp.int8:
        where = {path: shardings[path], scale: shardings[scale]}
        shape = target[scale].shape

        def made(x: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
            values, found = int8.quantize(x, shape)
            return {path: values, scale: found}, int8.relative_error(x, values, found)
    else:
        where = {path: shardings[path]}

        def made(x: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
            y = x.astype(dtype)
            return {path: y}, int8.relative_error(x, y, jnp.ones((1,) * x.ndim))

    held, error = jax.jit(made, out_shardings=(where, None))(x)
    if not jnp.isfinite(error):
        raise ValueError(f"parameter {path} holds NaN or infinity: it cannot be held as {dtype}")
    return held, float(error)


def held(params: Tree, target: Functional) -> Tree:
    """Floats as `target` holds them, each where it is. Takes them out of `params`, so that there is
    at most one of them twice at a time."""
    wanted = flatten(target.abstract()[0])
    for path in sorted(target.held & flatten(params).keys()):
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node[parent]
        x = node.pop(name)
        found, _ = hold(path, x, wanted, dict.fromkeys((path, path + int8.SCALE), x.sharding))
        node |= {at.rsplit("/", 1)[-1]: y for at, y in found.items()}
    return params


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
