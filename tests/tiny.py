"""Tiny corpora and configs on which every stage compiles and trains in seconds.

All tests use the same sizes, so that they share compiled programs.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import simplejpeg
from quick_flags import ENVIRONMENT, QUICK

from data_pipelines.index import load_index
from data_pipelines.index.build import build_index
from data_pipelines.index.labels import LabelSetWriter
from data_pipelines.rlds import schema
from data_pipelines.rlds.writer import RldsWriter
from lapa_jax import cli
from lapa_jax import config as configs
from lapa_jax.training import checkpoint, guard
from lapa_jax.training.metrics import METRICS_FILE, TIMING_KEYS

NO_TORCH = "PyTorch is not installed: requirements/dev.txt has it, for Python 3.11"
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason=NO_TORCH)
ROOT = Path(__file__).parent.parent
SIZE = 64  # pixels
FPS = 10.0
LABEL_SET = "laq"
SPECS = {
    "teacher": "experiments/teacher/tabletop.py:quick=True,data={data},views={views}",
    "quantizer": "experiments/quantizer/tabletop.py:quick=True,data={data},views={views}",
    "features": "experiments/quantizer/tabletop.py:quick=True,data={data},views={views},"
    "objective=features",
    "image_tokenizer": "experiments/image_tokenizer/tabletop.py:quick=True,data={data},"
    "views={views}",
    "dynamics": "experiments/dynamics/tabletop.py:quick=True,data={data},views={views}",
    "latent_pretraining": "experiments/latent_vla/tabletop.py:quick=True,data={data},views={views}",
    "action_finetuning": "experiments/action_vla/tabletop.py:quick=True,data={data}/robot",
}
COMMON = {
    "steps": 4,
    "optimizer.warmup_steps": 1,
    "global_batch": 8,
    "log_every_steps": 1,
    "checkpoint.every_steps": 2,
    "data.prefetch_batches": 2,
    "model.dim": 32,
    "model.mlp_dim": 64,
    "model.heads": 4,
    "model.head_dim": 8,
    "model.unroll": 1,
}
POLICY = {"model.depth": 2, "model.text_vocab": 320, "model.front_end.stem_channels": "(8,)"}
QUANTIZER = {
    "model.spatial_depth": 1,
    "model.temporal_depth": 1,
    "model.decoder_depth": 1,
    "model.bottleneck.recent_size": 32,
    "model.bottleneck.replace_every_steps": 3,
    "model.bottleneck.replace_noise": 0.01,
    "model.bottleneck.dead_fraction": 0.9,
}
ENCODER = {"dim": 32, "mlp_dim": 64, "heads": 4, "head_dim": 8, "depth": 1}
SIZES = {
    "teacher": {f"model.{key}": value for key, value in ENCODER.items()},
    "quantizer": QUANTIZER,
    # its teacher is what a tiny run of stage teacher gives
    "features": QUANTIZER | {f"model.objective.teacher.{k}": v for k, v in ENCODER.items()},
    "image_tokenizer": {},
    # its tokenizer is what a tiny run of stage image_tokenizer gives
    "dynamics": {
        "data.corpora.robot.window_seconds": 0.4,
        "model.decode_steps": 2,
        **{f"model.image_tokenizer.{k}": COMMON[f"model.{k}"] for k in ("heads", "head_dim")},
        "model.image_tokenizer.unroll": 1,
    },
    "latent_pretraining": POLICY,
    "action_finetuning": POLICY,
}


class Crash(Exception):
    """What `disturb` raises."""


def disturb(patch: pytest.MonkeyPatch, *, stop_at: int, crash_at: int) -> None:
    """A training in this process gets SIGTERM when one step is settled, and fails at another."""
    check = guard.Guard.check

    def disturbed(self, step, metrics):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == crash_at:
            raise Crash
        check(self, step, metrics)

    patch.setattr(guard.Guard, "check", disturbed)


def misread(patch: pytest.MonkeyPatch, module: Any, rules: str, theirs: str, pattern: str) -> None:
    """The rules that `module.<rules>` makes put the tensors whose names hold `theirs` in another
    order: shapes fit, numbers do not."""
    real = getattr(module, rules)

    def confused(given):
        return [
            dataclasses.replace(rule, pattern=pattern) if theirs in rule.theirs else rule
            for rule in real(given)
        ]

    patch.setattr(module, rules, confused)


# --- Configs ---


def arguments(task: str, data: Path, *, views: str = "robot", **changes) -> list[str]:
    """`--config ...` of a tiny run. `changes` are overrides, with `__` for the dot."""
    overrides = {**COMMON, **SIZES[task], **{k.replace("__", "."): v for k, v in changes.items()}}
    spec = str(ROOT / SPECS[task].format(data=data, views=views))
    return ["--config", spec, *(f"--config.{key}={value}" for key, value in overrides.items())]


def config(task: str, data: Path, **changes):
    """The same as a ConfigDict."""
    _, spec, *overrides = arguments(task, data, **changes)
    return configs.load(spec, overrides)


# --- Corpora ---


def write_corpus(
    directory: Path,
    *,
    episodes: int = 10,
    shards: int = 2,
    seed: int = 0,
    size: int = SIZE,
    fps: float = FPS,
    index: bool = True,
    states: bool = False,
    actions: bool = True,
) -> Path:
    """A square that moves as the actions say, in `shards` shards. `states`: with its place, and a
    number that is constant. `actions`: whether these are told."""
    rng = np.random.default_rng(seed)
    made = [_episode(rng, number, size, fps, states) for number in range(episodes)]
    if not actions:
        made = [dataclasses.replace(episode, actions=None) for episode in made]
    dim = made[0].states.shape[1] if states else 0
    spec = schema.EpisodeSpec(
        (size, size, 3), 2 if actions else 0, True, "squares", fps, state_dim=dim
    )
    record = len(schema.encode_episode(made[0], spec))
    limit = record * episodes // shards + record // 2
    with RldsWriter(directory, name="squares", spec=spec, shard_bytes=limit) as writer:
        for episode in made:
            writer.write(episode)
    if index:
        build_index(directory, progress=False)
    return directory


def _episode(
    rng: np.random.Generator, number: int, size: int, fps: float, with_states: bool
) -> schema.Episode:
    steps = int(rng.integers(8, 12))
    actions = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    place = rng.uniform(0.3, 0.7, 2)
    images, states = [], []
    for action in actions:
        states.append([*place, 0.7])
        image, side = np.full((size, size, 3), 40, np.uint8), min(12, size // 2)
        y, x = (place * (size - side)).astype(int)
        image[y : y + side, x : x + side] = (250, 80 + number % 3 * 60, 60)
        images.append(simplejpeg.encode_jpeg(image, 90))
        place = np.clip(place + action * 0.1, 0, 1)
    words = ("red square", "green square", "blue square")[number % 3]
    return schema.Episode(
        images=images,
        actions=actions,
        states=np.array(states, np.float32) if with_states else None,
        instruction=f"move the {words} to place {number % 4}",
        episode_id=f"episode-{number}",
        camera="robot",
        fps=fps,
    )


def write_labels(directory: Path, name: str = LABEL_SET, **provenance) -> None:
    """A label set of random codes, or vectors of a `width`: of a quantizer that never was."""
    index = load_index(directory, split="train")
    provenance = {
        "quantizer_hash": "0" * 32,
        "window_seconds": 0.4,
        "tail": "drop",
        "codebook_size": 8,
        "code_length": 1,
        "code_version": "test",
    } | provenance
    shape = (index.num_frames, provenance["code_length"])
    codes = np.random.default_rng(1).integers(0, provenance["codebook_size"], shape)
    step = (
        np.arange(index.num_frames)
        - index.episode_start[index.episode_of_rows(np.arange(index.num_frames))]
    )
    length = index.episode_length[index.episode_of_rows(np.arange(index.num_frames))]
    absent = step + round(provenance["window_seconds"] * FPS) >= length
    codes[absent] = -1
    codes = codes.astype(np.int16)
    if width := provenance.get("width"):
        del provenance["codebook_size"]
        codes = np.random.default_rng(1).normal(size=(*shape, width)).astype(np.float32)
        codes[absent] = np.nan
    writer = LabelSetWriter(index.sidecar_dir, name, index, provenance=provenance)
    for shard in range(len(index.shards)):
        writer.write_shard(shard, codes[index.rows_of_shard(shard)])
    writer.finish()


# --- Runs ---


def lapa(*arguments: object) -> tuple[int, str, str]:
    """`lapa ARGUMENTS` in this process; (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(x) for x in arguments])
        except SystemExit as exit:  # argparse
            code = exit.code
    return code, out.getvalue(), err.getvalue()


def succeed(*arguments: object) -> str:
    """Runs a verb that must succeed; its stdout."""
    code, out, err = lapa(*arguments)
    assert code == 0, err
    return out


def result(workdir: Path) -> dict:
    """What two runs of the same work must have in common: checksums of every array of the newest
    checkpoint (params, ema, variables, optimizer state), its meta, and the metrics."""
    directory = workdir / "checkpoints"
    step = checkpoint.list_steps(directory)[-1]
    meta, records = checkpoint._read_meta(directory, step)
    arrays = {
        f"{item}/{path}": record["checksum"]
        for item, paths in records.items()
        for path, record in paths.items()
    }
    rows = [
        {key: value for key, value in json.loads(line).items() if key not in TIMING_KEYS}
        for line in (workdir / METRICS_FILE).read_text().splitlines()
    ]
    return {"step": step, "meta": meta, "arrays": arrays, "metrics": rows}


def logged_step(workdir: Path) -> int:
    """The newest step in metrics.jsonl, 0 before the first."""
    path = workdir / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith("\n")]
    return json.loads(lines[-1])["step"] if lines else 0


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with so many devices, which compiles as the tests do."""
    return (
        os.environ
        | ENVIRONMENT
        | {
            "XLA_FLAGS": QUICK,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        }
    )


def command(arguments: list[str], output: IO[str], devices: int = 1) -> subprocess.Popen:
    """`python -m lapa_jax ARGUMENTS` in that environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "lapa_jax", *arguments],
        cwd=ROOT,
        env=environment(devices),
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def run_until(
    arguments: list[str],
    ready: Callable[[], bool] = lambda: False,
    number: signal.Signals = signal.SIGKILL,
    limit: float = 240.0,
) -> tuple[int, str]:
    """Runs a command to its end, or sends the signal once `ready()`; (exit code, output)."""
    deadline = time.monotonic() + limit
    with tempfile.TemporaryFile("w+") as output:
        process = command(arguments, output)
        try:
            while process.poll() is None and not ready():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{arguments} made no progress in {limit} s")
                time.sleep(0.005)
            if process.poll() is None:
                process.send_signal(number)
            process.wait(limit)
        finally:
            process.kill()
        output.seek(0)
        return process.returncode, output.read()


# --- Golden files ---


def check_golden(path: str, value: object) -> None:
    """Compares plain JSON values with tests/golden/PATH; LAPA_UPDATE_GOLDEN=1 writes it instead."""
    file = ROOT / "tests" / "golden" / path
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    if os.environ.get("LAPA_UPDATE_GOLDEN") == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return
    update = "If this is meant, run the test with LAPA_UPDATE_GOLDEN=1 and review the difference"
    assert file.exists(), f"{file} does not exist. {update}"
    old, new = json.loads(file.read_text()), json.loads(text)
    changes = [f"{key}: {a!r} -> {b!r}" for key, (a, b) in configs.difference(old, new).items()]
    assert not changes, f"{file} differs. {update}:\n" + "\n".join(changes)
