"""Small synthetic corpora for tests, written with our own codec."""

from pathlib import Path

import ml_collections
import numpy as np
import simplejpeg

from data_pipelines.index import build_index
from data_pipelines.rlds import schema, tfrecord

LENGTHS = (7, 4, 9, 1, 6, 5)


def picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth random image, which JPEG can compress."""
    coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((size // 8, size // 8, 1), np.uint8))


def episode(
    rng: np.random.Generator,
    steps: int,
    number: int,
    *,
    size: int = 16,
    actions: int = 3,
    instruction: str | None = None,
    fps: float = 5.0,
    states: int = 0,
) -> schema.Episode:
    images = [simplejpeg.encode_jpeg(picture(rng, size), 95) for _ in range(steps)]
    return schema.Episode(
        images=images,
        instruction=f"do thing {number % 3}" if instruction is None else instruction,
        actions=rng.normal(size=(steps, actions)).astype(np.float32) if actions else None,
        states=rng.normal(size=(steps, states)).astype(np.float32) if states else None,
        episode_id=f"episode-{number}",
        file_path=f"/videos/{number}.mp4",
        camera="front",
        fps=fps,
    )


def spec(size: int = 16, actions: int = 3, states: int = 0) -> schema.EpisodeSpec:
    return schema.EpisodeSpec((size, size, 3), actions, True, "synthetic", state_dim=states)


def write_corpus(
    directory: Path,
    *,
    lengths=LENGTHS,
    shards: int = 2,
    seed: int = 0,
    size: int = 16,
    actions: int = 3,
    split: str = "train",
    name: str = "toy",
    fps: float = 5.0,
    index: bool = True,
    instruction: str | None = None,
    cameras: tuple[str, ...] = (),
    states: int = 0,
) -> list[schema.Episode]:
    """Writes (and indexes) a corpus; returns its episodes in shard order. `cameras`: observations
    beside `image`."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    said = dict(size=size, actions=actions, fps=fps, instruction=instruction, states=states)
    episodes = [episode(rng, steps, number, **said) for number, steps in enumerate(lengths)]
    for shard, numbers in enumerate(np.array_split(np.arange(len(episodes)), shards)):
        path = directory / f"{name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"
        with open(path, "wb") as file:
            for number in numbers:
                record = schema.encode_episode(episodes[number], spec(size, actions, states))
                for camera in cameras:
                    images = episode(rng, lengths[number], number, size=size).images
                    record += tfrecord.encode_example({schema.OBSERVATION + camera: images})
                tfrecord.write_record(file, record)
    for camera in ("image", *cameras) if index else ():
        build_index(directory, split=split, image_key=camera, progress=False)
    return episodes


def data_config(corpora: dict[str, Path], size: int = 16, **overrides) -> ml_collections.ConfigDict:
    """config.data for corpora, name → directory. `name__key=value` overrides a corpus's key."""
    config = ml_collections.ConfigDict(
        {
            "image_size": (size, size),
            "num_frames": 2,
            "history_seconds": 0.0,
            "chain_pairs": 1,
            "sampling": "per_frame",
            "tail": "drop",
            "action_horizon": 1,
            "action_padding": "repeat",
            "action_absolute": (),
            "min_pair_difference": 0.0,
            "access": "random",
            "block_mib": 64.0,
            "window_blocks": 2,
            "lanes": 8,
            "decode": "threads",
            "num_threads": 2,
            "prefetch_batches": 4,
            "max_bad_fraction": 0.001,
            "corpora": {
                name: {
                    "path": str(path),
                    "split": "train",
                    "sidecar_dir": "",
                    "weight": 1.0,
                    "fraction": 1.0,
                    "action_fraction": 1.0,
                    "min_episode_steps": 0,
                    "require_instruction": False,
                    "window_seconds": 0.4,
                    "fps": 0.0,
                    "image_key": "image",
                    "extra_image_keys": (),
                    "action_key": "action",
                    "instruction_key": "language_instruction",
                    "label_set": "",
                    "image_token_set": "",
                }
                for name, path in corpora.items()
            },
        }
    )
    for key, value in overrides.items():
        corpus, _, inner = key.rpartition("__")
        if corpus:
            config.corpora[corpus][inner] = value
        else:
            config[key] = value
    return config
