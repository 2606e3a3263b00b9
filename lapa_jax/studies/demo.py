"""`lapa demo`: the whole method on the tabletop world, and a report to look at.

Videos without actions → quantizer → labels → latent VLA → action VLA (the LAPA arm), against the
same policy fine-tuned from random parameters on the same labelled episodes (the Scratch arm). Each
part leaves a file when it is done, so that an interrupted demo continues where it was.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from data_pipelines.convert import video
from data_pipelines.index import build_index
from data_pipelines.loader import DataSettings
from experiments import demo as demo_config
from experiments.quantizer import videos as videos_config
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.envs.env import Environment
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.runs import program as programs
from lapa_jax.runs import run as runs
from lapa_jax.runs.label import label
from lapa_jax.studies import demo_page
from lapa_jax.train import EXIT_RESTART, train

ARMS = ("lapa", "scratch")
LABEL_SET = "demo"
# Seeds of the parts of the data: no episode is in two of them.
SEEDS = {"human": 1, "robot": 2, "labelled": 3, "heldout": 4}


class Interrupted(Exception):
    """A signal stopped a training run after it saved."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lapa demo", description=demo_config.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=demo_config.SIZES, default="small")
    parser.add_argument("--workdir", default="", help="default: runs/demo (runs/demo-SIZE)")
    parser.add_argument(
        "--videos", default="", help="a folder of your own clips: quantizer and its report only"
    )
    args = parser.parse_args(argv)
    default = "runs/demo" if args.size == "small" else f"runs/demo-{args.size}"
    try:
        if args.videos:
            report = run_videos(args.videos, args.workdir or "runs/demo-videos", args.size)
        else:
            report = run_demo(demo_config.get_config(f"size={args.size}"), args.workdir or default)
    except Interrupted:
        sys.stderr.write("lapa: interrupted; the same command continues where it was\n")
        return EXIT_RESTART
    sys.stdout.write(f"report: {report}\n")
    return 0


def run_demo(config: ConfigDict, workdir: str | Path) -> Path:
    """Runs what is not done yet; returns the path of the report."""
    workdir = runs.claim(Path(workdir), config)
    # The arms run the same programs: the second finds them compiled.
    programs.keep_compiled(workdir)
    parts = Parts(workdir)
    env = envs.make(config.scene)
    data = {name: workdir / "data" / name for name in SEEDS}

    parts.run("collect", lambda: _collect(config, env, data))
    parts.run("quantizer", lambda: _train(_quantizer_config(config, data), workdir / "quantizer"))
    parts.run("label", lambda: _label(workdir, config, data))
    parts.run(
        "latent_vla", lambda: _train(_latent_config(config, data, workdir), workdir / "latent_vla")
    )
    for arm in ARMS:
        finetune = _action_config(config, data, workdir, arm)
        parts.run(arm, lambda finetune=finetune, arm=arm: _train(finetune, workdir / arm))

    def report() -> dict[str, Any]:
        quantizer = runs.load(workdir / "quantizer")
        heldout = {
            view: evaluate_quantizer(
                quantizer, {"path": str(data["heldout"] / view)}, max_pairs=config.evaluation_pairs
            )
            for view in config.video_views
        }
        arms = {}
        for arm in ARMS:
            run = runs.load(workdir / arm)
            arms[arm] = [
                evaluate_success(
                    run,
                    env,
                    family,
                    episodes=config.rollout_episodes,
                    seed=config.seed,
                )
                for family in config.scene.families
            ]
        return demo_page.write(workdir, config, env, quantizer, heldout, arms, parts.seconds())

    parts.run("report", report)
    _write_summary(workdir, parts)
    return workdir / "report.html"


class Parts:
    """The parts of a demo: done ones have a file with their seconds and result."""

    def __init__(self, workdir: Path):
        self.directory = workdir / "parts"
        self.directory.mkdir(exist_ok=True)

    def run(self, name: str, work: Callable[[], Any]) -> None:
        path = self.directory / f"{name}.json"
        if path.exists() and self._read(path)["done"]:
            return
        logging.info("=== %s ===", name)
        before = self._read(path)["seconds"] if path.exists() else 0.0
        start, result, done = time.monotonic(), None, False
        try:
            result = work()
            done = True
        finally:
            # An interrupted part keeps its time: the sum is what the demo cost.
            seconds = before + time.monotonic() - start
            runs.write_json(path, {"done": done, "seconds": seconds, "result": result})

    def seconds(self) -> dict[str, float]:
        return {path.stem: self._read(path)["seconds"] for path in self._files()}

    def result(self, name: str) -> Any:
        return self._read(self.directory / f"{name}.json")["result"]

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("*.json"), key=lambda path: path.stat().st_mtime)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        return json.loads(path.read_text())


def _collect(config: ConfigDict, env: Environment, data: dict[str, Path]) -> dict[str, Any]:
    """Action-free videos by view, the labelled robot episodes, and held-out paired views."""
    common = dict(size=config.quantizer.data.image_size)
    videos = dict(episodes=config.video_episodes, with_actions=False, noise=config.expert_noise)
    jobs = {view: dict(views=(view,), **videos) for view in config.video_views}
    jobs["labelled"] = dict(views=("robot",), episodes=config.labelled_episodes)
    jobs["heldout"] = dict(
        views=tuple(config.video_views), episodes=config.heldout_episodes, noise=config.expert_noise
    )
    told = {}
    for name, job in jobs.items():
        seed = 100 * config.seed + SEEDS[name]
        corpora = {view: data[name] / view for view in job["views"]}
        if not all((path / "dataset_info.json").exists() for path in corpora.values()):
            found = collect(env, data[name], seed=seed, **common, **job)
            runs.write_json(
                data[name] / "counts.json", {"episodes": found.episodes, "frames": found.frames}
            )
        for path in corpora.values():
            build_index(path, progress=False)
        told[name] = json.loads((data[name] / "counts.json").read_text())
    return told


def _train(config: ConfigDict, workdir: Path) -> None:
    if not train(config, workdir):
        raise Interrupted


def _label(workdir: Path, config: ConfigDict, data: dict[str, Path]) -> dict[str, Any]:
    quantizer = runs.load(workdir / "quantizer")
    corpora = {view: {"path": str(data[view] / view)} for view in config.video_views}
    return {view: label(quantizer, LABEL_SET, corpus) for view, corpus in corpora.items()}


def _with_corpora(stage: ConfigDict, paths: dict[str, Path], **more: Any) -> ConfigDict:
    """A stage's config with its corpora at these paths."""
    stage = ConfigDict(stage.to_dict())
    there = DataSettings.of(stage.data).on(paths, **more)
    stage.data.corpora = ConfigDict({one.name: one.as_dict() for one in there.corpora})
    return stage.lock()


def _quantizer_config(config: ConfigDict, data: dict[str, Path]) -> ConfigDict:
    return _with_corpora(config.quantizer, {view: data[view] / view for view in config.video_views})


def _latent_config(config: ConfigDict, data: dict[str, Path], workdir: Path) -> ConfigDict:
    paths = {view: data[view] / view for view in config.video_views}
    return _with_corpora(config.latent_pretraining, paths, label_set=LABEL_SET)


def _action_config(
    config: ConfigDict, data: dict[str, Path], workdir: Path, arm: str
) -> ConfigDict:
    """Both arms alike but for the parameters that they start from.

    Scratch takes the same tokenizer, so that the arms see the same tokens.
    """
    stage = _with_corpora(config.action_finetuning, {"robot": data["labelled"] / "robot"})
    with stage.unlocked():
        if arm == "lapa":
            stage.init_from = str(workdir / "latent_vla")
            stage.optimizer.groups.rest.lr_scale = config.pretrained_lr_scale
        else:
            stage.model.tokenizer = str(workdir / "latent_vla" / "assets" / "tokenizer.model")
    return stage


def _write_summary(workdir: Path, parts: Parts) -> None:
    summary = {"wall_seconds": round(sum(parts.seconds().values()), 1)} | parts.result("report")
    runs.write_json(workdir / "summary.json", summary)
    logging.info("summary: %s", json.dumps(summary))


def run_videos(videos: str, workdir: str | Path, size: str) -> Path:
    """The quantizer on the user's own clips, with its report."""
    workdir = Path(workdir)
    config = videos_config.get_config(f"quick={size == 'tiny'},data={workdir / 'data'}")
    workdir.mkdir(parents=True, exist_ok=True)
    parts = Parts(workdir)
    corpus = workdir / "data"

    def convert() -> dict[str, Any]:
        if not (corpus / "dataset_info.json").exists():
            size = tuple(config.data.image_size)
            video.convert_videos(video.Options(source=videos, out=corpus, size=size))
        build_index(corpus, progress=False)
        return {}

    parts.run("convert", convert)
    parts.run("quantizer", lambda: _train(config, workdir / "quantizer"))

    def report() -> dict[str, Any]:
        quantizer = runs.load(workdir / "quantizer")
        found = evaluate_quantizer(quantizer, {"path": str(corpus)}, max_pairs=2000)
        return demo_page.write_videos(workdir, config, quantizer, found, parts.seconds())

    parts.run("report", report)
    _write_summary(workdir, parts)
    return workdir / "report.html"
