"""What a policy is worth: its target tokens on a corpus, and its success in closed loop."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from data_pipelines.loader import DataSettings
from data_pipelines.progress import Progress
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.diagnostics.token_controls import token_controls
from lapa_jax.envs import words
from lapa_jax.envs.checked import Check, Pushes, checked_loop
from lapa_jax.envs.drive import closed_loop
from lapa_jax.envs.env import GOING_ON, OWN, Environment
from lapa_jax.envs.execution import BY_RUN, Execution, check_rate
from lapa_jax.envs.rollout import Episodes
from lapa_jax.evidence.verified import calls_report, looks_report
from lapa_jax.runs.loaded import Model
from lapa_jax.runs.usable import open_loader
from lapa_jax.stages.stage import Stage

UNDISTURBED = Pushes()


def evaluate_tokens(
    run: Model, corpora: Mapping[str, dict[str, Any]], *, max_examples: int
) -> dict[str, Any]:
    """Mean loss and accuracy of the target tokens, over a seeded sample of the corpora; where the
    policy predicts latent actions, one example a row, also the `token_controls` on the same
    examples."""
    named = {f"corpus{i}": corpus for i, corpus in enumerate(corpora.values())}
    data = DataSettings.of(run.config.data).on(named).draw_any()
    batch_size = min(run.config.global_batch, max_examples)
    steps = max(1, max_examples // batch_size)
    metrics = jax.jit(run.stage.eval_metrics)
    rows, asked, episodes = [], [], []
    latent = next((h for h in run.stage.heads if h.modality == "latent"), None)
    try:
        opened = open_loader(run.config, data, run.stage, batch_size)
    except ValueError as error:
        places = ", ".join(f"{name}: {corpus['path']}" for name, corpus in named.items())
        raise ValueError(f"{error} ({places})") from error
    with opened as loader, Progress("tokens", steps, unit="batch") as bar:
        bar.waits()
        for step in range(steps):
            batch = loader.batch(step)
            rows.append(jax.device_get(metrics(run.params, run.variables, batch)))
            if "latent_targets" in batch and run.stage.examples_per_row == 1:
                frame = batch["images"][:, -1] if "images" in batch else None
                asked.append((np.asarray(batch["latent_targets"]), frame))
                episodes += [(one["corpus"], one["episode"]) for one in loader.describe(step)]
            bar.update()
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    means["examples"] = steps * batch_size
    if not asked or not np.issubdtype(asked[0][0].dtype, np.integer):
        return means
    tokens, frames = (None if x[0] is None else np.concatenate(x) for x in zip(*asked, strict=True))
    episode = np.unique(np.array(episodes), axis=0, return_inverse=True)[1].reshape(-1)
    controls = token_controls(tokens, episode, frames, latent.vocab)
    prefix = "latent_" if len(run.stage.heads) > 1 else ""
    return means | {f"{prefix}{name}": value for name, value in controls.items()}


@dataclasses.dataclass(frozen=True)
class SuccessEvaluation:
    report: dict[str, Any]
    rollouts: Episodes
    instructions: list[str]
    calls: np.ndarray  # int (episodes,), of the policy until the end of each


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
    how: Execution = BY_RUN,
    check: Check | None = None,
    pushes: Pushes = UNDISTURBED,
) -> SuccessEvaluation:
    """Closed-loop success of a policy from the fixed start states of (seed, family), with a Wilson
    interval. Actions beyond the environment's bounds are clipped to them, and counted.

    Actions are the likeliest ones, or drawn at a `temperature` among the `top_k` likeliest; `how`
    chunks of them are acted on; `phrasings` of instructions are as of `envs.words`. Images are
    those of `view` (default: the first one); a policy that sees the robot's state gets the
    environment's. With a `check` chunks may end early (a verifier's `watch()`, world/verifier.py),
    with `pushes` the world moves the robot now and then. Raises ValueError for a stage that does
    not act, one that takes several images an example, one that was trained with states of another
    width or at another rate of control, and one whose chunks are too short for `how`; and as
    `checked_loop`.
    """
    config, stage = policy.config, policy.stage
    check_acts(policy, env)
    stage.check_sampling(temperature, top_k)
    how = how.of(config.evaluation.execution_horizon)
    how.check(stage.head.horizon)
    own = _own(policy, env, episodes)
    states = env.evaluation_states(seed, family, episodes)
    instructions = words.of_all(env, phrasings, states, family, seed)
    asked = (
        env,
        jax.tree_util.Partial(acting(stage, temperature, top_k), policy.params, policy.variables),
        states,
        stage.prompts(instructions, own=own) | _told(stage, own, how, episodes),
        jax.random.key(seed),
    )
    options = dict(steps=env.spec.horizon, view=view, size=config.data.image_size, how=how)
    checked = None
    if check is not None or pushes.push_rate:
        if pushes.push_rate:
            options["pushes_NTA"] = pushes.drawn(env.spec, seed, episodes, env.spec.horizon)
        checked = checked_loop(*asked, **options, check=check)
        found, calls = checked.episodes, checked.calls
    else:
        found = closed_loop(*asked, **options)
        calls = -(-np.asarray(found.length) // how.execute)
    successes, clipped = int(np.sum(found.success)), int(np.sum(found.clipped))
    if clipped:
        logging.warning(
            "%s: %d of %d actions were beyond the bounds of %s and were clipped to them",
            *(family, clipped, np.sum(found.length), env.spec.name),
        )
    report = {
        "family": family,
        "successes": successes,
        "episodes": episodes,
        "steps": env.spec.horizon,
        "clipped": clipped,
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        "prediction_horizon": stage.head.horizon,
        "execution_horizon": how.execute,
        "control_hz": env.spec.control_hz,
        **(
            {"ensemble": how.ensemble, "ensemble_decay": how.ensemble_decay}
            if how.ensembles
            else {}
        ),
        **({"delay": how.delay} if how.delay else {}),
        **(dataclasses.asdict(pushes) if pushes.push_rate else {}),
        **calls_report(calls, np.asarray(found.length)),
        **({} if check is None else looks_report(checked)),
        **wilson_interval(successes, episodes).as_dict(),
    }
    return SuccessEvaluation(report, found, instructions, calls)


def check_acts(policy: Model, env: Environment) -> None:
    """Raises ValueError for a run that says no actions, takes several images, or was trained at
    another rate of control than the environment's."""
    stage = policy.stage
    if not stage.acts:
        kind = policy.config.stage
        raise ValueError(f"{policy.workdir} is a run of stage {kind!r}: it has no actions")
    if stage.num_images > 1:
        raise ValueError(
            f"{policy.workdir} takes {stage.num_images} images an example: the closed loop gives "
            "one"
        )
    check_rate(policy.control_hz, env.spec.control_hz, str(policy.workdir), env.spec.name)


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


def _told(stage: Stage, own: np.ndarray | None, how: Execution, episodes: int) -> dict[str, Any]:
    """What a policy is told at each question, as it is before the first one."""
    found = {} if own is None else {OWN: own}
    if how.delay and stage.head.guided:
        n, dim = stage.head.horizon, stage.head.describe()["dim"]
        found[GOING_ON] = np.zeros((episodes, n, dim), np.float32), np.zeros(n, np.float32)
    return found


@functools.lru_cache(maxsize=4)
def acting(stage: Stage, temperature: float = 0.0, top_k: int = 0) -> Callable[..., jax.Array]:
    """(params, variables, images (B, H, W, 3), prompts, key) → actions (B, A), or chunks of them
    (B, n, A). One function for all families and evaluations, so that it is compiled once."""

    def act(params, variables, images, prompts, key):
        options = dict(temperature=temperature, top_k=top_k, key=key) if temperature else {}
        if stage.draws:
            options["key"] = key
        told = {name: prompts[name] for name in (OWN, GOING_ON) if name in prompts}
        prompts = {name: x for name, x in prompts.items() if name not in told}
        if OWN in told:
            prompts["state"] = stage.state.fed(told[OWN], jnp)
        if GOING_ON in told:
            options["going_on"] = told[GOING_ON]
        return stage.act(params, variables, prompts, images[:, None], **options)

    return act
