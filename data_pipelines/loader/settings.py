"""`config.data` as typed settings, which check themselves: what a `Loader` is made from."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

# Keys that have few values.
CHOICES = {
    "decode": ("auto", "threads", "tf"),
    "access": ("random", "windowed"),
    "sampling": ("per_frame", "per_video"),
    "tail": ("drop", "clamp"),
    "action_padding": ("repeat", "no_motion", "drop"),
}
_BESIDE = ("augment",)  # keys of `config.data` that are of the devices' part


def _require(valid: bool, key: str, value: Any, wanted: str) -> None:
    if not valid:
        raise ValueError(f"{key} is {value!r}; it must {wanted}")


def _require_keys(kind: type, keys: Iterable[str], prefix: str) -> None:
    """No others than settings have, and all those without a default."""
    known = [field.name for field in fields(kind) if field.name != "name"]
    for key in keys:
        if key not in known:
            raise ValueError(f"{prefix}{key} is no key; known are {known}")
    for field in fields(kind):
        if field.default is MISSING and field.name not in ("name", *keys):
            raise ValueError(f"{prefix}{field.name} is missing")


@dataclass(frozen=True)
class CorpusSettings:
    """`data.corpora.<name>`; docs/data.md explains the keys."""

    name: str
    path: str  # directory with the TFRecord shards
    split: str = "train"
    sidecar_dir: str = ""  # where index and label sets lie; empty: beside the shards
    weight: float = 1.0  # share of the mixture, relative to the others
    fraction: float = 1.0  # of its episodes that are drawn from
    action_fraction: float = 1.0  # of its episodes whose actions are known; those of the others not
    min_episode_steps: int = 0  # shorter episodes are not drawn from
    require_instruction: bool = False  # of episodes drawn from, where training does not need it
    window_seconds: float = 0.6  # time between the two frames of a pair
    fps: float = 0.0  # 0.0: from the episodes' metadata
    # Of the index; image_key "": the only one there is, the others "": those it was built with.
    image_key: str = "image"
    extra_image_keys: tuple[str, ...] = ()  # further cameras of each example, after image_key
    action_key: str = "action"
    instruction_key: str = "language_instruction"
    label_set: str = ""  # name of the label set that gives latent actions
    image_token_set: str = ""  # name of the set that gives image tokens, of each camera

    @classmethod
    def of(cls, name: str, keys: Mapping[str, Any]) -> "CorpusSettings":
        _require_keys(cls, keys, f"data.corpora.{name}.")
        return cls(name, **keys)

    def as_dict(self) -> dict[str, Any]:
        """The keys as a config has them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    def key(self, name: str) -> str:
        """What a key is called where it is set."""
        return f"data.corpora.{self.name}.{name}"

    def __post_init__(self) -> None:
        for key, valid, wanted in (
            ("fraction", 0 < self.fraction <= 1, "be in (0, 1]"),
            ("action_fraction", 0 <= self.action_fraction <= 1, "be 0 to 1"),
            ("min_episode_steps", self.min_episode_steps >= 0, "not be negative"),
        ):
            _require(valid, self.key(key), getattr(self, key), wanted)


@dataclass(frozen=True)
class DataSettings:
    """`config.data`; docs/data.md explains the keys."""

    image_size: tuple[int, int]  # height, width in pixels
    corpora: tuple[CorpusSettings, ...]  # in the order of their names
    num_frames: int = 1
    # Time between the frames of an example, which end at the current one. 0.0: they begin there,
    # window_seconds of their corpus apart.
    history_seconds: float = 0.0
    chain_pairs: int = 1  # pairs of one episode side by side in the batch, sharing frames
    sampling: str = "per_frame"  # or per_video, as the paper's code
    # Of frames a window apart, the mean difference in 0..255 below which neither pair nor label is
    # drawn. Above 0.0 it needs `lapa data motion`.
    min_pair_difference: float = 0.0
    tail: str = "drop"  # frames beyond the episode; or clamp, as the paper's code
    action_horizon: int = 1  # actions of an example, of so many steps from its own on
    # Past the end of the episode: repeat the last one; or no_motion, where all dimensions but
    # action_absolute are zero; or drop, which draws whole ones alone.
    action_padding: str = "repeat"
    action_absolute: tuple[int, ...] = ()  # dimensions that are no motion, as (-1,): the gripper's
    # Or windowed: whole blocks, for object stores. The three keys below are for that alone.
    access: str = "random"
    block_mib: float = 64.0  # MiB of consecutive episodes that are read at once
    window_blocks: int = 2  # whose samples are permuted together
    lanes: int = 8  # that read for themselves: a multiple of the hosts
    decode: str = "auto"  # threads, or tf (tf.data): who runs the same decoder
    num_threads: int = 2
    prefetch_batches: int = 4
    max_bad_fraction: float = 0.001  # more undecodable examples than this stop the run

    @classmethod
    def of(cls, data: Any) -> "DataSettings":
        """From `config.data` (a ConfigDict or a mapping), or settings as they are."""
        if isinstance(data, cls):
            return data
        values = data.to_dict() if hasattr(data, "to_dict") else dict(data)
        values = {key: value for key, value in values.items() if key not in _BESIDE}
        _require_keys(cls, values, "data.")
        corpora = sorted(values["corpora"].items())
        values["corpora"] = tuple(CorpusSettings.of(name, keys) for name, keys in corpora)
        values["image_size"] = tuple(values["image_size"])
        return cls(**values)

    def __post_init__(self) -> None:
        for key in ("num_frames", "action_horizon", "num_threads", "prefetch_batches"):
            _require(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "be at least 1")
        for key, known in CHOICES.items():
            value = getattr(self, key)
            _require(value in known, f"data.{key}", value, f"be one of {known}")
        for key, valid, wanted in (
            ("history_seconds", self.history_seconds >= 0, "not be negative"),
            ("min_pair_difference", 0 <= self.min_pair_difference <= 255, "be 0 to 255"),
            ("max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "be 0 to 1"),
            ("block_mib", 0 < self.block_mib < 2**20, "be positive"),
        ):
            _require(valid, f"data.{key}", getattr(self, key), wanted)
        pairs = self.num_frames == 2 and self.history_seconds == 0
        if self.chain_pairs < 1 or self.chain_pairs > 1 and not pairs:
            raise ValueError(
                f"data.chain_pairs is {self.chain_pairs}; it must be at least 1, and chains are of "
                f"pairs: data.num_frames 2 (is {self.num_frames}), data.history_seconds 0.0 (is "
                f"{self.history_seconds})"
            )

    @property
    def is_clip(self) -> bool:
        """Whether an example has later frames than the one at which it stands."""
        return self.num_frames > 1 and self.history_seconds == 0

    def on(self, corpora: Mapping[str, Any], **keys: Any) -> "DataSettings":
        """Like the first corpus, but there: corpora by name, each a path, or the keys in which it
        differs; `keys` are of all of them."""
        first = self.corpora[0] if self.corpora else CorpusSettings("", "")
        found = (
            (name, there if isinstance(there, Mapping) else {"path": str(there)})
            for name, there in sorted(corpora.items())
        )
        made = (CorpusSettings.of(name, {**first.as_dict(), **keys, **own}) for name, own in found)
        return replace(self, corpora=tuple(made))

    def draw_any(self) -> "DataSettings":
        """Examples are drawn one by one, from all that there are."""
        return replace(self, access="random", min_pair_difference=0.0, chain_pairs=1)

    def in_order(self) -> "DataSettings":
        """Pairs, every one there is, whatever training draws: to walk over, not to sample."""
        every = dict(label_set="", fraction=1.0, min_episode_steps=0, require_instruction=False)
        return replace(
            self.draw_any(),
            sampling="per_frame",
            num_frames=2,
            history_seconds=0.0,
            corpora=tuple(replace(corpus, **every) for corpus in self.corpora),
        )
