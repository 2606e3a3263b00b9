"""What `lapa data bench` tells of the loader beside its rate: how soon the first batch is there,
what a checkpoint keeps of the data, and whether memory stays flat."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data_pipelines import sidecar
from data_pipelines.bench.arms import Setting, ours
from data_pipelines.index import load_index
from data_pipelines.loader import Loader
from data_pipelines.rlds.shards import find_shards, index_folder

STEPS = (0, 10**5, 10**8)
_MEMORY_EVERY = 1.0  # seconds


def first_batches(setting: Setting, decode: str) -> list[dict[str, Any]]:
    """{index_episodes, step, seconds}: from nothing but imports to the first batch, index opened
    and checked, each in a new process."""
    return [_in_process(_first_batch, setting, decode, step) for step in STEPS]


def state_bytes(setting: Setting) -> int:
    """Size of what a checkpoint keeps of the data."""
    loader = Loader(setting.data, fields=("frames",), global_batch=setting.batch, seed=0)
    return len(json.dumps(loader.fingerprint(STEPS[-1])))


def memory(setting: Setting, decode: str, minutes: float) -> dict[str, Any]:
    """{decode, minutes, batches, mib, growth}: the most that a process which reads for so long has
    resident in each tenth of the time, and by what fraction the second half exceeds the first (but
    for the first tenth, in which pools and caches fill). It is the most that counts: how many
    batches are alive at a moment varies."""
    return _in_process(_memory, setting, decode, minutes)


def many_episodes(directory: Path, episodes: int) -> Path:
    """The corpus again, with an index in which its episodes stand over and over: `episodes` of
    them. Its frames are those of the same shards."""
    target = directory.with_name(f"{directory.name}-{episodes}-episodes")
    folder = index_folder(target, "image", "train")
    if (folder / "manifest.json").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for shard in find_shards(directory, "train"):
        link = target / shard.name
        if not link.exists():
            os.link(shard, link)
    index = load_index(directory)
    times = np.bincount(np.arange(episodes) % index.num_episodes, minlength=index.num_episodes)
    chosen = np.repeat(np.arange(index.num_episodes), times)  # ordered by shard, as they must be
    lengths = index.episode_length[chosen]
    starts = np.cumsum(lengths) - lengths
    rows = np.arange(int(lengths.sum()))
    rows -= np.repeat(starts - index.episode_start[chosen], lengths)
    manifest = sidecar.read_json(index_folder(directory, "image", "train") / "manifest.json")
    arrays = {"episode_length": lengths, "episode_start": starts}
    for name in manifest["digests"].keys() - arrays.keys() - {"actions"}:
        array = getattr(index, name)  # of its frames or of its episodes
        arrays[name] = array[rows if len(array) == index.num_frames else chosen]
    for name, array in arrays.items():
        sidecar.write_array(folder / f"{name}.npy", array)
    counts = {"num_frames": len(rows), "num_episodes": episodes}
    digests = {name: sidecar.array_digest(array) for name, array in arrays.items()}
    found = sidecar.value_hash([manifest["hash"], counts])
    manifest |= counts | {"digests": digests, "hash": found}
    sidecar.write_json(folder / "manifest.json", manifest)
    return target


def _first_batch(setting: Setting, decode: str, step: int) -> dict[str, Any]:
    if decode == "tf":
        import tensorflow  # noqa: F401
    start = time.perf_counter()
    next(ours(setting, decode, step, fields=("frames",)))
    seconds = round(time.perf_counter() - start, 3)
    episodes = load_index(next(iter(setting.data.corpora.values())).path).num_episodes
    return {"decode": decode, "index_episodes": episodes, "step": step, "seconds": seconds}


def _memory(setting: Setting, decode: str, minutes: float) -> dict[str, Any]:
    process, batches, count = psutil.Process(), ours(setting, decode), 0
    start, found = time.perf_counter(), []
    while (passed := time.perf_counter() - start) < 60 * minutes:
        next(batches)
        count += 1
        if passed >= len(found) * _MEMORY_EVERY:
            found.append(process.memory_info().rss / 2**20)
    most = [max(part) for part in np.array_split(found, 10) if len(part)]
    half = len(most) // 2
    return {
        "decode": decode,
        "minutes": minutes,
        "batches": count,
        "mib": [round(value, 1) for value in most],
        "growth": round(max(most[half:]) / max(most[1:half] or most) - 1, 4),
    }


def _in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def to_text(starts: Sequence[dict[str, Any]], state: int, memories: Sequence[dict]) -> str:
    lines = [f"a checkpoint keeps {state} bytes of the data (goal: < 1024)"]
    for row in starts:
        lines.append(
            f"first batch, {row['decode']:<8}{row['index_episodes']:>9} episodes, step "
            f"{row['step']:>9}: {row['seconds']:6.2f} s (goal: < 2)"
        )
    for row in memories:
        lines.append(
            f"memory, {row['decode']:<8}{row['minutes']:g} minutes, {row['batches']} batches: "
            f"{row['mib'][0]:.0f} MiB at first, {row['mib'][-1]:.0f} at last, second half "
            f"{100 * row['growth']:+.1f} % (goal: 5)"
        )
    return "\n".join(lines)
