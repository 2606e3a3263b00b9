"""RLDS data sets as TFDS itself writes them."""

import numpy as np
import simplejpeg


def picture(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Blocks of 8 pixels, different for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3))
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)


def jpeg(number: int, height: int = 24, width: int = 32) -> bytes:
    return simplejpeg.encode_jpeg(picture(number, height, width), quality=95)


def write(parent, name, step_features, episodes, *, metadata=None, per_shard=2, split="train"):
    """Writes episodes, each a list of steps (and its metadata); returns the directory."""
    import tensorflow_datasets as tfds

    features = {"steps": tfds.features.Dataset(step_features)}
    if metadata:
        features["episode_metadata"] = tfds.features.FeaturesDict(metadata)
    directory = parent / name / "0.1.0"
    directory.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("0.1.0"), data_dir=str(directory), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features), description="test"
    )
    writer = tfds.core.SequentialWriter(info, per_shard, file_format="tfrecord")
    writer.initialize_splits([split])
    writer.add_examples({split: [one if metadata else {"steps": one} for one in episodes]})
    writer.close_all()
    return directory


def flags(step: int, steps: int) -> dict:
    """What RLDS has in every step."""
    last = step == steps - 1
    return {
        "is_first": step == 0,
        "is_last": last,
        "is_terminal": last,
        "reward": np.float32(last),
    }


def flag_features() -> dict:
    return {key: np.bool_ for key in ("is_first", "is_last", "is_terminal")} | {
        "reward": np.float32
    }


def write_bridge(parent, lengths=(4, 3, 5)):
    """As `bridge` of Open X-Embodiment, with a wrist camera in PNG beside it."""
    import tensorflow_datasets as tfds

    features = flag_features() | {
        "observation": {
            "image": tfds.features.Image(shape=(24, 32, 3), encoding_format="jpeg"),
            "wrist": tfds.features.Image(shape=(24, 32, 3), encoding_format="png"),
            "natural_language_instruction": tfds.features.Text(),
            "state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        },
        "action": {
            "world_vector": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "rotation_delta": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "open_gripper": np.bool_,
            "terminate_episode": np.float32,
        },
    }
    episodes = [
        [
            flags(step, length)
            | {
                "observation": {
                    "image": jpeg(100 * number + step),
                    "wrist": picture(7000 + 100 * number + step),
                    "natural_language_instruction": f"put the pot {number} down ",
                    "state": np.full(7, step, np.float32),
                },
                "action": {
                    "world_vector": np.full(3, number + step / 10, np.float32),
                    "rotation_delta": np.full(3, -step, np.float32),
                    "open_gripper": step % 2 == 0,
                    "terminate_episode": np.float32(step == length - 1),
                },
            }
            for step in range(length)
        ]
        for number, length in enumerate(lengths)
    ]
    return write(parent, "bridge", features, episodes)


def write_standard(
    parent, name="my_robot", *, steps=4, texts=None, fps=None, size=(24, 32), camera="image"
):
    """As rlds_dataset_builder's template; its action is float64."""
    import tensorflow_datasets as tfds

    features = flag_features() | {
        "observation": {camera: tfds.features.Image(shape=(*size, 3), encoding_format="jpeg")},
        "action": tfds.features.Tensor(shape=(2,), dtype=np.float64),
        "language_instruction": tfds.features.Text(),
    }
    texts = texts or ["wave"] * steps
    episode = [
        flags(step, steps)
        | {
            "observation": {camera: jpeg(step, *size)},
            "action": np.array([step, 0.5]),
            "language_instruction": texts[step],
        }
        for step in range(steps)
    ]
    if fps is None:
        return write(parent, name, features, [episode])
    metadata = {"fps": fps, "file_path": "a.hdf5"}
    return write(
        parent,
        name,
        features,
        [{"steps": episode, "episode_metadata": metadata}],
        metadata={"fps": np.float32, "file_path": tfds.features.Text()},
    )


def write_language_table(parent, text="push the blue hexagon to the “moon”"):
    """As `language_table`: `rgb`, and the instruction as the bytes of its UTF-8 form."""
    import tensorflow_datasets as tfds

    codes = np.zeros(64, np.int32)
    codes[: len(text.encode())] = list(text.encode())
    features = flag_features() | {
        "observation": {
            "rgb": tfds.features.Image(shape=(24, 32, 3)),
            "instruction": tfds.features.Tensor(shape=(64,), dtype=np.int32),
        },
        "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
    }
    episode = [
        flags(step, 3)
        | {
            "observation": {"rgb": picture(step), "instruction": codes},
            "action": np.full(2, step, np.float32),
        }
        for step in range(3)
    ]
    return write(parent, "language_table", features, [episode])


LAYOUTS = 3  # steps


def write_layouts(parent):
    """One episode with images, numbers and texts in every form that TFDS has for them."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    of = tfds.features
    far = of.Tensor(shape=(1,), dtype=np.float64, encoding="zlib")
    features = flag_features() | {
        "observation": of.Image(shape=(24, 32, 3), encoding_format="jpeg"),
        "front": {"rgb": of.Image(shape=(24, 32, 3), encoding_format="jpeg")},
        "tensor": of.Tensor(shape=(24, 32, 3), dtype=np.uint8),
        "raw": of.Tensor(shape=(24, 32, 3), dtype=np.uint8, encoding="bytes"),
        "zipped": of.Tensor(shape=(24, 32, 3), dtype=np.uint8, encoding="zlib"),
        "grey": of.Tensor(shape=(24, 32), dtype=np.uint8),
        "depth": of.Image(shape=(24, 32, 1), dtype=np.uint16),
        "height": of.Image(shape=(24, 32, 1), dtype=np.float32),
        "stack": of.Sequence(of.Image(shape=(24, 32, 3))),
        "action": {
            "move": of.Tensor(shape=(2,), dtype=np.float64, encoding="bytes"),
            "half": of.Tensor(shape=(1,), dtype=np.float16),
            "brain": of.Tensor(shape=(2,), dtype=tf.bfloat16, encoding="bytes"),
            "grip": np.bool_,
            "mode": of.ClassLabel(names=["open", "close"]),
            "list": of.Sequence(np.float32),
            "ragged": of.Sequence(np.float32),
            "huge": np.int64,
            "ends": {
                "int": np.int64,
                "list": of.Sequence(np.int64),
                "far": far,
                "pairs": of.Sequence(of.Tensor(shape=(2,), dtype=np.float32)),
            },
        },
        "texts": of.Sequence(of.Text()),
        "pair": of.Tensor(shape=(2,), dtype=np.object_),
        "bytes": of.Tensor(shape=(8,), dtype=np.uint8, encoding="bytes"),
        "blank": of.Text(),
    }

    def step(i):
        image = picture(i)
        return flags(i, LAYOUTS) | {
            "observation": jpeg(i),
            "front": {"rgb": jpeg(50 + i)},
            "tensor": image,
            "raw": image,
            "zipped": image,
            "grey": image[..., 0],
            "depth": image[..., :1].astype(np.uint16),
            "height": image[..., :1].astype(np.float32),
            "stack": [image, image],
            "action": {
                "move": np.full(2, i / 2 if i < LAYOUTS - 1 else np.nan),
                "half": np.full(1, i, np.float16),
                "brain": np.array([i, -0.5], tf.bfloat16.as_numpy_dtype),
                "grip": i == 1,
                "mode": i % 2,
                "list": [float(i), 7.0],
                "ragged": [1.0] * i,
                "huge": 2**24 + 1,
                "ends": {
                    "int": i if i < LAYOUTS - 1 else 2**53 + 1,
                    "list": [i, i] if i < LAYOUTS - 1 else [],
                    "far": np.full(1, float(i) if i < LAYOUTS - 1 else 1e300),
                    "pairs": [np.full(2, i, np.float32)] * (2 if i < LAYOUTS - 1 else 1),
                },
            },
            "texts": ["", " take it ", "grab it"],
            "pair": ["first", "second"],
            "bytes": np.frombuffer("grüß".encode().ljust(8, b"\0"), np.uint8),
            "blank": " ",
        }

    metadata = {"task": of.Text(), "tasks": of.Sequence(of.Text()), "robot": np.int64}
    codes = {"codes": of.Tensor(shape=(4,), dtype=np.int32)}
    episode = {
        "steps": [step(i) for i in range(LAYOUTS)],
        "episode_metadata": {
            "task": "tidy up",
            "tasks": ["a", "b"],
            "robot": 4,
            "codes": np.array([104, 105, 0, 0], np.int32),
        },
    }
    return write(parent, "layouts", features, [episode], metadata=metadata | codes)
