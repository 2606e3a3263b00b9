"""The RLDS schema that this project writes, and its checks.

One record is one episode: a tf.train.Example with flattened keys `steps/...` and
`episode_metadata/...`, as TFDS writes it. `encode_episode` is the one place where an `Episode`
becomes bytes; a wrong episode raises `SchemaError`, which names the episode and the value.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.rlds import tfrecord

OBSERVATION = "steps/observation/"
IMAGE, STATE = OBSERVATION + "image", OBSERVATION + "state"
CAMERA_MOTION = OBSERVATION + "camera_motion"
ACTION = "steps/action"
INSTRUCTION = "steps/language_instruction"
IS_FIRST, IS_LAST, IS_TERMINAL = "steps/is_first", "steps/is_last", "steps/is_terminal"
REWARD, DISCOUNT = "steps/reward", "steps/discount"
METADATA = "episode_metadata/"
EPISODE_ID, FPS = METADATA + "episode_id", METADATA + "fps"

# Kind of every episode_metadata field that is always written, in TFDS dtype names.
METADATA_DTYPES = {
    "episode_id": "string",
    "source": "string",
    "file_path": "string",
    "camera": "string",
    "fps": "float32",
    "has_action": "bool",
    "has_language": "bool",
}
EXTRA_DTYPES = ("string", "float32", "int64", "bool")


class SchemaError(ValueError):
    """An episode does not fit the spec of the corpus that it is written to."""


@dataclass(frozen=True)
class EpisodeSpec:
    """What all episodes of a corpus share.

    image_shape: (height, width, 3) of every JPEG. action_dim: 0 means that the corpus has no
    actions and the key `steps/action` is absent. language: whether episodes may have instructions
    (one without has `has_language` False). fps: frames per second; 0 means it differs by episode
    and each episode brings its own. extras: further episode_metadata fields, name → dtype of
    EXTRA_DTYPES. state_dim: of the robot's state at each step, 0 where it is not recorded.
    cameras: what further cameras are called, whose images are of the same size. camera_motion_dim:
    of how the first camera moves to the next step, 0 where it is not recorded.
    """

    image_shape: tuple[int, int, int]
    action_dim: int
    language: bool
    source: str
    fps: float = 0.0
    extras: dict[str, str] = field(default_factory=dict)
    state_dim: int = 0
    cameras: tuple[str, ...] = ()
    camera_motion_dim: int = 0

    def __post_init__(self):
        names = ("image", "state", "camera_motion", *self.cameras)
        if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", n) for n in names):
            raise SchemaError(
                f"cameras are {self.cameras}; they must be different words beside image, state and "
                "camera_motion"
            )
        height, width, channels = self.image_shape
        if channels != 3 or height < 1 or width < 1:
            raise SchemaError(f"image_shape is {self.image_shape}; it must be (height, width, 3)")
        for key in ("action_dim", "state_dim", "camera_motion_dim"):
            if getattr(self, key) < 0:
                raise SchemaError(f"{key} is {getattr(self, key)}; it must be 0 (none) or more")
        if not (np.isfinite(self.fps) and self.fps >= 0):
            raise SchemaError(
                f"fps is {self.fps}; it must be positive, or 0 where it differs by episode"
            )
        for name, dtype in self.extras.items():
            if name in METADATA_DTYPES:
                raise SchemaError(f"extras has {name!r}, which the schema already holds")
            if dtype not in EXTRA_DTYPES:
                raise SchemaError(f"extras[{name!r}] has dtype {dtype!r}; known: {EXTRA_DTYPES}")


@dataclass
class Episode:
    """One trajectory seen by one camera. `actions[t]` is taken at step t.

    reward None means zeros. terminal: whether the last step ends the task (True for
    demonstrations) or the recording was cut. views: the images of each further camera.
    """

    images: list[bytes]
    actions: np.ndarray | None
    instruction: str
    episode_id: str
    file_path: str = ""
    camera: str = ""
    fps: float = 0.0
    reward: np.ndarray | None = None
    terminal: bool = True
    extras: dict[str, str | float | int | bool] = field(default_factory=dict)
    states: np.ndarray | None = None
    views: dict[str, list[bytes]] = field(default_factory=dict)
    camera_motion: np.ndarray | None = None

    @property
    def num_steps(self) -> int:
        return len(self.images)


def images_per_example(data: Any) -> int:
    """How many images an example of `config.data` is: of each of its frames one by each camera.

    Without corpora (an imported model) there is one camera.
    """
    cameras = {1 + len(corpus.extra_image_keys) for corpus in data.corpora.values()} or {1}
    if len(cameras) != 1:
        raise ValueError(
            f"data.corpora.*.extra_image_keys give {sorted(cameras)} cameras: every corpus must "
            "have as many"
        )
    return data.num_frames * cameras.pop()


def picture_kind(data: tfrecord.Buffer) -> str:
    """Whether bytes start as a JPEG or a PNG does: "jpeg", "png", or "" for neither."""
    head = bytes(data[:4])
    return "jpeg" if head[:2] == b"\xff\xd8" else "png" if head == b"\x89PNG" else ""


def jpeg_size(jpeg: bytes) -> tuple[int, int, int]:
    """(height, width, channels) from the JPEG header; raises ValueError if there is none. The
    decoder's own reader wants more of a file than that: it knows no size of one that is cut off."""
    return jpeg_header(jpeg)[0]


def jpeg_header(jpeg: bytes) -> tuple[tuple[int, int, int], int]:
    """(`jpeg_size`, how many bytes it took to know it)."""
    if picture_kind(jpeg) != "jpeg":
        raise ValueError(f"not a JPEG: it starts with {jpeg[:2].hex(' ') or 'nothing'}, not ff d8")
    at = 2
    while at + 9 < len(jpeg):
        if jpeg[at] != 0xFF:
            raise ValueError(f"damaged JPEG header at byte {at}")
        marker = jpeg[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(jpeg[at + i : at + i + 2]) for i in (5, 7))
            return (height, width, jpeg[at + 9]), at + 10
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    raise ValueError("truncated JPEG: it has no frame header")


def check_episode(episode: Episode, spec: EpisodeSpec) -> None:
    """Raises SchemaError unless the episode fits the spec."""

    def fail(reason: str) -> SchemaError:
        return SchemaError(f"episode {episode.episode_id!r} of {spec.source!r}: {reason}")

    if not episode.episode_id:
        raise SchemaError(
            f"an episode of {spec.source!r} (file {episode.file_path!r}) has an empty episode_id"
        )
    steps = episode.num_steps
    if steps == 0:
        raise fail("it has no images")
    if tuple(episode.views) != spec.cameras:
        raise fail(f"views are {tuple(episode.views)}, the spec's cameras are {spec.cameras}")
    for name, images in {"image": episode.images, **episode.views}.items():
        if len(images) != steps:
            raise fail(f"it has {len(images)} images of {name}, {steps} of the first camera")
        for step, jpeg in enumerate(images):
            try:
                shape = jpeg_size(jpeg)
            except ValueError as error:
                raise fail(f"{name} of step {step}: {error}") from error
            if shape != tuple(spec.image_shape):
                raise fail(
                    f"{name} of step {step} is {shape}, the spec's image_shape is "
                    f"{tuple(spec.image_shape)}"
                )
    for what, values, key, size in (
        ("action", episode.actions, "action_dim", spec.action_dim),
        ("state", episode.states, "state_dim", spec.state_dim),
        ("camera motion", episode.camera_motion, "camera_motion_dim", spec.camera_motion_dim),
    ):
        if (values is not None) != (size > 0):
            raise fail(
                f"{what}s are {'absent' if values is None else 'present'}, but the spec's {key} is "
                f"{size}"
            )
        if values is None:
            continue
        if values.shape != (steps, size):
            raise fail(
                f"{what}s have shape {values.shape}, expected {(steps, size)} (steps, {key})"
            )
        if values.dtype != np.float32:
            raise fail(f"{what}s have dtype {values.dtype}, expected float32")
        used = values[:-1] if what == "action" else values  # the last step's means nothing
        bad = np.argwhere(~np.isfinite(used))
        if len(bad):
            raise fail(
                f"the {what} of step {bad[0][0]}, dimension {bad[0][1]} is {values[tuple(bad[0])]}"
            )
    if episode.instruction != episode.instruction.strip():
        raise fail(f"its instruction {episode.instruction!r} has blanks at an end; strip it")
    if episode.instruction and not spec.language:
        raise fail(f"its instruction is {episode.instruction!r}, but the spec's language is False")
    fps = episode.fps or spec.fps
    if not (np.isfinite(fps) and fps > 0):
        raise fail(f"fps is {episode.fps} (spec: {spec.fps}); one of them must be positive")
    if spec.fps and episode.fps and episode.fps != spec.fps:
        raise fail(f"fps is {episode.fps}, the spec's fps is {spec.fps} (0 there allows any)")
    if episode.reward is not None and (
        episode.reward.shape != (steps,) or episode.reward.dtype != np.float32
    ):
        raise fail(
            f"reward is {episode.reward.dtype}{episode.reward.shape}, expected float32{(steps,)}"
        )
    if set(episode.extras) != set(spec.extras):
        raise fail(f"extras are {sorted(episode.extras)}, the spec's are {sorted(spec.extras)}")


def encode_episode(episode: Episode, spec: EpisodeSpec) -> bytes:
    """The serialised tf.train.Example of a checked episode (checks it first)."""
    check_episode(episode, spec)
    steps = episode.num_steps
    first, last = np.zeros(steps, bool), np.zeros(steps, bool)
    first[0] = last[-1] = True
    features: dict[str, tfrecord.FeatureValue] = {
        IMAGE: episode.images,
        INSTRUCTION: [episode.instruction] * steps,
        IS_FIRST: first,
        IS_LAST: last,
        IS_TERMINAL: last & episode.terminal,
        REWARD: np.zeros(steps, np.float32) if episode.reward is None else episode.reward,
        DISCOUNT: np.ones(steps, np.float32),
        EPISODE_ID: episode.episode_id,
        METADATA + "source": spec.source,
        METADATA + "file_path": episode.file_path,
        METADATA + "camera": episode.camera,
        FPS: np.float32(episode.fps or spec.fps),
        METADATA + "has_action": episode.actions is not None,
        METADATA + "has_language": bool(episode.instruction),
    }
    if episode.actions is not None:
        features[ACTION] = episode.actions
    if episode.states is not None:
        features[STATE] = episode.states
    if episode.camera_motion is not None:
        features[CAMERA_MOTION] = episode.camera_motion
    features |= {OBSERVATION + name: images for name, images in episode.views.items()}
    for name, dtype in spec.extras.items():
        features[METADATA + name] = _extra(name, dtype, episode.extras[name])
    return tfrecord.encode_example(features)


def _extra(name: str, dtype: str, value: object) -> tfrecord.FeatureValue:
    kinds = {"string": str, "float32": float | int, "int64": int, "bool": bool}
    if not isinstance(value, kinds[dtype]) or (isinstance(value, bool) and dtype != "bool"):
        raise SchemaError(f"extras[{name!r}] is {value!r}, the spec says {dtype}")
    return np.float32(value) if dtype == "float32" else value
