"""`lapa evaluate`: what latent actions are worth; how well a policy predicts and acts.

A quantizer is measured on all pairs of a corpus; a policy on tokens of a corpus and, with the
action head, by closed-loop success from a fixed list of start states.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from absl import logging

from lapa_jax import envs
from lapa_jax.evidence import page
from lapa_jax.evidence.policy import evaluate_success, evaluate_tokens
from lapa_jax.evidence.quantizer import evaluate_paired_views, evaluate_quantizer
from lapa_jax.evidence.simulated import evaluate_distractors, evaluate_transfer
from lapa_jax.runs.examples import trained_window
from lapa_jax.runs.loaded import Model, load
from lapa_jax.verbs import flags


def main(argv: list[str]) -> int:
    parser = flags.parser(
        "lapa evaluate",
        __doc__ + "\nThe result is JSON.",
        "lapa evaluate --workdir runs/action_vla --families reach --blocks 4",
    )
    add = parser.add_argument
    add("--workdir", required=True)
    add("--corpus", action="append", help="directory to evaluate on; default: those of training")
    add("--split", default="train")
    add("--max_examples", type=int, default=2000, help="per corpus")
    add("--json", default="", help="write the result to this file, too")
    add = parser.add_argument_group("quantizers").add_argument
    text = "between the frames of a pair; 0: that of the training"
    add("--window_seconds", type=float, default=0.0, help=text)
    add("--paired", action="store_true", help="the two corpora show the same episodes")
    text = "motions for what needs a simulator: transfer to another scene, distractors; 0: none"
    add("--simulate", type=int, default=0, help=text)
    add("--report", default="", help="an HTML report")
    add = parser.add_argument_group(
        "the environment: closed loop of action policies, transfer",
        "It is evaluation.env of the run's config, and the flags change its settings.",
    ).add_argument
    add("--families", help="comma-separated")
    add("--blocks", type=int, help="of the tabletop")
    add("--steps", type=int, help="of an episode")
    add("--episodes", type=int, default=200, help="per family; 0: no closed loop")
    add("--view", default="", help="that the policy sees; default: the first one")
    add("--seed", type=int, default=0, help="of the start states")
    add("--temperature", type=float, default=0.0, help="0: the likeliest tokens")
    add("--top_k", type=int, default=0, help="sample among so many; 0: all")
    text = "actions of a chunk that are taken before the policy is asked again"
    add("--execute", type=int, default=1, help=text)
    args = parser.parse_args(argv)

    run = load(args.workdir)
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
    if run.stage.acts and args.episodes:
        env = _environment(run, args)
        names = ("episodes", "seed", "view", "temperature", "top_k", "execute")
        how = {name: getattr(args, name) for name in names}
        result["success"] = {
            family: evaluate_success(run, env, family, **how).report for family in env.spec.families
        }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if args.json:
        Path(args.json).write_text(text + "\n")
    return 0


def _quantizer(run: Model, corpora: dict[str, dict], args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of a quantizer; writes the report where one is asked for."""
    if args.paired and len(corpora) != 2:
        raise ValueError(f"--paired compares two corpora, there are {sorted(corpora)}")
    found, frames = {}, {}
    for name, corpus in corpora.items():
        logging.info("=== %s ===", name)
        if args.window_seconds:
            corpus = corpus | {"window_seconds": args.window_seconds}
        found[name] = evaluate_quantizer(run, corpus, max_pairs=args.max_examples, deep=True)
    result: dict[str, Any] = {name: one.report for name, one in found.items()}
    if args.paired:
        result["paired_views"] = evaluate_paired_views(*(one.sample for one in found.values()))
    if args.simulate:
        logging.info("=== simulator ===")
        env = _environment(run, args)
        window = args.window_seconds or trained_window(run.config)
        motions = dict(episodes=args.simulate, seed=args.seed, window_seconds=window)
        result["transfer"], frames = evaluate_transfer(run, env, view=args.view, **motions)
        if "distractors" in env.spec.views:
            result["distractors"] = evaluate_distractors(run, env, **motions)
    if args.report:
        page.write(Path(args.report), run, found, result, frames)
    return result


def _environment(run: Model, args: argparse.Namespace) -> envs.Environment:
    families = tuple(args.families.split(",")) if args.families else None
    given = {"families": families, "blocks": args.blocks, "horizon": args.steps}
    changes = {key: value for key, value in given.items() if value is not None}
    return envs.make({**run.config.evaluation.env, **changes})
