"""`lapa evaluate`: what latent actions are worth; how well a policy predicts and acts.

A quantizer is measured on all pairs of a corpus; a policy on tokens of a corpus and, with the
action head, by closed-loop success on the tabletop from a fixed list of start states.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.loader import Loader
from lapa_jax import pairs, runs
from lapa_jax.diagnostics import codebook, probes
from lapa_jax.diagnostics.embodiment import embodiment_report
from lapa_jax.diagnostics.reconstruction import image_errors, reconstruction_report
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.envs.rollout import Rollouts, rollout
from lapa_jax.envs.tabletop import SceneConfig, Tabletop
from lapa_jax.transfer import evaluate_transfer


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa evaluate",
        description="Diagnostics of a quantizer, or token metrics and closed-loop success of a "
        "policy. The result is JSON.",
        epilog="example: lapa evaluate --workdir runs/action_vla --families reach --blocks 4",
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument(
        "--corpus", action="append", help="directory to evaluate on; default: the training corpora"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--max_examples", type=int, default=2000, help="per corpus")
    parser.add_argument(
        "--paired", action="store_true", help="the two corpora show the same episodes (quantizer)"
    )
    parser.add_argument(
        "--transfer",
        type=int,
        default=0,
        help="motions to take to another scene of the tabletop (quantizer); 0: none",
    )
    loop = parser.add_argument_group("the tabletop: closed loop of action policies, transfer")
    loop.add_argument("--families", default="reach", help="comma-separated")
    loop.add_argument("--blocks", type=int, default=4)
    loop.add_argument("--episodes", type=int, default=200, help="per family; 0: no closed loop")
    loop.add_argument("--steps", type=int, default=40, help="of an episode")
    loop.add_argument("--view", default="robot")
    loop.add_argument("--seed", type=int, default=0, help="of the start states")
    parser.add_argument("--json", default="", help="write the result to this file, too")
    args = parser.parse_args(argv)

    run = runs.load(args.workdir)
    if args.corpus:
        corpora = {path: {"path": path, "split": args.split} for path in args.corpus}
    else:
        corpora = {name: c.to_dict() for name, c in run.config.data.corpora.items()}
    result: dict[str, Any] = {"workdir": str(run.workdir), "step": run.step}
    if run.config.stage == "quantizer":
        found = {
            name: evaluate_quantizer(run, corpus, max_pairs=args.max_examples)
            for name, corpus in corpora.items()
        }
        result |= {name: one.report for name, one in found.items()}
        if args.paired:
            if len(found) != 2:
                raise ValueError(f"--paired compares two corpora, there are {sorted(found)}")
            size = run.stage.model_config.codebook_size
            result["paired_views"] = evaluate_paired_views(*found.values(), size)
        if args.transfer:
            env = Tabletop(SceneConfig(args.blocks, tuple(args.families.split(",")), args.steps))
            result["transfer"] = evaluate_transfer(
                run, env, episodes=args.transfer, seed=args.seed, view=args.view
            )
    else:
        result["tokens"] = evaluate_tokens(run, corpora, max_examples=args.max_examples)
    if run.config.stage == "action_finetuning" and args.episodes:
        families = tuple(args.families.split(","))
        env = Tabletop(SceneConfig(args.blocks, families, args.steps))
        result["success"] = {
            family: evaluate_success(
                run, env, family, episodes=args.episodes, seed=args.seed, view=args.view
            ).report
            for family in families
        }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if args.json:
        with open(args.json, "w") as file:
            file.write(text + "\n")
    return 0


@dataclasses.dataclass(frozen=True)
class QuantizerEvaluation:
    """The report, and N pairs with what the quantizer makes of them."""

    report: dict[str, Any]
    first: np.ndarray  # uint8 (N, H, W, 3)
    last: np.ndarray  # uint8 (N, H, W, 3)
    recon: np.ndarray  # float32 (N, H, W, 3)
    z: np.ndarray  # int32 (N, code_length)
    actions: np.ndarray | None  # float32 (N, A), summed over the window
    latents: np.ndarray  # float32 (N, code_length, quant_dim), before the bottleneck
    episode: np.ndarray  # int (N,)


def evaluate_quantizer(run: runs.Run, corpus: dict, *, max_pairs: int) -> QuantizerEvaluation:
    """Code usage, reconstruction and, where there are actions, a probe from z to them; with
    episode-bootstrap 95 % intervals.

    Takes at most `max_pairs` pairs, evenly spread over the corpus.
    """
    pairs.require_quantizer(run)
    source = pairs.Pairs(run.config, corpus)
    every = max(1, -(-len(source.rows) // max_pairs))
    rows = source.rows[::every]

    @jax.jit
    def reconstruct(params, variables, first, last):
        z = run.stage.quantize(params, variables, first, last)
        latent = run.stage.encode(params, variables, first, last)
        return z, latent, run.stage.decode(params, variables, first, z)

    kept = []
    for batch in source.batches(rows):
        outputs = reconstruct(run.params, run.variables, batch.first, batch.last)
        outputs = (np.asarray(x)[: batch.size][batch.good] for x in outputs)
        first, last = (x[: batch.size][batch.good] for x in (batch.first, batch.last))
        z, latent, recon = outputs
        errors = np.stack(image_errors(first, last, recon), axis=1)
        kept.append((first, last, recon, z, latent, errors, batch.rows[batch.good]))
    first, last, recon, z, latents, errors, rows = (
        np.concatenate(x) for x in zip(*kept, strict=True)
    )
    size = run.stage.model_config.codebook_size
    episode = source.index.episode_of_rows(rows[:, 0])
    report = {"pairs": len(z), "window_seconds": source.window_seconds}
    report["codes"] = codebook.codebook_report(z, size)
    report["codes"] |= codebook.codebook_intervals(z, size, episode, seed=0)
    report["reconstruction"] = reconstruction_report(*errors.T, episode, seed=0)
    actions = source.actions(rows)
    if actions is not None:
        report["probe"] = probes.probe_latent_actions(
            z,
            actions,
            episode,
            size,
            seed=0,
            first_frames=first,
            extra={"continuous_latent": latents.reshape(len(latents), -1)},
        )
    return QuantizerEvaluation(report, first, last, recon, z, actions, latents, episode)


def evaluate_paired_views(
    one: QuantizerEvaluation, other: QuantizerEvaluation, codebook_size: int
) -> dict[str, Any]:
    """Whether the same motion in two views is the same latent action: corpora that hold the same
    episodes, as `lapa data collect --views A,B` writes them."""
    if len(one.z) != len(other.z) or (one.episode != other.episode).any():
        raise ValueError(
            f"the views are not paired: {len(one.z)} and {len(other.z)} pairs of "
            f"{len(np.unique(one.episode))} and {len(np.unique(other.episode))} episodes"
        )
    flat = tuple(v.latents.reshape(len(v.latents), -1) for v in (one, other))
    return embodiment_report(
        (one.z, other.z), flat, one.actions, one.episode, codebook_size, seed=0
    )


def evaluate_tokens(run: runs.Run, corpora: dict[str, dict], *, max_examples: int) -> dict:
    """Mean loss and accuracy of the target tokens, over a seeded sample of the corpora."""
    data = ConfigDict(run.config.data.to_dict())
    template = next(iter(data.corpora.values())).to_dict()
    data.corpora = ConfigDict(
        {f"corpus{i}": template | corpus for i, corpus in enumerate(corpora.values())}
    )
    batch_size = min(run.config.global_batch, max_examples)
    steps = max(1, max_examples // batch_size)
    metrics = jax.jit(run.stage.eval_metrics)
    rows = []
    with Loader(
        data,
        fields=run.stage.fields,
        global_batch=batch_size,
        seed=run.config.seed,
        prepare=run.stage.prepare,
    ) as loader:
        for step in range(steps):
            rows.append(jax.device_get(metrics(run.params, run.variables, loader.batch(step))))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"examples": steps * batch_size}


@dataclasses.dataclass(frozen=True)
class SuccessEvaluation:
    report: dict[str, Any]
    rollouts: Rollouts
    instructions: list[str]


def evaluate_success(
    run: runs.Run,
    env: Tabletop,
    family: str,
    *,
    episodes: int,
    seed: int,
    view: str = "robot",
    phrasings: str = "train",
) -> SuccessEvaluation:
    """Closed-loop success from the fixed start states of (seed, family), with a Wilson interval."""
    if run.config.stage != "action_finetuning":
        raise ValueError(f"{run.workdir} is a run of stage {run.config.stage!r}: it has no actions")
    states = env.evaluation_states(seed, family, episodes)
    known = np.array(env.phrasings(phrasings))
    instructions = env.instructions(states, known[np.arange(episodes) % len(known)])
    text, mask = run.stage.tokenizer.encode(instructions)

    def act(params, images, tokens, key):
        del key  # greedy
        return run.stage.act(params, run.variables, images, *tokens)

    found = rollout(
        env,
        jax.tree_util.Partial(act, run.params),
        states,
        (text, mask),
        jax.random.key(seed),
        steps=env.spec.horizon,
        view=view,
        size=run.config.data.image_size[0],
    )
    successes = int(np.sum(found.success))
    interval = wilson_interval(successes, episodes)
    report = {
        "family": family,
        "successes": successes,
        "episodes": episodes,
        "steps": env.spec.horizon,
        "seed": seed,
        **interval.as_dict(),
    }
    return SuccessEvaluation(report, found, instructions)
