"""A corpus of as many episodes as wanted that takes no room, and what it takes to read from it.

    python tests/data/big_index.py DIR --episodes 1000000 --steps 70

makes shards of the right size that are holes but for one JPEG each, to which every frame of their
index points, and tells seconds to the first batch and peak resident memory, from several steps and
each in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import simplejpeg

from data_pipelines import sidecar
from data_pipelines.index.build import FORMAT
from data_pipelines.rlds.shards import index_folder, shard_fingerprint

FRAME_BYTES = 25_000  # in a record; the JPEG itself is smaller
SIZE = 64


def make(directory: Path, episodes: int, steps: int, *, shards: int = 64, actions: int = 7) -> None:
    """Shards and index; `actions`: their dimension, 0 for none."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((SIZE // 8, SIZE // 8, 1)))
    jpeg = simplejpeg.encode_jpeg(picture.astype(np.uint8), 90)
    shard = np.sort(np.arange(episodes) % shards).astype(np.int32)
    record = np.arange(episodes) - np.searchsorted(shard, shard)
    record_bytes = steps * FRAME_BYTES
    paths = []
    for number in range(shards):
        paths.append(directory / f"big-train.tfrecord-{number:05d}-of-{shards:05d}")
        with open(paths[-1], "wb") as file:
            file.write(jpeg)
            file.truncate((int((shard == number).sum()) + 1) * record_bytes)
    frames = episodes * steps
    arrays = {
        "record_of_episode": record.astype(np.int32),
        "episode_length": np.full(episodes, steps, np.int64),
        "fps": np.full(episodes, 5.0, np.float32),
        "record_offset": (record * record_bytes + len(jpeg)).astype(np.uint64),
        "record_length": np.full(episodes, record_bytes, np.uint64),
        "instruction_of_episode": (np.arange(episodes) % 1000).astype(np.int32),
        "frame_offset": np.zeros(frames, np.uint64),
        "frame_length": np.full(frames, len(jpeg), np.uint32),
        "frame_crc": np.full(frames, google_crc32c.value(jpeg), np.uint32),
        "shard_of_episode": shard,
        "episode_start": np.arange(episodes, dtype=np.int64) * steps,
    }
    if actions:
        arrays["actions"] = rng.random((frames, actions), np.float32)
    folder = index_folder(directory, "image", "train")
    for name, array in arrays.items():
        sidecar.write_array(folder / f"{name}.npy", array)
    manifest = {
        "format": FORMAT,
        "split": "train",
        "image_key": "image",
        "action_key": "action",
        "instruction_key": "language_instruction",
        "shards": [shard_fingerprint(path) for path in paths],
        "exclude": [],
        "num_frames": frames,
        "num_episodes": episodes,
        "keys": {"steps/action": "float"},
        "image_size": [SIZE, SIZE],
        "instructions": [f"do thing {number}" for number in range(1000)],
        "digests": {name: sidecar.array_digest(array) for name, array in arrays.items()},
        "hash": "big",
    }
    sidecar.write_json(folder / "manifest.json", manifest)


_FIRST_BATCH = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from shards import data_config
from data_pipelines.loader import Loader
from lapa_jax.machine.memory import peak_resident_bytes
before = peak_resident_bytes() >> 20
start = time.perf_counter()
config = data_config({"a": sys.argv[2]}, size=int(sys.argv[3]), access=sys.argv[5])
with Loader(config, fields=("frames", "action", "instruction"), global_batch=256, seed=0) as loader:
    batches = loader.iterate(int(sys.argv[4]))
    next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    state = len(json.dumps(loader.fingerprint(0)))
print(json.dumps({"seconds": round(seconds, 2), "before_mib": before,
                  "peak_mib": peak_resident_bytes() >> 20, "state_bytes": state}))
"""


def first_batch(directory: Path, step: int, access: str = "random") -> dict:
    """Seconds after imports, and peak memory, of a process that makes one batch of 256 pairs."""
    arguments = [str(Path(__file__).parent), str(directory), str(SIZE), str(step), access]
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_BATCH, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--actions", type=int, default=7)
    args = parser.parse_args()
    if not args.directory.exists():
        make(args.directory, args.episodes, args.steps, actions=args.actions)
    for step in (0, 0, 10**5, 10**8):
        print(step, first_batch(args.directory, step))
