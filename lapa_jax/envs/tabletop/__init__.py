"""A Language-Table-like planar pushing world in pure JAX: it jits, vmaps and draws itself.

`Tabletop(SceneConfig(...))` is hashable and holds no arrays. Its methods are pure functions of
one unbatched State (vmap them); only languages and seeds run on the host.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs.env import EnvSpec, Size
from lapa_jax.envs.tabletop import expert as _expert
from lapa_jax.envs.tabletop import language, physics, tasks
from lapa_jax.envs.tabletop import render as _render
from lapa_jax.envs.tabletop.state import (
    CONTROL_HZ,
    FAMILIES,
    FULL,
    MAX_STEP,
    SceneConfig,
    State,
)
from lapa_jax.envs.tabletop.views import VIEWS, camera_place

__all__ = ["FAMILIES", "FULL", "SceneConfig", "State", "Tabletop", "VIEWS"]

_TRAIN, _EVALUATE = 0x7EA1, 0xE7A1  # domains of the seed space


@dataclasses.dataclass(frozen=True)
class Tabletop:
    """The environment of one SceneConfig (see lapa_jax/envs/env.py for the protocol)."""

    Settings = SceneConfig
    scene: SceneConfig = SceneConfig()

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="tabletop",
            tasks=self.scene.families,
            actions=("x", "y"),
            action_low=(-MAX_STEP, -MAX_STEP),
            action_high=(MAX_STEP, MAX_STEP),
            action_units=("metres a step, to the right", "metres a step, up"),
            control_hz=CONTROL_HZ,
            horizon=self.scene.horizon,
            views=tuple(VIEWS),
            cameras=("robot",),
            image_size=(64, 64),
            state=("x", "y"),
            traceable=True,
            moving_views=tuple(name for name, view in VIEWS.items() if view.sway),
        )

    @staticmethod
    def available() -> str:
        return ""

    def reset(self, key: jax.Array, task: jax.Array | int | str | None = None) -> State:
        """A fresh scene and task. task: the name of a family, an index into FAMILIES, or None for
        any of scene.families. A traced index is not checked against scene.families."""
        if isinstance(task, (int, np.integer)):
            if not 0 <= task < len(FAMILIES):
                raise ValueError(f"family {task} is not within 0..{len(FAMILIES) - 1}")
            task = FAMILIES[task]
        if isinstance(task, str):
            task = self._index(task)
        return tasks.sample_state(key, task, self.scene)

    def _index(self, family: str) -> int:
        if family not in self.scene.families:
            raise ValueError(
                f"family {family!r} is not one of {list(self.scene.families)} "
                "(SceneConfig.families)"
            )
        return FAMILIES.index(family)

    def resets(self, keys: jax.Array, families: jax.Array) -> State:
        """A batch of start states, jitted; families: indices into FAMILIES, one per key."""
        return _reset_batch(self, keys, families)

    def step(self, state: State, action: jax.Array) -> State:
        return physics.step(state, action)

    def success(self, state: State) -> jax.Array:
        return tasks.success(state)

    def expert(self, state: State) -> jax.Array:
        return _expert.expert(state)

    def render(self, state: State, size: Size = 64, view: str = "robot") -> jax.Array:
        """uint8 (height, width, 3); what is not square shows more of the table's longer side."""
        return _render.render(state, size, view)

    def proprioception(self, state: State) -> jax.Array:
        """(2,): where the effector is, metres."""
        return state.effector

    def camera_motion(self, state: State, view: str) -> jax.Array:
        """(2,): by how much the camera moves to the next step, metres."""
        later = state.replace(time=state.time + 1)
        return camera_place(VIEWS[view], later) - camera_place(VIEWS[view], state)

    # Language, on the host.

    def phrasings(self, split: str = "train") -> range:
        """Phrasing numbers of "train", "held_out" or "all"."""
        return language.phrasings(split)

    def tasks_of(self, states: State) -> list[str]:
        """The family of each of a batch of states."""
        return [FAMILIES[f] for f in np.atleast_1d(np.asarray(states.family))]

    def tasks(self, states: State) -> list[language.Task]:
        """The tasks of a batch of states (one leading axis, or none for a single state)."""
        family, a, b, which = (
            np.atleast_1d(np.asarray(v)) for v in (states.family, states.a, states.b, states.which)
        )
        kinds = np.atleast_2d(np.asarray(states.kinds))
        two = [FAMILIES[f] in language.TWO_BLOCKS for f in family]
        return [
            language.Task(
                int(family[i]),
                int(kinds[i, a[i]]),
                int(kinds[i, b[i]]) if two[i] else -1,
                int(which[i]),
            )
            for i in range(len(family))
        ]

    def instructions(self, states: State, phrasing: int | np.ndarray = 0) -> list[str]:
        """Strings of a batch of states; phrasing: one number for all, or one per state."""
        found = self.tasks(states)
        numbers = np.broadcast_to(np.asarray(phrasing), (len(found),))
        return [language.instruction(t, int(p)) for t, p in zip(found, numbers, strict=True)]

    def all_instructions(self, split: str = "train") -> list[str]:
        """Every string possible in this scene config (for training a tokenizer)."""
        return language.all_instructions(self.scene.families, split)

    # Seeds. Training and evaluation draw from disjoint domains whatever the seeds.

    def training_keys(self, seed: int, n: int) -> jax.Array:
        """n reset keys for collecting data."""
        return jax.random.split(jax.random.fold_in(jax.random.key(seed), _TRAIN), n)

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> State:
        """Fixed start states of a family, batched; never those of `training_keys`."""
        index = self._index(task)
        key = jax.random.fold_in(jax.random.key(seed), _EVALUATE)
        keys = jax.random.split(jax.random.fold_in(key, index), first + n)[first:]
        return self.resets(keys, jnp.full((n,), index, jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def _reset_batch(env: Tabletop, keys: jax.Array, families: jax.Array) -> State:
    return jax.vmap(lambda k, f: tasks.sample_state(k, f, env.scene))(keys, families)
