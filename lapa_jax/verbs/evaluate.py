"""`lapa evaluate`: what latent actions are worth; how well a policy predicts and acts.

A quantizer is measured on all pairs of a corpus; a policy on tokens of a corpus and, with the
action head, by closed-loop success on the tabletop from a fixed list of start states.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.loader import Loader
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.envs.rollout import Rollouts, rollout
from lapa_jax.envs.tabletop import SceneConfig, Tabletop
from lapa_jax.evidence import page
from lapa_jax.evidence.quantizer import evaluate_paired_views, evaluate_quantizer, in_depth
from lapa_jax.evidence.simulated import evaluate_distractors, evaluate_transfer
from lapa_jax.runs import examples
from lapa_jax.runs import run as runs
from lapa_jax.runs.examples import trained_window


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
    parser.add_argument(
        "--window_seconds",
        type=float,
        default=0.0,
        help="between the frames of a pair (quantizer); 0: that of the training",
    )
    parser.add_argument("--max_examples", type=int, default=2000, help="per corpus")
    parser.add_argument(
        "--paired", action="store_true", help="the two corpora show the same episodes (quantizer)"
    )
    parser.add_argument(
        "--simulate",
        type=int,
        default=0,
        help="motions of the tabletop for what needs a simulator: transfer to another scene, "
        "distractors (quantizer); 0: none",
    )
    parser.add_argument("--report", default="", help="an HTML report (quantizer)")
    loop = parser.add_argument_group("the tabletop: closed loop of action policies, transfer")
    loop.add_argument("--families", default="reach", help="comma-separated")
    loop.add_argument("--blocks", type=int, default=4)
    loop.add_argument("--episodes", type=int, default=200, help="per family; 0: no closed loop")
    loop.add_argument("--steps", type=int, default=40, help="of an episode")
    loop.add_argument("--view", default="robot")
    loop.add_argument("--seed", type=int, default=0, help="of the start states")
    loop.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest tokens")
    loop.add_argument("--top_k", type=int, default=0, help="sample among so many; 0: all")
    parser.add_argument("--json", default="", help="write the result to this file, too")
    args = parser.parse_args(argv)

    run = runs.load(args.workdir)
    if run.config.stage in ("teacher", "image_tokenizer"):
        raise ValueError(
            f"{run.workdir} is of stage {run.config.stage!r}: nothing is evaluated but what a "
            "teacher's metrics.jsonl tells"
        )
    if args.corpus:
        corpora = {path: {"path": path, "split": args.split} for path in args.corpus}
    else:
        corpora = {name: c.to_dict() for name, c in run.config.data.corpora.items()}
    result: dict[str, Any] = {"workdir": str(run.workdir), "step": run.step}
    if run.config.stage == "quantizer":
        result |= _quantizer(run, corpora, args)
    else:
        result["tokens"] = evaluate_tokens(run, corpora, max_examples=args.max_examples)
    if run.config.stage == "action_finetuning" and args.episodes:
        families = tuple(args.families.split(","))
        env = Tabletop(SceneConfig(args.blocks, families, args.steps))
        result["success"] = {
            family: evaluate_success(
                run,
                env,
                family,
                episodes=args.episodes,
                seed=args.seed,
                view=args.view,
                temperature=args.temperature,
                top_k=args.top_k,
            ).report
            for family in families
        }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if args.json:
        with open(args.json, "w") as file:
            file.write(text + "\n")
    return 0


def _quantizer(run: runs.Run, corpora: dict[str, dict], args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of a quantizer; writes the report where one is asked for."""
    if args.paired and len(corpora) != 2:
        raise ValueError(f"--paired compares two corpora, there are {sorted(corpora)}")
    found, frames = {}, {}
    for name, corpus in corpora.items():
        logging.info("=== %s ===", name)
        if args.window_seconds:
            corpus = corpus | {"window_seconds": args.window_seconds}
        shallow = evaluate_quantizer(run, corpus, max_pairs=args.max_examples)
        found[name] = in_depth(run, shallow)
    result: dict[str, Any] = {name: one.report for name, one in found.items()}
    if args.paired:
        result["paired_views"] = evaluate_paired_views(*found.values())
    if args.simulate:
        logging.info("=== simulator ===")
        env = Tabletop(SceneConfig(args.blocks, tuple(args.families.split(",")), args.steps))
        window = args.window_seconds or trained_window(run.config)
        motions = dict(episodes=args.simulate, seed=args.seed, window_seconds=window)
        result["transfer"], frames = evaluate_transfer(run, env, view=args.view, **motions)
        result["distractors"] = evaluate_distractors(run, env, **motions)
    if args.report:
        page.write(Path(args.report), run, found, result, frames)
    return result


def evaluate_tokens(run: runs.Run, corpora: dict[str, dict], *, max_examples: int) -> dict:
    """Mean loss and accuracy of the target tokens, over a seeded sample of the corpora."""
    data = ConfigDict(run.config.data.to_dict())
    template = next(iter(data.corpora.values())).to_dict()
    data.corpora = ConfigDict(
        {f"corpus{i}": template | corpus for i, corpus in enumerate(corpora.values())}
    )
    examples.draw_any(data)
    batch_size = min(run.config.global_batch, max_examples)
    steps = max(1, max_examples // batch_size)
    metrics = jax.jit(run.stage.eval_metrics)
    rows = []
    with Loader(
        data,
        fields=run.stage.fields_of(run.config),
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
    temperature: float = 0.0,
    top_k: int = 0,
) -> SuccessEvaluation:
    """Closed-loop success from the fixed start states of (seed, family), with a Wilson interval.

    Actions are the likeliest ones, or drawn at a `temperature` among the `top_k` likeliest."""
    if run.config.stage != "action_finetuning":
        raise ValueError(f"{run.workdir} is a run of stage {run.config.stage!r}: it has no actions")
    states = env.evaluation_states(seed, family, episodes)
    known = np.array(env.phrasings(phrasings))
    instructions = env.instructions(states, known[np.arange(episodes) % len(known)])
    if run.stage.num_images > 1:
        raise ValueError(
            f"{run.workdir} takes {run.stage.num_images} images an example: the closed loop gives "
            "one"
        )

    def act(params, images, prompts, key):
        options = dict(temperature=temperature, top_k=top_k, key=key) if temperature else {}
        return run.stage.act(params, run.variables, prompts, images[:, None], **options)

    found = rollout(
        env,
        jax.tree_util.Partial(act, run.params),
        states,
        run.stage.prompts(instructions),
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
        "temperature": temperature,
        "top_k": top_k,
        **interval.as_dict(),
    }
    return SuccessEvaluation(report, found, instructions)
