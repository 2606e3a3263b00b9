"""`lapa evaluate --compare`: latent action models, ours and others', measured alike on one corpus.

A study whose cells are the models: what is measured of one is a part, so that the same command
continues, and one more model costs no more than its own part. A model that was trained on since,
or whose corpus is another one now, is measured again.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash
from ml_collections import ConfigDict

from data_pipelines.progress import Progress
from lapa_jax import config as configs
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import evaluate_paired_views, evaluate_quantizer, same_actions
from lapa_jax.nn import flops
from lapa_jax.nn.attention import plain_attention
from lapa_jax.runs import loaded
from lapa_jax.runs import run as runs
from lapa_jax.runs.examples import Pairs, drawn_in_training
from lapa_jax.runs.loaded import LoadedQuantizer
from lapa_jax.studies.study import Cell, Part, Study, write_csv

LABELS = ("10", "100", "1000", "all")


@dataclasses.dataclass(frozen=True)
class Compared:
    """What is measured, and how: corpora are directories of the same episodes, in as many sizes as
    the models need."""

    corpora: tuple[str, ...]
    paired: tuple[str, ...] = ()  # in another view
    distractors: tuple[str, ...] = ()  # with moving distractors
    split: str = "train"
    max_pairs: int = 2000
    window_seconds: float = 0.0  # 0: that of each model's training
    held_out: bool = False

    def of(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        window = {"window_seconds": self.window_seconds} if self.window_seconds else {}
        return [{"path": path, "split": self.split} | window for path in paths]

    @property
    def views(self) -> dict[str, tuple[str, ...]]:
        given = {"paired": self.paired, "distractors": self.distractors}
        return {name: paths for name, paths in given.items() if paths}


def open_comparison(models: Sequence[str], workdir: Path, how: Compared) -> Study:
    """The study of these runs. Raises ValueError that names every run that is no quantizer or
    cannot read the data, before anything is measured."""
    refused, cells, episodes = [], [], {}
    names = labels_of(models)
    for name, model in zip(names, models, strict=True):
        try:
            part, read = _part(model, how)
        except (ValueError, OSError) as error:
            refused.append(f"  {model}: {error}")
            continue
        cells.append(Cell({"model": name}, (part,)))
        episodes[name] = read
    if refused:
        raise ValueError("cannot be compared, and nothing was measured:\n" + "\n".join(refused))
    first, *others = episodes
    for other in others:
        if not same_episodes(episodes[first], episodes[other]):
            raise ValueError(
                f"{first} and {other} would read other episodes: directories of several sizes "
                "(--corpus) must hold the same, and trainings must have left out the same "
                "(--holdout)"
            )
    study = Study(workdir, cells)
    decides = dataclasses.asdict(how)
    study.claim({key: list(x) if isinstance(x, tuple) else x for key, x in decides.items()})
    return study


def labels_of(models: Sequence[str]) -> list[str]:
    """A short name for each directory: its last parts, without those that all end in, as many as
    tell it from the others."""
    parts = [Path(model).absolute().parts for model in models]
    places = [Path(model).resolve() for model in models]  # one run may have several names
    if len(set(places)) < len(places):
        twice = next(model for i, model in enumerate(models) if places[i] in places[:i])
        raise ValueError(f"--compare: {twice} is given twice")
    while len(models) > 1 and len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]

    def name(mine: tuple[str, ...]) -> str:
        for count in range(1, len(mine) + 1):
            if sum(one[-count:] == mine[-count:] for one in parts) == 1:
                break
        return "/".join(mine[-count:])

    return [name(mine) for mine in parts]


class Episodes(NamedTuple):
    """What tells those that are read from others."""

    length: np.ndarray  # int (E,), 0 of those that are not read
    actions: np.ndarray | None  # of all frames


def _part(model: str, how: Compared) -> tuple[Part, Episodes]:
    """(what measures one model, what it reads); raises ValueError where that is not possible."""
    _, meta = loaded.open_checkpoints(model)
    config = configs.from_dict(meta["config"])
    if config.stage != "quantizer":
        raise ValueError(f"a run of stage {config.stage!r}, not a quantizer")
    corpus, pairs = readable(config, how.of(how.corpora), how.held_out)
    views, read = {}, [pairs.index.hash]
    for view, paths in how.views.items():
        views[view], other = readable(config, how.of(paths), how.held_out)
        indexes = (Episodes(x.index.episode_length, x.index.actions) for x in (pairs, other))
        if not (same_episodes(*indexes) and np.array_equal(pairs.rows, other.rows)):
            raise ValueError(
                f"{views[view]['path']} has not the same episodes and pairs as {corpus['path']}: "
                f"--{view} takes the same episodes"
            )
        read.append(other.index.hash)
    known = json.dumps([str(Path(model).absolute()), corpus, views, read, meta], default=repr)
    made = xxhash.xxh3_64(known.encode()).hexdigest()[:8]

    def work() -> list[dict[str, Any]]:
        return [measured(model, corpus, views, how)]

    episodes = pairs.index.episode_length
    if how.held_out:
        episodes = np.where(drawn_in_training(config, pairs.index), 0, episodes)
    part = Part(f"{Path(model).absolute().name} {meta['step']} {made}", work)
    return part, Episodes(episodes, pairs.index.actions)


def readable(
    config: ConfigDict, corpora: Sequence[dict[str, Any]], held_out: bool
) -> tuple[dict[str, Any], Pairs]:
    """The first of the corpora that a quantizer can read; ValueError with what each lacks."""
    why = []
    for corpus in corpora:
        try:
            return corpus, Pairs(config, corpus, held_out=held_out)
        except (ValueError, OSError) as error:
            why.append(str(error))
    raise ValueError("; ".join(why))


def same_episodes(one: Episodes, other: Episodes) -> bool:
    return np.array_equal(one.length, other.length) and same_actions(one.actions, other.actions)


def measured(
    model: str, corpus: dict[str, Any], views: Mapping[str, dict[str, Any]], how: Compared
) -> dict[str, Any]:
    """Everything about one model, as JSON values: the report of `evaluate_quantizer` with `about`,
    `cost` and what was given of the other views."""
    run = loaded.load_quantizer(model)
    options = dict(max_pairs=how.max_pairs, held_out=how.held_out)
    found = evaluate_quantizer(run, corpus, deep=True, **options)
    report = {"about": about(run), "cost": cost(run), "corpus": corpus["path"], **found.report}
    for view, there in views.items():
        other = evaluate_quantizer(run, there, **options)
        report[view] = evaluate_paired_views(found.sample, other.sample)
        report[view]["skill"] = other.report["reconstruction"]["skill"]
    jax.clear_caches()  # the next model is another program
    return report


def about(run: LoadedQuantizer) -> dict[str, Any]:
    """What the model is, for a reader."""
    shape, model = run.stage.model_config, run.config.model
    native = model.architecture == "native"
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "params_hash": run.params_hash,
        "architecture": model.architecture,
        "objective": _names(model.objective) if native else "",
        "bottleneck": model.bottleneck.name if native else "",
        "predicts": shape.predicts,
        "image_size": list(shape.image_size),
        "codebook_size": shape.codebook_size if shape.has_codes else None,
        "code_length": shape.code_length,
        "quant_dim": shape.quant_dim,
        "window_seconds": sorted({c.window_seconds for c in run.config.data.corpora.values()}),
        "imported": run.provenance.get("imported"),
    }


def _names(objective: Mapping[str, Any]) -> str:
    """Of an objective, and of the one that it is added to."""
    inner = objective.get("of")
    return objective["name"] + (f"+{_names(inner)}" if inner else "")


def cost(run: LoadedQuantizer) -> dict[str, Any]:
    """Parameters, frozen weights among them, and FLOPs a pair: to read z, to decode it, and of a
    training example, forward and backward."""
    stage, given = run.stage, jax.eval_shape(lambda x: x, (run.params, run.variables))
    shape = stage.model_config
    frame = jax.ShapeDtypeStruct((1, *shape.image_size, 3), np.uint8)
    with plain_attention():
        read = flops.counted(stage.read, *given, frame, frame)
        received = jax.eval_shape(stage.read, *given, frame, frame).received_BLQ
        decode = flops.counted(stage.decode_latent, *given, frame, received)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(given[0])),
        "read_flops": read,
        "decode_flops": decode,
        "train_flops": stage.model_flops(),
    }


def run_comparison(study: Study) -> None:
    """Does what is not done yet."""
    with Progress("compare", len(study.cells), unit="model") as bar:
        for cell in study.cells:
            bar.waits(cell.values["model"])
            for part in cell.parts:
                study.do(part)
            bar.update()


def results(study: Study) -> dict[str, dict[str, Any]]:
    """{model: report} of a study that is done; also writes compare.json and compare.csv."""
    found = {cell.values["model"]: study.result(cell.parts[-1].name)[0] for cell in study.cells}
    runs.write_json(study.workdir / "compare.json", found)
    rows = []
    for name, report in found.items():
        row: dict[str, Any] = {"model": name}
        for key, number in numbers(report).items():
            row[key] = number["value"]
            if number["low"] is not None:
                row |= {f"{key}_{end}": number[end] for end in ("low", "high")}
        rows.append(row)
    write_csv(study.workdir / "compare.csv", rows)
    return found


def numbers(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every number of a report by name: {value, low, high}, of these None where they are not
    known."""
    found = {row["measure"]: row for row in measures.rows(report)}

    def add(name: str, path: str) -> None:
        node: Any = report
        *parents, key = path.split(".")
        for parent in parents:
            node = (node or {}).get(parent)
        node = node or {}
        low, high = node.get(f"{key}_interval") or (node.get("low"), node.get("high"))
        found[name] = {"value": node.get(key), "low": low, "high": high}

    add("skill_exchanged", "reconstruction.skill_exchanged")
    add("psnr_copy", "reconstruction.psnr_copy")
    add("dead_code_fraction", "codes.dead_code_fraction")
    for count in LABELS:
        add(f"r2_{count}_labels", f"content.label_efficiency.latent_action.linear.{count}.r2_mean")
    add("r2_first_frame", "content.controls.first_frame.r2_linear")
    add("r2_motion_kmeans", "content.controls.motion_kmeans.r2_linear")
    add("scene_chance", "content.controls.latent_action.scene_chance")
    add("scene_bits", "content.code_given_scene.other_episodes.explained_bits")
    add("code_bits", "content.code_given_scene.other_episodes.marginal_bits")
    add("information_chance", "information.latent.chance")
    add("additivity_chance", "algebra.additivity.chance")
    add("reversal_chance", "algebra.reversal.chance")
    for k in ("2", "3", "4"):
        for name in ("error", "direct", "chained"):
            add(f"cumulative_{name}_{k}", f"algebra.cumulative.{k}.{name}")
    for windows in report.get("window_curve", {}):
        label = windows.replace(".", "_")
        row = report["window_curve"][windows]
        low, high = row["r2_mean_interval"] or (None, None)
        found[f"probe_r2_{label}_windows"] = dict(value=row["r2_mean"], low=low, high=high)
    for view in ("paired", "distractors"):
        add(f"{view}_same_code", f"{view}.codes.agreement.estimate")
        add(f"{view}_same_code_null", f"{view}.codes.null.estimate")
        add(f"{view}_retrieval", f"{view}.retrieval_at_1.estimate")
        add(f"{view}_cka", f"{view}.cka")
        add(f"{view}_r2", f"{view}.probe.other_view.r2_mean")
        add(f"{view}_skill", f"{view}.skill")
    for name in report["cost"]:
        add(name, f"cost.{name}")
    return found
