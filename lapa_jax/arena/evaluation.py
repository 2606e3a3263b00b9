"""An evaluation of a server's policy in an environment: what `lapa evaluate --benchmark` does."""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from absl import logging

from data_pipelines import keys, storage
from data_pipelines.progress import Progress
from lapa_jax.arena import checks, records, results, server
from lapa_jax.arena.client import Policy, address
from lapa_jax.arena.pool import Pool
from lapa_jax.arena.worker import Job, Setup
from lapa_jax.envs import words
from lapa_jax.envs.env import Environment, EnvSpec, tasks_named, usable
from lapa_jax.envs.execution import BY_RUN, Execution

VIDEOS = "videos"


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the evaluation."""

    out: Annotated[str, "", "a folder: results, episodes, videos; the same command goes on"] = ""
    server: Annotated[str, "", "a policy's address, ws://HOST:PORT (openpi's protocol)"] = ""
    workdir: Annotated[str, "", "or a run, for which `lapa serve` is started"] = ""
    tasks: Annotated[tuple[str, ...], "", "joined by commas; default: all"] = ()
    episodes: Annotated[int, "[1, 1e6]", "of each task"] = 50
    seed: Annotated[int, "[0, 2147483647]", "of the start states"] = 0
    phrasings: Annotated[
        str,
        ("train", "held_out", "all", words.NONE, words.SHUFFLED),
        "of the instructions; none: no words; shuffled: those of the other tasks",
    ] = "train"
    steps: Annotated[int, "[0, 1e6]", "of an episode at most; 0: the environment's horizon"] = 0
    cameras: Annotated[tuple[str, ...], "", "views that are sent; default: the environment's"] = ()
    image_size: Annotated[
        tuple[int, ...], "[8, 4096]", "a side or height,width; default: the policy's"
    ] = ()
    image_keys: Annotated[tuple[str, ...], "", "of each camera; default: as the server says"] = ()
    state_key: Annotated[
        str, "", "what the robot knows of itself is sent as; default: as the server says"
    ] = ""
    prompt_key: Annotated[str, "", "the instruction is sent as"] = "prompt"
    workers: Annotated[int, "[1, 1024]", "processes, an environment each"] = 2
    python: Annotated[str, "", "of the workers; default: the environment's, or this one"] = ""
    videos: Annotated[int, "[0, 1e6]", "episodes of each task, the first ones, as mp4"] = 1
    step_seconds: Annotated[float, "[0.01, 1e5]", "without a step, until a worker is replaced"] = 60
    answer_seconds: Annotated[float, "[0.01, 1e5]", "that an answer may take"] = 30
    start_seconds: Annotated[float, "[0.1, 1e5]", "for a server or a worker to be ready"] = 600

    def __post_init__(self) -> None:
        keys.check(Options, dataclasses.asdict(self), "")
        if not self.out:
            raise ValueError("--out DIR is missing: where results go")
        if bool(self.server) == bool(self.workdir):
            raise ValueError("give --server ws://HOST:PORT, or --workdir RUN to have it served")


def evaluate(
    env: Environment, settings: Mapping[str, Any], options: Options, how: Execution = BY_RUN
) -> dict[str, Any]:
    """Runs what is not there yet; gives and writes the result. settings: of `envs.make`. `how`
    chunks of actions are acted on."""
    spec = env.spec
    tasks = tasks_named(spec, options.tasks)
    if options.phrasings == words.SHUFFLED and len(spec.tasks) < 2:
        raise ValueError(f"--phrasings shuffled: {spec.name} has no other task than {tasks[0]}")
    if options.phrasings in ("train", "held_out") and not len(env.phrasings(options.phrasings)):
        raise ValueError(f"--phrasings {options.phrasings}: {spec.name} has none of these here")
    python = options.python or python_of(env)
    if python == sys.executable or not (options.python or shutil.which(python)):
        usable(env)  # in another Python the workers say
    out = storage.make_directory(Path(options.out))
    if options.server:
        return _with(address(options.server), spec, tasks, python, settings, options, how, out)
    log = out / "server.log"
    served = dict(workers=options.workers, image_keys=options.image_keys, real_time=bool(how.delay))
    with server.started(options.workdir, log, seconds=options.start_seconds, **served) as url:
        return _with(url, spec, tasks, python, settings, options, how, out)


def python_of(env: Environment) -> str:
    """The interpreter that has the environment's simulator; this one, where it names none."""
    return str(getattr(env, "python", "") or sys.executable)


def _with(
    url: str,
    spec: EnvSpec,
    tasks: tuple[str, ...],
    python: str,
    settings: Mapping[str, Any],
    options: Options,
    how: Execution,
    out: Path,
) -> dict[str, Any]:
    with Policy(url, options.answer_seconds, options.start_seconds) as policy:
        metadata = policy.metadata
        checks.fits(spec, metadata)
        cameras = checks.cameras(spec, metadata, options.cameras)
        setup = Setup(
            env=dict(settings),
            server=url,
            cameras=cameras,
            image_size=checks.image_size(spec, metadata, options.image_size),
            image_keys=checks.image_keys(metadata, cameras, options.image_keys),
            state_key=checks.state_key(metadata, options.state_key),
            steps=options.steps or spec.horizon,
            execution=dataclasses.asdict(checks.execution(metadata, how)),
            follows=checks.follows(metadata, how),
            **{name: getattr(options, name) for name in _AS_THEY_ARE},
        )
        checks.fields(spec, setup)
        if how.delay and not setup.follows:
            logging.warning(
                "the policy is not guided by what goes on until its answer comes: that takes a "
                "head `flow`, and `lapa serve --real_time`"
            )
        checks.trial(spec, policy, setup)
    same = {k: v for k, v in dataclasses.asdict(setup).items() if k not in _MAY_DIFFER}
    said = same.pop("execution")  # in the folders of before there is `execute` alone
    same |= {k: v for k, v in said.items() if k == "execute" or v != getattr(BY_RUN, k)}
    same["policy"] = _identity(metadata)
    with records.opened(out, same) as kept:
        pool = Pool(python, options.workers, options.step_seconds, setup, out)
        _run(pool, spec, tasks, kept, options)
        result = results.summary(spec, tasks, _asked(kept, tasks, options))
        result |= {"settings": same, "server": options.server or options.workdir}
        _write(out, spec, result, _asked(kept, tasks, options))
    return result


_AS_THEY_ARE = (*("answer_seconds", "start_seconds", "seed", "phrasings", "prompt_key"),)
# When an evaluation goes on.
_MAY_DIFFER = ("server", "answer_seconds", "start_seconds", "follows")


def _identity(metadata: Mapping[str, Any]) -> Any:
    """What of a server's metadata says which policy it is."""
    of = metadata.get("checkpoint")
    if isinstance(of, Mapping):
        return {k: of.get(k) for k in ("step", "params_hash", "weights")}
    return {"metadata_hash": hashlib.sha256(repr(metadata).encode()).hexdigest()[:16]}


def _asked(kept: records.Records, tasks: tuple[str, ...], options: Options) -> dict:
    """Of what is there, what this command is about."""
    return {
        (task, number): one
        for (task, number), one in kept.found.items()
        if task in tasks and number < options.episodes
    }


def _run(
    pool: Pool, spec: EnvSpec, tasks: tuple[str, ...], kept: records.Records, options: Options
) -> None:
    """The episodes that are not there, or are there as errors."""
    videos = storage.make_directory(kept.out / VIDEOS) if options.videos else None
    wanted = [(task, number) for task in tasks for number in range(options.episodes)]
    done = {key for key in wanted if "error" not in kept.found.get(key, {"error": ""})}
    jobs = []
    for task, number in wanted:
        if (task, number) not in done:
            film = videos is not None and number < options.videos
            frames = str(videos / f"{task}-{number}.npy") if film else ""
            jobs.append(Job(task, number, frames))
    if not jobs:
        return
    successes = sum(kept.found[key]["success"] for key in done)
    with Progress("episodes", len(wanted), unit="episode", done=len(done)) as bar:
        bar.waits("the workers start")
        for one in pool.run(jobs):
            if "error" in one:
                logging.warning("%s, episode %d: %s", one["task"], one["number"], one["error"])
                (kept.out / VIDEOS / f"{one['task']}-{one['number']}.npy").unlink(missing_ok=True)
            elif videos is not None and one["number"] < options.videos:
                _keep_video(videos / f"{one['task']}-{one['number']}.npy", spec.control_hz)
            kept.append(one)
            successes += one.get("success", False)
            bar.update(success=f"{successes}/{bar.done + 1}")


def _keep_video(frames: Path, fps: float) -> None:
    results.write_video(frames.with_suffix(".mp4"), np.load(frames, allow_pickle=False), fps)
    frames.unlink()


def _write(out: Path, spec: EnvSpec, result: Mapping[str, Any], found: dict) -> None:
    storage.write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    paths = {key: out / VIDEOS / f"{key[0]}-{key[1]}.mp4" for key in found}
    there = {key: path for key, path in paths.items() if path.is_file()}
    settings = dict(result["settings"]) | {"server": result["server"]}
    results.page(out / "page.html", spec, result, found, there, settings)
