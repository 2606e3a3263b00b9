"""`lapa rollout`: imagined videos, and how far they can be trusted."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

from PIL import Image

from data_pipelines import storage
from data_pipelines.index import load_index
from lapa_jax.arena.results import write_gif, write_video
from lapa_jax.evidence import (
    executability,
    executability_page,
    rollout_page,
    rollout_sources,
    rollouts,
)
from lapa_jax.runs.loaded import (
    LoadedPolicy,
    LoadedQuantizer,
    load,
    load_policy,
    load_quantizer,
    require,
)
from lapa_jax.serving.images import RESIZING
from lapa_jax.serving.play import first
from lapa_jax.verbs import flags, text
from lapa_jax.world.imagination import Imagination, open_imagination

WHAT = """Imagine videos with a quantizer's decoder or a dynamics run, and measure them.

z is one of: --codes or --z, which are given; --policy, which says it at each imagined frame;
--transfer_from, read off another video; with none of them it is read off held-out videos of
--corpus, and what is imagined from their first frames alone is measured against them.

With --execute, actions are read off what is imagined of an expert's videos, and the simulator takes
them."""
EXAMPLE = """lapa rollout --workdir runs/quantizer --corpus data/heldout --out rollouts
  lapa rollout --workdir runs/quantizer --codes 0,3,3,7 --frame frame.png --out rollouts
  lapa rollout --workdir runs/dynamics --quantizer runs/quantizer --corpus data/heldout --out r
  lapa rollout --workdir runs/quantizer --execute 100 --inverse_dynamics runs/idm_window \\
      --policy runs/latent_vla --out executed"""
STEPS, EPISODES = 4, 64
MOST_STEPS = 1000  # of a rollout, which is held whole
RATE = 5.0  # frames a second of a video, where the run tells no window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is imagined, and from what.

    workdir: run that imagines, of stage quantizer or dynamics
    out: folder for strip.png, rollout.mp4, rollout.gif, rollout.json and report.html
    corpus: directory of shards (indexed): videos to measure against, or where --episode begins
    split: of the corpora
    image_key: the camera (default: the only one indexed)
    sidecar_dir: where the index of the corpus lies (default: in it)
    quantizer: run that reads z for a dynamics run: that of its label set
    codes: z of each step: steps joined by commas, the codes of one by colons (0,3,3 or 0:1,3:7)
    z: JSON file with a list of the z of each step under "z", as the page of `lapa play` saves it
    policy: run of stage latent_pretraining, which says z at each imagined frame; with --execute
        further rows by it
    instruction: what the policy is told
    transfer_from: directory of shards with the video whose z is used
    transfer_episode: its number there
    frame: image file to begin with
    resizing: how one of another size than the run's is made to fit
    episode: of --corpus, to begin with, or the only one to measure
    beside: another run that imagines the same, step by step beside this one
    execute: so many fixed start states of the environment of the --inverse_dynamics run, from which
        what is imagined is executed; --steps are then windows at most (default: what its horizon
        holds)
    inverse_dynamics: reads the actions: run with model.inverse_dynamics, of the window of z; or of
        stage quantizer, whose latents are read linearly, as the actions of --corpus say
    view: the camera (default: the environment's first)
    seed: of the start states
    features: run of stage teacher or quantizer whose features the Fréchet distance is of (default:
        the quantizer that reads z)
    """

    workdir: str
    out: str
    corpus: str = ""
    split: str = "train"
    image_key: str = ""
    sidecar_dir: str = ""
    quantizer: str = ""
    codes: str = ""
    z: str = ""
    policy: str = ""
    instruction: str = ""
    transfer_from: str = ""
    transfer_episode: Annotated[int | None, "[0, inf)", ""] = None
    frame: str = ""
    resizing: str = flags.option("none", choices=RESIZING)
    episode: Annotated[int | None, "[0, inf)", ""] = None
    episodes: Annotated[
        int | None, "[1, inf)", f"held-out ones to measure, at most (default: {EPISODES})"
    ] = None
    steps: Annotated[
        int | None,
        f"[1, {MOST_STEPS}]",
        f"to imagine (default: {STEPS}, or as many as z is given for)",
    ] = None
    window_seconds: Annotated[
        float, "[0, 1e4]", "between frames of a corpus; 0: that of the quantizer's training"
    ] = 0.0
    beside: str = ""
    features: str = ""
    execute: Annotated[int | None, "[2, inf)", ""] = None
    inverse_dynamics: str = ""
    view: str = ""
    seed: Annotated[int, "[0, inf)", ""] = 0

    def __post_init__(self) -> None:
        source = self.source
        begins = bool(self.frame), self.episode is not None
        needs = {
            "policy": {"instruction": "what it is told"},
            "transfer_from": {"transfer_episode": "the number of the video"},
            "corpus": {"corpus": "videos to measure against, or give --codes, --z or --policy"},
            "execute": {"inverse_dynamics": "the run that reads actions off what is imagined"},
        }.get(source, {})
        for name, what in needs.items():
            if getattr(self, name) is None or not str(getattr(self, name)).strip():
                raise ValueError(f"--{name} is missing: {what}")
        takers = {
            "instruction": ("policy",),
            "transfer_episode": ("transfer_from",),
            "quantizer": ("transfer_from", "corpus", "execute"),
            "window_seconds": ("transfer_from", "corpus", "execute"),
            "beside": ("corpus",),
            "features": ("corpus",),
            "episodes": ("corpus",),
            "resizing": ("codes", "z", "policy", "transfer_from"),
            "frame": ("codes", "z", "policy", "transfer_from"),
            "steps": ("policy", "transfer_from", "corpus", "execute"),
            **dict.fromkeys(("inverse_dynamics", "view", "seed"), ("execute",)),
            "episode": tuple(word for word in _WORDS if word != "execute"),
        }
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, sources in takers.items():
            if getattr(self, name) != defaults[name] and source not in sources:
                raise ValueError(f"--{name} does not go with z of {_WORDS[source]}")
        if source not in ("corpus", "execute") and (
            sum(begins) != 1 or begins[1] and not self.corpus
        ):
            raise ValueError(
                "--frame, or --corpus with --episode: give the one frame that the rollout begins "
                "with"
            )
        corpora = {self.corpus, self.transfer_from} - {""}
        if self.sidecar_dir and len(corpora) != 1:
            raise ValueError(
                f"--sidecar_dir {self.sidecar_dir} holds the index of one corpus, and there are "
                f"{len(corpora)} (--corpus, --transfer_from)"
            )

    @property
    def source(self) -> str:
        """Which flag z comes from; "corpus" where it is read off the videos to measure against,
        "execute" where it is read off an expert's, and said by the policy."""
        given = [name for name in ("codes", "z", "policy", "transfer_from") if getattr(self, name)]
        if self.execute is not None:
            given = ["execute", *(name for name in given if name != "policy")]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(f'--{name}' for name in given)} each say where z comes from: give "
                "one of them"
            )
        return given[0] if given else "corpus"


_WORDS = {
    "codes": "--codes",
    "z": "--z",
    "policy": "--policy",
    "transfer_from": "--transfer_from",
    "corpus": "--corpus, read off its videos",
    "execute": "--execute, read off an expert's videos",
}


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa rollout", WHAT, EXAMPLE)
    options = flags.parse(parser, argv, Options)
    out = _folder(options.out)  # before minutes of work
    imagination = open_imagination(options.workdir)
    made = _made(imagination, options)
    given = {field.name: field for field in dataclasses.fields(options)}
    asked = {n: x for n, f in given.items() if (x := getattr(options, n)) != f.default}
    page = executability_page if options.source == "execute" else rollout_page
    found = page.result(imagination, made, asked)
    out.mkdir(exist_ok=True)
    seconds = found.get("window_seconds", imagination.window_seconds)
    with storage.atomic_path(out / "strip.png") as temporary:
        Image.fromarray(page.strip(made)).save(temporary, format="PNG")
    video, rate = page.video(made), 1 / seconds if seconds else RATE
    write_video(out / "rollout.mp4", video, rate)
    write_gif(out / "rollout.gif", video, rate)
    storage.write_text(out / "rollout.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    page.write(out / "report.html", imagination, made, found)
    _show(made, out)
    return 0


def _folder(path: str) -> Path:
    """--out; raises where it is no folder in which files can be made, nor can be one."""
    out = Path(path)
    if not path:
        raise ValueError("--out is empty: name a folder")
    if not out.is_dir() and (out.exists() or out.is_symlink()):
        raise FileExistsError(f"--out {out} is there, and is no folder: choose another place")
    there = out if out.is_dir() else out.parent
    if not there.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {there}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {out}: nothing can be written into the folder {there}")
    return out


def _made(
    imagination: Imagination, options: Options
) -> rollouts.Rollouts | executability.Executability:
    steps, source = options.steps or STEPS, options.source
    # What reads z, before minutes of work.
    quantizer = load_quantizer(options.quantizer) if options.quantizer else None
    other = open_imagination(options.beside) if options.beside else None
    if other is not None:
        rollouts.check_beside(imagination, other)
    reader = None
    if source in ("transfer_from", "corpus"):
        reader = rollouts.reader_of(imagination, quantizer)

    def corpus(path: str) -> dict[str, str | float]:
        names = ("split", "image_key", "sidecar_dir", "window_seconds")
        return {"path": path} | {name: getattr(options, name) for name in names}

    if source == "execute":
        inverse = load(options.inverse_dynamics)
        return executability.executability(
            imagination,
            inverse if isinstance(inverse, LoadedQuantizer) else require(inverse, LoadedPolicy),
            labelled=corpus(options.corpus) if options.corpus else None,
            starts=options.execute,
            quantizer=quantizer,
            policy=load_policy(options.policy) if options.policy else None,
            steps=options.steps,
            window_seconds=options.window_seconds,
            view=options.view,
            seed=options.seed,
        )
    if source == "corpus":
        features = load(options.features) if options.features else reader
        extract = rollouts.extractor(features, imagination.image_size)
        which = dict(steps=steps, episodes=options.episodes or EPISODES, episode=options.episode)
        clips = rollout_sources.read_clips(imagination, reader, corpus(options.corpus), **which)
        return rollouts.of_videos(imagination, clips, rollouts.z_reader(reader), extract, other)
    size = imagination.image_size
    if options.frame:
        frame = first.of_file(options.frame, size, options.resizing)
    else:
        view = dict(split=options.split, image_key=options.image_key)
        index = load_index(options.corpus, sidecar_dir=options.sidecar_dir or None, **view)
        frame = first.of_corpus(index, options.episode, 0, size, options.resizing)
    frames = frame[None]
    if source == "policy":
        policy = load_policy(options.policy)
        return rollouts.of_policy(imagination, policy, frames, options.instruction, steps)
    if source == "transfer_from":
        which = dict(steps=steps, episode=options.transfer_episode, flag="--transfer_episode")
        given = corpus(options.transfer_from)
        clips = rollout_sources.read_clips(imagination, reader, given, **which)
        return rollouts.transferred(imagination, frames, clips, rollouts.z_reader(reader))
    if source == "codes":
        z = rollout_sources.codes_of(imagination, options.codes)
    else:
        z = rollout_sources.z_of_file(imagination, options.z)
    if z.shape[1] > MOST_STEPS:
        raise ValueError(f"--{source} has {z.shape[1]} steps: at most {MOST_STEPS}")
    return rollouts.of_z(imagination, frames, z)


def _show(made: rollouts.Rollouts | executability.Executability, out: Path) -> None:
    if isinstance(made, executability.Executability):
        text.show(text.table(executability_page.table(made.report)))
        text.show(f"{len(made.starts)} start states -> {out}/report.html")
        return
    if made.report:
        names = ("step", "mse", "skill", "forced_skill", "times_forced")
        rows = [
            ["–" if row[n] is None else f"{row[n]:.3g}" for n in names]
            for row in made.report["by_step"]
        ]
        if other := made.report.get("beside"):
            names = (*names, "skill_beside", "above")
            for row, beside in zip(rows, other["by_step"], strict=True):
                row += [
                    "–" if beside[n] is None else f"{beside[n]:.3g}" for n in ("skill", "above")
                ]
        text.show(text.table([names, *rows]))
    many = f"{len(made.labels)} rollouts" if made.labels[1:] else "one rollout"
    text.show(f"{many} -> {out}/report.html")
