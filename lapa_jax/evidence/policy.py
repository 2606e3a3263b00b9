"""What a policy is worth: its target tokens on a corpus, and its success in closed loop."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loader import DataSettings
from data_pipelines.progress import Progress
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.envs.drive import closed_loop
from lapa_jax.envs.env import OWN, Environment
from lapa_jax.envs.rollout import Episodes
from lapa_jax.runs.loaded import Model
from lapa_jax.runs.usable import open_loader
from lapa_jax.stages.stage import Stage


def evaluate_tokens(
    run: Model, corpora: Mapping[str, dict[str, Any]], *, max_examples: int
) -> dict[str, float]:
    """Mean loss and accuracy of the target tokens, over a seeded sample of the corpora."""
    named = {f"corpus{i}": corpus for i, corpus in enumerate(corpora.values())}
    data = DataSettings.of(run.config.data).on(named).draw_any()
    batch_size = min(run.config.global_batch, max_examples)
    steps = max(1, max_examples // batch_size)
    metrics = jax.jit(run.stage.eval_metrics)
    rows = []
    with (
        open_loader(run.config, data, run.stage, batch_size) as loader,
        Progress("tokens", steps, unit="batch") as bar,
    ):
        bar.waits()
        for step in range(steps):
            rows.append(jax.device_get(metrics(run.params, run.variables, loader.batch(step))))
            bar.update()
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"examples": steps * batch_size}


@dataclasses.dataclass(frozen=True)
class SuccessEvaluation:
    report: dict[str, Any]
    rollouts: Episodes
    instructions: list[str]


def evaluate_success(
    policy: Model,
    env: Environment,
    family: str,
    *,
    episodes: int,
    seed: int,
    view: str = "",
    phrasings: str = "train",
    temperature: float = 0.0,
    top_k: int = 0,
    execute: int = 1,
) -> SuccessEvaluation:
    """Closed-loop success of a policy from the fixed start states of (seed, family), with a Wilson
    interval.

    Actions are the likeliest ones, or drawn at a `temperature` among the `top_k` likeliest;
    of several at once, `execute` are taken before the policy is asked again. Images are those of
    `view` (default: the first one); a policy that sees the robot's state gets the environment's.
    Raises ValueError for a stage that does not act, one that takes several images an example, and
    one that was trained with states of another width.
    """
    config, stage = policy.config, policy.stage
    if not stage.acts:
        raise ValueError(f"{policy.workdir} is a run of stage {config.stage!r}: it has no actions")
    if stage.num_images > 1:
        raise ValueError(
            f"{policy.workdir} takes {stage.num_images} images an example: the closed loop gives "
            "one"
        )
    stage.check_sampling(temperature, top_k)
    own = _own(policy, env, episodes)
    states = env.evaluation_states(seed, family, episodes)
    known = np.array(env.phrasings(phrasings))
    instructions = env.instructions(states, known[np.arange(episodes) % len(known)])
    found = closed_loop(
        env,
        jax.tree_util.Partial(_acting(stage, temperature, top_k), policy.params, policy.variables),
        states,
        stage.prompts(instructions, own=own) | ({} if own is None else {OWN: own}),
        jax.random.key(seed),
        steps=env.spec.horizon,
        view=view,
        size=config.data.image_size,
        execute=execute,
    )
    successes = int(np.sum(found.success))
    report = {
        "family": family,
        "successes": successes,
        "episodes": episodes,
        "steps": env.spec.horizon,
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        **wilson_interval(successes, episodes).as_dict(),
    }
    return SuccessEvaluation(report, found, instructions)


def _own(policy: Model, env: Environment, episodes: int) -> np.ndarray | None:
    """What stands for the robot's states before the first question."""
    if policy.stage.state is None:
        return None
    names, dim = env.spec.state, policy.stage.state.dim
    if len(names) != dim:
        raise ValueError(
            f"{policy.workdir} was trained with states of {dim} numbers, {env.spec.name} has "
            f"{len(names)} ({', '.join(names) or 'none'})"
        )
    return np.zeros((episodes, dim), np.float32)


@functools.lru_cache(maxsize=4)
def _acting(stage: Stage, temperature: float, top_k: int) -> Callable[..., jax.Array]:
    """One function for all families and evaluations, so that it is compiled once."""

    def act(params, variables, images, prompts, key):
        options = dict(temperature=temperature, top_k=top_k, key=key) if temperature else {}
        if stage.head.draws:
            options["key"] = key
        if OWN in prompts:
            rest = {name: x for name, x in prompts.items() if name != OWN}
            prompts = rest | {"state": stage.state.fed(prompts[OWN], jnp)}
        return stage.act(params, variables, prompts, images[:, None], **options)

    return act
