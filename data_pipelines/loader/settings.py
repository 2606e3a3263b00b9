"""`config.data` as typed settings, which check themselves: what a `Loader` is made from."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Annotated, Any

from data_pipelines import keys

_BESIDE = ("augment",)  # keys of `config.data` that are of the devices' part


def _checked(kind: type, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """With the defaults of what is not there; ValueError for what no config may have."""
    defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    values = {**defaults, **values}
    keys.check(kind, values, key)
    return values


def _folder(path: str) -> str:
    return path.rstrip("/") if "://" in path else os.path.realpath(path)


@dataclass(frozen=True)
class CorpusSettings:
    """`data.corpora.<name>`; docs/data.md explains the keys."""

    name: str
    path: Annotated[str, "not empty", "directory with the TFRecord shards"]
    split: Annotated[str, "not empty", "of the dataset"] = "train"
    sidecar_dir: Annotated[str, "where index and label sets lie; empty: beside the shards"] = ""
    weight: Annotated[float, "(0, 1e6]", "share of the mixture, relative to the others"] = 1.0
    fraction: Annotated[float, "(0, 1]", "of its episodes that are drawn from"] = 1.0
    action_fraction: Annotated[
        float, "[0, 1]", "of its episodes whose actions are known; those of the others not"
    ] = 1.0
    min_episode_steps: Annotated[int, "[0, 1e6]", "shorter episodes are not drawn from"] = 0
    require_instruction: Annotated[
        bool, "of episodes drawn from, where training does not need it"
    ] = False
    window_seconds: Annotated[float, "(0, 1e4]", "time between the two frames of a pair"] = 0.6
    fps: Annotated[float, "[0, 1e4]", "0.0: from the episodes' metadata"] = 0.0
    image_key: Annotated[str, "of the index; empty: the only one there is"] = "image"
    extra_image_keys: Annotated[
        tuple[str, ...], "not empty", "further cameras of each example, after image_key"
    ] = ()
    action_key: Annotated[str, "of the index; empty: that it was built with"] = "action"
    instruction_key: Annotated[str, "of the index; empty: that it was built with"] = (
        "language_instruction"
    )
    action_set: Annotated[
        str, "name of the action set that gives the actions of episodes whose own are not known"
    ] = ""
    state_key: Annotated[
        str, "of the index: the robot's state, as observation/state; empty: it is not read"
    ] = ""
    label_set: Annotated[str, "name of the label set that gives latent actions"] = ""
    image_token_set: Annotated[str, "name of the set that gives image tokens, of each camera"] = ""

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any]) -> "CorpusSettings":
        return cls(name, **_checked(cls, values, f"data.corpora.{name}"))

    def as_dict(self) -> dict[str, Any]:
        """The keys as a config has them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    def key(self, name: str) -> str:
        """What a key is called where it is set."""
        return f"data.corpora.{self.name}.{name}"


@dataclass(frozen=True)
class DataSettings:
    """`config.data`; docs/data.md explains the keys."""

    image_size: Annotated[tuple[int, int], "[1, 8192]", "height, width in pixels"]
    corpora: tuple[CorpusSettings, ...]  # in the order of their names
    num_frames: Annotated[int, "[1, 1024]", "of an example and camera"] = 1
    history_seconds: Annotated[
        float,
        "[0, 1e4]",
        "time between the frames of an example, which end at the current one; 0.0: they begin "
        "there, window_seconds of their corpus apart",
    ] = 0.0
    chain_pairs: Annotated[
        int, "[1, 1e6]", "pairs of one episode side by side in the batch, sharing frames"
    ] = 1
    sampling: Annotated[
        str, ("per_frame", "per_video"), "what is drawn evenly; per_video as the paper's code"
    ] = "per_frame"
    min_pair_difference: Annotated[
        float,
        "[0, 255]",
        "of frames a window apart, the mean difference in 0..255 below which neither pair nor "
        "label is drawn; above 0.0 it needs `lapa data motion`",
    ] = 0.0
    tail: Annotated[
        str, ("drop", "clamp"), "frames beyond the episode; clamp as the paper's code"
    ] = "drop"
    action_horizon: Annotated[
        int, "[1, 4096]", "actions of an example, of so many steps from its own on"
    ] = 1
    action_padding: Annotated[
        str,
        ("repeat", "no_motion", "drop"),
        "past the end of the episode: repeat the last one; or no_motion, where all dimensions but "
        "action_absolute are zero; or drop, which draws whole ones alone",
    ] = "repeat"
    action_absolute: Annotated[
        tuple[int, ...], "[-4096, 4096]", "dimensions that are no motion, as (-1,): the gripper's"
    ] = ()
    access: Annotated[str, ("random", "windowed"), "windowed: whole blocks, for object stores"] = (
        "random"
    )
    block_mib: Annotated[
        float, "(0, 1048576)", "MiB of consecutive episodes that are read at once, if windowed"
    ] = 64.0
    window_blocks: Annotated[
        int, "[1, 1e6]", "whose samples are permuted together, if windowed"
    ] = 2
    lanes: Annotated[
        int, "[1, 1e6]", "that read for themselves, if windowed: a multiple of the hosts"
    ] = 8
    decode: Annotated[
        str,
        ("auto", "threads", "tf"),
        "who runs the decoder, the same one: threads or tf (tf.data)",
    ] = "auto"
    num_threads: Annotated[int, "[1, 4096]", "that read and decode, on each host"] = 2
    prefetch_batches: Annotated[int, "[1, 4096]", "that are made ahead"] = 4
    unusable_episodes: Annotated[
        str,
        ("refuse", "leave_out"),
        "those that training cannot use, as one whose instruction is longer than the model's",
    ] = "refuse"
    max_bad_fraction: Annotated[
        float, "[0, 1]", "more undecodable examples than this stop the run"
    ] = 0.001

    @classmethod
    def of(cls, data: Any) -> "DataSettings":
        """From `config.data` (a ConfigDict or a mapping), or settings as they are."""
        if isinstance(data, cls):
            return data
        values = data.to_dict() if hasattr(data, "to_dict") else dict(data)
        values = {key: value for key, value in values.items() if key not in _BESIDE}
        corpora = sorted(values.pop("corpora", {}).items())
        values = _checked(cls, values, "data")
        values["corpora"] = tuple(CorpusSettings.of(name, one) for name, one in corpora)
        values["image_size"] = tuple(values["image_size"])
        return cls(**values)

    def __post_init__(self) -> None:
        pairs = self.num_frames == 2 and self.history_seconds == 0
        if self.chain_pairs > 1 and not pairs:
            raise ValueError(
                f"data.chain_pairs={self.chain_pairs} must be 1: chains are of pairs, "
                f"data.num_frames 2 (is {self.num_frames}), data.history_seconds 0.0 (is "
                f"{self.history_seconds})"
            )

    @property
    def is_clip(self) -> bool:
        """Whether an example has later frames than the one at which it stands."""
        return self.num_frames > 1 and self.history_seconds == 0

    def on(self, corpora: Mapping[str, Any], **keys: Any) -> "DataSettings":
        """Like the first corpus, but there: corpora by name, each a path, or the keys in which it
        differs; `keys` are of all of them. Sidecars and fps belong to a path."""
        first = self.corpora[0] if self.corpora else CorpusSettings("", "")
        by_path = {_folder(one.path): one for one in reversed(self.corpora)}
        found = (
            (name, there if isinstance(there, Mapping) else {"path": str(there)})
            for name, there in sorted(corpora.items())
        )
        made = []
        for name, own in found:
            known = by_path.get(_folder(own.get("path", first.path)), CorpusSettings("", ""))
            own = {**first.as_dict(), "sidecar_dir": "", "fps": known.fps, **keys, **own}
            own["sidecar_dir"] = own["sidecar_dir"] or known.sidecar_dir
            made.append(CorpusSettings.of(name, own))
        return replace(self, corpora=tuple(made))

    def draw_any(self) -> "DataSettings":
        """Examples are drawn one by one, from all that there are."""
        return replace(self, access="random", min_pair_difference=0.0, chain_pairs=1)

    def in_order(self) -> "DataSettings":
        """Pairs, every usable one, whatever training draws: to walk over, not to sample."""
        every = dict(fraction=1.0, min_episode_steps=0, require_instruction=False)
        every |= dict.fromkeys(("label_set", "action_set"), "") | {"extra_image_keys": ()}
        return replace(
            self.draw_any(),
            sampling="per_frame",
            unusable_episodes="leave_out",
            num_frames=2,
            history_seconds=0.0,
            corpora=tuple(replace(corpus, **every) for corpus in self.corpora),
        )
