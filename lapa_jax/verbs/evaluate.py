"""`lapa evaluate`: what latent actions are worth; how well a policy predicts and acts.

A quantizer is measured on all pairs of a corpus; a policy on tokens of a corpus and, with the
action head, by how far its actions are from those of the corpus, per dimension, and by closed-loop
success from a fixed list of start states.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.progress import Progress
from data_pipelines.rlds.writer import is_from
from data_pipelines.storage import places
from lapa_jax import envs
from lapa_jax.envs.checked import Pushes
from lapa_jax.envs.execution import Execution, check_rate
from lapa_jax.evidence import action_errors, page, policy_page, verdict
from lapa_jax.evidence.policy import evaluate_success, evaluate_tokens
from lapa_jax.evidence.quantizer import evaluate_paired_views, evaluate_quantizer
from lapa_jax.evidence.simulated import evaluate_distractors, evaluate_transfer
from lapa_jax.evidence.verified import (
    Verification,
    check_verifier,
    open_verifier,
    verifier_report,
)
from lapa_jax.runs import unipi
from lapa_jax.runs.examples import trained_window
from lapa_jax.runs.loaded import LoadedPolicy, Model, load, load_quantizer, require
from lapa_jax.studies import prediction
from lapa_jax.verbs import benchmark, compare, flags
from lapa_jax.verbs.text import table
from lapa_jax.world.verifier import Verifier


def main(argv: list[str]) -> int:
    for flag, verb in (("--benchmark", benchmark), ("--compare", compare)):
        if any(word == flag or word.startswith(f"{flag}=") for word in argv):
            return verb.main(argv)
    parser = flags.parser(
        "lapa evaluate",
        __doc__ + "\nThe result is JSON. `lapa evaluate --benchmark NAME --help`: a policy behind "
        "a server,\nin an environment that runs in processes of its own. `lapa evaluate --compare "
        "--help`:\nseveral quantizers on one corpus.",
        "lapa evaluate --workdir runs/action_vla --families reach --blocks 4",
    )
    add = parser.add_argument
    add("--workdir", required=True)
    add("--corpus", action="append", help="directory to evaluate on; default: those of training")
    add("--split", default="train", help="of the directories of --corpus")
    add("--max_examples", type=flags.number(int, "[1, inf)"), default=2000, help="per corpus")
    add("--json", default="", help="write the result to this file, too")
    add("--report", default="", help="an HTML report")
    text = "only episodes that the training left out (data.corpora.<name>.fraction below 1)"
    add("--holdout", action="store_true", help=text)
    add = parser.add_argument_group("quantizers").add_argument
    text = "between the frames of a pair; 0: that of the training"
    add("--window_seconds", type=flags.number(float, "[0, inf)"), default=0.0, help=text)
    add("--paired", action="store_true", help="the two corpora show the same episodes")
    text = "motions for what needs a simulator: transfer to another scene, distractors; 0: none"
    add("--simulate", type=flags.number(int, "[0, inf)"), default=0, help=text)
    add = parser.add_argument_group(
        "the environment: closed loop of action policies, transfer",
        "It is evaluation.env of the run's config, and the flags change its settings.",
    ).add_argument
    add("--families", help="comma-separated")
    add("--blocks", type=flags.number(int, "[0, inf)"), help="of the tabletop")
    add("--steps", type=flags.number(int, "[1, inf)"), help="of an episode")
    text = (
        "per family; 0: no closed loop; default: 200 where the policy acts as the environment does"
    )
    add("--episodes", type=flags.number(int, "[0, inf)"), help=text)
    add("--view", default="", help="that the policy sees; default: the first one")
    add("--seed", type=int, default=0, help="of the start states, and of what is drawn")
    add(
        "--temperature",
        type=flags.number(float, "[0, inf)"),
        default=0.0,
        help="0: the likeliest tokens",
    )
    add(
        "--top_k",
        type=flags.number(int, "[0, inf)"),
        default=0,
        help="sample among so many; 0: all",
    )
    chunks = parser.add_argument_group("how an action policy's chunks are acted on")
    for options in (Execution, Verification, Pushes):
        flags.add(chunks, options)
    add = parser.add_argument_group(
        "UniPi, small: a policy of latent actions acts by a frame that is drawn (docs/policies.md)"
    ).add_argument
    add("--quantizer", default="", help="run whose decoder draws what the policy's z leads to")
    text = "run with model.inverse_dynamics, of the same window: reads the action off that frame"
    add("--inverse_dynamics", default="", help=text)
    args = parser.parse_args(argv)

    for flag in ("json", "report"):  # before minutes of work
        path = getattr(args, flag)
        if path and not Path(path).parent.is_dir():
            raise FileNotFoundError(f"--{flag} {path}: there is no folder {Path(path).parent}")
    if bool(args.quantizer) != bool(args.inverse_dynamics):
        raise ValueError("--quantizer and --inverse_dynamics act together: give both")
    run = load(args.workdir)
    if run.config.stage in ("teacher", "image_tokenizer", "dynamics"):
        raise ValueError(
            f"{run.workdir} is of stage {run.config.stage!r}: nothing is evaluated but what its "
            "metrics.jsonl and, with evaluation.every_steps, its evaluation.jsonl tell"
            + ("; `lapa rollout` measures what it imagines" * (run.config.stage == "dynamics"))
        )
    quantizer = run.config.stage == "quantizer"
    for flag in ("paired", "simulate", "window_seconds"):
        if getattr(args, flag) and not quantizer:
            raise ValueError(
                f"--{flag} is of quantizers; {run.workdir} is a {run.config.stage} run"
            )
    if (args.quantizer or args.inverse_dynamics) and run.config.stage != "latent_pretraining":
        raise ValueError(
            f"--quantizer and --inverse_dynamics are of policies of latent actions; {run.workdir} "
            f"is a {run.config.stage} run"
        )
    if args.verifier and quantizer:
        raise ValueError(f"--verifier is of policies; {run.workdir} is a quantizer")
    if args.corpus:
        corpora = {path: {"path": path, "split": args.split} for path in args.corpus}
    else:
        corpora = {name: c.to_dict() for name, c in run.config.data.corpora.items()}
    result: dict[str, Any] = {"workdir": str(run.workdir), "step": run.step}
    if quantizer:
        result |= _quantizer(run, corpora, args)
    else:
        result |= _policy(run, corpora, args)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if args.json:
        Path(args.json).write_text(text + "\n")
    if quantizer:  # beside the JSON, for who reads along
        for name in corpora:
            told = verdict.lines(f"latent actions on {name}", result[name]["verdict"])
            sys.stderr.write("\n".join(told) + "\n")
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
        found[name] = evaluate_quantizer(
            run, corpus, max_pairs=args.max_examples, deep=True, held_out=args.holdout
        )
        of_tabletop = is_from(places.directory(corpus["path"]), "tabletop")
        if of_tabletop and (told := prediction.outlook(found[name].report)):
            found[name].report["verdict"]["notes"].append(told)
    result: dict[str, Any] = {name: one.report for name, one in found.items()}
    if args.paired:
        result["paired_views"] = evaluate_paired_views(*(one.sample for one in found.values()))
    if args.simulate:
        logging.info("=== simulator ===")
        env = _environment(run, args)
        window = args.window_seconds or trained_window(run.config)
        motions = dict(episodes=args.simulate, seed=args.seed, window_seconds=window)
        if run.stage.model_config.predicts == "pixels":
            result["transfer"], frames = evaluate_transfer(run, env, view=args.view, **motions)
        else:
            logging.warning("no transfer to other scenes: the decoder predicts no frames")
        if "distractors" in env.spec.views:
            result["distractors"] = evaluate_distractors(run, env, **motions)
    if args.report:
        page.write(Path(args.report), run, found, result, frames)
    return result


def _policy(run: Model, corpora: dict[str, dict], args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of a policy; writes the report where one is asked for."""
    if args.holdout and not run.stage.acts:
        raise ValueError(f"--holdout is of quantizers and of policies that act: not {run.workdir}")
    actor, result = run, {"corpora": list(corpora)}
    if args.quantizer:
        parts = load_quantizer(args.quantizer), require(load(args.inverse_dynamics), LoadedPolicy)
        actor = unipi.compose(run, *parts)
        result["unipi"] = {
            "quantizer": {"workdir": str(parts[0].workdir), "step": parts[0].step},
            "inverse_dynamics": {"workdir": str(parts[1].workdir), "step": parts[1].step},
        }
    left_out = _no_closed_loop(actor, args) if actor.stage.acts else ""
    if actor.stage.acts and not left_out:  # before minutes of work
        actor.stage.check_sampling(args.temperature, args.top_k)
    verification = flags.read(args, Verification)
    verifier = None
    if verification.verifier:
        if left_out:
            raise ValueError(f"--verifier: there is no closed loop: {left_out}")
        how = flags.read(args, Execution).of(actor.config.evaluation.execution_horizon)
        verifier = open_verifier(actor, verification)
        check_verifier(verifier, _environment(actor, args).spec, how)
        result["verifier"] = verifier_report(verifier)
    if not args.holdout:  # they are drawn as in training
        result["tokens"] = evaluate_tokens(run, corpora, max_examples=args.max_examples)
    if run.stage.acts:
        result["actions"] = action_errors.evaluate_actions(
            run, corpora, max_examples=args.max_examples, held_out=args.holdout
        )
        for name, found in result["actions"].items():
            _show_actions(name, found)
    if left_out:
        logging.info("no closed loop: %s", left_out)
    elif actor.stage.acts:
        result["success"] = _success(actor, args, verifier)
    if args.report:
        policy_page.write(Path(args.report), run, result, left_out)
    return result


def _no_closed_loop(run: Model, args: argparse.Namespace) -> str:
    """Why the policy does not act in the environment, or "". Raises ValueError where it cannot, and
    --episodes asks for it."""
    if args.episodes == 0:
        return "--episodes 0"
    spec, dim = _environment(run, args).spec, run.stage.head.describe()["dim"]
    if dim != spec.action_dim:
        why = f"the policy's actions have {dim} dimensions, those of {spec.name} {spec.action_dim}"
    elif run.stage.inverse_dynamics:
        why = "model.inverse_dynamics=True: it sees the later frame, and acts with --quantizer"
        why += " and --inverse_dynamics of a policy of latent actions"
    elif run.stage.num_images > 1:
        why = f"the policy takes {run.stage.num_images} images, the closed loop gives one"
    else:
        how = flags.read(args, Execution)
        how.of(run.config.evaluation.execution_horizon).check(run.stage.head.horizon)
        try:
            check_rate(run.control_hz, spec.control_hz, "the policy", spec.name)
        except ValueError as error:
            why = str(error)
        else:
            return ""
    if args.episodes:
        raise ValueError(f"--episodes {args.episodes}: {why}")
    return why


def _success(
    run: Model, args: argparse.Namespace, verifier: Verifier | None = None
) -> dict[str, Any]:
    env, found = _environment(run, args), {}
    names = ("seed", "view", "temperature", "top_k")
    options = {"episodes": args.episodes or 200} | {name: getattr(args, name) for name in names}
    options |= {"how": flags.read(args, Execution), "pushes": flags.read(args, Pushes)}
    with Progress("closed loop", len(env.spec.tasks), unit="family") as bar:
        bar.waits()
        for family in env.spec.tasks:
            check = verifier and verifier.watch()
            found[family] = evaluate_success(run, env, family, check=check, **options).report
            bar.update()
    return found


def _show_actions(name: str, found: dict[str, Any]) -> None:
    """On the screen, beside the JSON."""
    for rows in (action_errors.table(found), action_errors.steps_table(found)):
        if rows:
            shown = [
                ["–" if x is None else x if isinstance(x, str) else f"{x:.4g}" for x in row]
                for row in rows
            ]
            told = f"{found['examples']:,} examples, {found['decoded']:.1%} decoded"
            what = "L1 by step" if rows[0][0] == "step" else told
            sys.stderr.write(f"\nactions on {name}, in the data's units: {what}\n{table(shown)}\n")


def _environment(run: Model, args: argparse.Namespace) -> envs.Environment:
    families = tuple(args.families.split(",")) if args.families else None
    given = {"families": families, "blocks": args.blocks, "horizon": args.steps}
    changes = {key: value for key, value in given.items() if value is not None}
    return envs.make({**run.config.evaluation.env, **changes})
