"""The whole method on the tabletop world, as a study of two arms, and a report to look at.

Videos without actions → quantizer → labels → latent VLA → action VLA (the LAPA arm), against the
same policy fine-tuned from random parameters on the same labelled episodes (the Scratch arm).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.convert import folders, video
from data_pipelines.index import build_index, load_index
from data_pipelines.loader import order
from data_pipelines.progress import Progress
from data_pipelines.storage import places
from experiments.quantizer import videos as videos_config
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import render_states
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.runs import program as programs
from lapa_jax.runs import run as runs
from lapa_jax.runs.label import label
from lapa_jax.runs.loaded import load
from lapa_jax.studies import demo_page
from lapa_jax.studies.study import Cell, Part, Study, train_part, with_corpora, write_csv

ARMS = ("lapa", "scratch")
LABEL_SET = "demo"
MIN_HELD_OUT = 3  # clips: fewer say nothing of others
# Seeds of the parts of the data: no episode is in two of them.
SEEDS = {"human": 1, "robot": 2, "labelled": 3, "heldout": 4}


def run_demo(config: ConfigDict, workdir: str | Path) -> Path:
    """Runs what is not done yet; returns the path of the report."""
    workdir = runs.claim(Path(workdir), config)
    # The arms run the same programs: the second finds them compiled.
    programs.keep_compiled(workdir)
    env = envs.make(config.scene)
    data = {name: workdir / "data" / name for name in SEEDS}
    videos = {view: data[view] / view for view in config.video_views}
    latent = with_corpora(config.latent_pretraining, videos, label_set=LABEL_SET)

    def write_labels() -> dict[str, Any]:
        quantizer = load(workdir / "quantizer")
        return {v: label(quantizer, LABEL_SET, {"path": str(p)}) for v, p in videos.items()}

    shared = (
        Part("collect", lambda: _collect(config, env, data)),
        train_part("quantizer", with_corpora(config.quantizer, videos), workdir / "quantizer"),
        Part("label", write_labels),
        train_part("latent_vla", latent, workdir / "latent_vla"),
    )

    def cell(arm: str) -> Cell:
        finetuned = train_part(arm, _action_config(config, data, workdir, arm), workdir / arm)
        success = Part(f"success_{arm}", lambda: _success(config, env, workdir / arm))
        return Cell({"arm": arm}, (*shared, finetuned, success))

    study = Study(workdir, [cell(arm) for arm in ARMS])
    study.run()

    def report() -> dict[str, Any]:
        quantizer, pairs = load(workdir / "quantizer"), config.evaluation_pairs
        heldout = {
            view: evaluate_quantizer(
                quantizer, {"path": str(data["heldout"] / view)}, max_pairs=pairs
            )
            for view in config.video_views
        }
        rows = study.rows()
        write_csv(workdir / "success.csv", rows)
        return demo_page.write(workdir, config, quantizer, heldout, rows, study.seconds())

    return _report(study, report)


def _report(study: Study, work: Any) -> Path:
    """The last part, and summary.json; returns the path of the report."""
    study.do(Part("report", work))
    summary = {"wall_seconds": round(sum(study.seconds().values()), 1)} | study.result("report")
    runs.write_json(study.workdir / "summary.json", summary)
    logging.info("summary: %s", json.dumps(summary))
    return study.workdir / "report.html"


def _collect(config: ConfigDict, env: Environment, data: dict[str, Path]) -> dict[str, Any]:
    """Action-free videos by view, the labelled robot episodes, and held-out paired views."""
    noise = dict(noise=config.expert_noise)
    videos = dict(episodes=config.video_episodes, with_actions=False, **noise)
    jobs = {view: dict(views=(view,), **videos) for view in config.video_views}
    jobs["labelled"] = dict(views=("robot",), episodes=config.labelled_episodes)
    jobs["heldout"] = dict(views=config.video_views, episodes=config.heldout_episodes, **noise)
    told = {}
    for name, job in jobs.items():
        counts = data[name] / "counts.json"
        corpora = [data[name] / view for view in job["views"]]
        if not all((path / "dataset_info.json").exists() for path in corpora):
            size, seed = config.quantizer.data.image_size, 100 * config.seed + SEEDS[name]
            found = collect(env, data[name], seed=seed, size=size, **job)
            runs.write_json(counts, {"episodes": found.episodes, "frames": found.frames})
        for path in corpora:
            build_index(path, progress=False)
        told[name] = places.read_json(counts, f"remove {data[name]}, which is then made anew")
    return told


def _action_config(
    config: ConfigDict, data: dict[str, Path], workdir: Path, arm: str
) -> ConfigDict:
    """Both arms alike but for the parameters that they start from.

    Scratch takes the same tokenizer, so that the arms see the same tokens.
    """
    stage = with_corpora(config.action_finetuning, {"robot": data["labelled"] / "robot"})
    with stage.unlocked():
        if arm == "lapa":
            stage.init_from = str(workdir / "latent_vla")
            stage.optimizer.groups.rest.lr_scale = config.pretrained_lr_scale
        else:
            stage.model.tokenizer = str(workdir / "latent_vla" / "assets" / "tokenizer.model")
    return stage


def _success(config: ConfigDict, env: Environment, workdir: Path) -> list[dict[str, Any]]:
    """A row of each family; films of the first episodes are in WORKDIR/films.npz, by "FAMILY i"."""
    policy, size = load(workdir), config.action_finetuning.data.image_size
    rows, films = [], {}
    bar = Progress(f"closed loop {workdir.name}", len(env.spec.tasks), unit="family")
    for family in env.spec.tasks:
        bar.waits()
        found = evaluate_success(
            policy, env, family, episodes=config.rollout_episodes, seed=config.seed
        )
        bar.update()
        outcomes = np.asarray(found.rollouts.success).tolist()
        rows.append(found.report | {"outcomes": outcomes, "asked": found.instructions})
        for i in range(3 if len(env.spec.tasks) == 1 else 1):
            states = jax.tree.map(lambda x, i=i: x[i], found.rollouts.states)
            frames = render_states(env, states, size, env.spec.views[0])
            films[f"{family} {i}"] = frames[: int(found.rollouts.length[i]) + 1]
    bar.close()
    np.savez(workdir / "films.npz", **films)
    return rows


def run_videos(
    videos: str, workdir: str | Path, size: str, say: Callable[[str], object] = logging.info
) -> Path:
    """The quantizer on the user's own clips, with its report; `say` is told the plan.

    The clips are part of what the workdir is for: once they are converted others are refused.
    Before that, whatever is in the folder counts.
    """
    workdir, folder = Path(workdir), Path(videos)
    clips = {name: _identity(folder / name) for name in folders.find(folder).videos}
    if not clips:
        raise FileNotFoundError(
            f"no video below {folder}; `lapa data convert video` reads folders of pictures, too"
        )
    corpus, trained = workdir / "data", workdir / "quantizer"

    def settings(holdout: float) -> ConfigDict:
        config = videos_config.get_config(f"quick={size == 'tiny'},holdout={holdout}")
        config.data.corpora.videos.path = str(corpus)
        return config

    def convert() -> None:
        if not (corpus / "dataset_info.json").exists():
            pixels = tuple(settings(0.0).data.image_size)
            report = video.convert_videos(video.Options(source=videos, out=corpus, size=pixels))
            logging.info("%s", report.table())
        build_index(corpus, progress=False)

    def config() -> ConfigDict:
        return settings(_holdout(load_index(corpus, image_key="").num_episodes))

    parts = (Part("convert", convert), train_part("quantizer", config, trained))
    study = Study(workdir, [Cell({}, parts)])
    converted = study.done("convert")
    if converted and not study.claimed:
        raise ValueError(
            f"{workdir} was made by an earlier version, which did not note of which clips; choose "
            "another --workdir, or remove that one to make it anew"
        )
    if study.claim({"size": size, "clips": clips}, replace=not converted) and corpus.exists():
        shutil.rmtree(corpus)  # half converted, from other clips
    told, minutes = settings(0.0), "1 to 2" if size == "tiny" else "2 to 8"
    say(
        f"lapa demo --videos, {size}: {len(clips):,} clips of {folder} at "
        f"{'x'.join(map(str, told.data.image_size))} px, quantizer of {told.steps:,} steps; after "
        f"the conversion {minutes} minutes on two CPU cores. All goes to {workdir}; what is done "
        "there already is not done again."
    )
    study.run()

    def report() -> dict[str, Any]:
        quantizer, chosen = load(trained), config()
        held_out = chosen.data.corpora.videos.fraction < 1
        found = evaluate_quantizer(
            quantizer, {"path": str(corpus)}, max_pairs=2000, held_out=held_out
        )
        return demo_page.write_videos(workdir, chosen, quantizer, found, study.seconds())

    return _report(study, report)


def _identity(path: Path) -> str:
    """Of a clip: its size, and a digest of its bytes. One that cannot be read is for the conversion
    to count."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, xxhash.xxh3_128)
            size = file.tell()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"{size} bytes, {digest.hexdigest()[:16]}"


def _holdout(episodes: int) -> float:
    """The part that leaves a tenth of the clips out of the training, to the clip, or MIN_HELD_OUT
    of them; 0.0 where that were above three tenths, and the training clips are measured."""
    wanted = max(MIN_HELD_OUT, round(episodes / 10))
    if wanted > round(0.3 * episodes):
        return 0.0
    low, high = 0.0, 1.0  # parts that leave out too few, and too many: each clip has its own
    while (found := (~order.drawn_from(1 - (part := (low + high) / 2), episodes)).sum()) != wanted:
        low, high = (part, high) if found < wanted else (low, part)
    return part
