"""What studies compare: arms, settings and worlds, as data; experiments/studies/pipeline.py makes
cells of them. All arms have the same backbone, tokenizer of instructions, batches and start states.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Arm:
    """How a policy comes about.

    learns: what of the videos it is pretrained on: "" nothing, "latent" actions, the "true"
        actions, or those "said" by an inverse dynamics model of the labelled episodes
    control: the label set in the place of the quantizer's, one of control_labels.KINDS
    other: the videos show another embodiment, whatever the setting
    recipe: of fine-tuning (experiments/action_vla/tabletop.py); of "openvla" of pretraining, too
    matched: fine-tuning takes as many FLOPs as all of `lapa`
    draws: it acts by frames that its quantizer draws (docs/policies.md), and is not fine-tuned
    tuned: whose steps and learning rate of fine-tuning it has, a key of `World.tuned`
    """

    learns: str = ""
    objective: str = "pixels"  # of the quantizer; "best": World.best
    control: str = ""
    other: bool = False
    recipe: str = "own"
    matched: bool = False
    draws: bool = False
    tuned: str = "lapa"


ARMS = {
    "scratch": Arm(tuned="scratch"),
    "vpt": Arm("said", tuned="vpt"),
    "lapa": Arm("latent"),
    "action_vla": Arm("true", tuned="action_vla"),
    "scratch_matched": Arm(matched=True, tuned="scratch"),
    "openvla": Arm("true", recipe="openvla", tuned="action_vla"),
    "unipi": Arm("latent", draws=True),
    "frozen_features": Arm("latent", recipe="frozen_features"),
    "lapa_best": Arm("latent", objective="best"),
    "shuffled_latents": Arm("latent", control="shuffled"),
    "kmeans_latents": Arm("latent", control="kmeans"),
    "random_latents": Arm("latent", control="random"),
    "oracle_latents": Arm("latent", control="oracle"),
    "human_only": Arm("latent", other=True),
}
MAIN = ("scratch", "vpt", "lapa", "action_vla")


@dataclasses.dataclass(frozen=True)
class Setting:
    """other: the videos show another embodiment. part: labelled episodes are of `World.part`."""

    other: bool = False
    part: bool = False


SETTINGS = {
    "in_domain": Setting(),
    "cross_task": Setting(part=True),
    "cross_embodiment": Setting(other=True),
}


UNSEEN = "_unseen"  # after a setting's name: its rollouts are of what no labelled episode names
WORDS = "_words_"  # and then: policies are told other words than in training


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Of fine-tuning: its steps, and the learning rate of all but the head as a part of the
    head's."""

    steps: int
    rest: float


@dataclasses.dataclass(frozen=True)
class World:
    """Where arms are compared: an environment, what is collected in it, and what is trained.

    scene: the environment, as of `envs.make`; all its tasks are collected
    shown: what of the scene differs in the videos
    tasks: those that policies are asked to do, `rollouts` start states each
    views, other: of the videos; of the videos of another embodiment
    robot: the view of the labelled episodes, and of the policy
    part: what of the scene differs where labelled episodes are of some tasks only
    unseen: what differs in rollouts of what no labelled episode names
    quantizer: config by objective; latent_vla: config by the objective whose labels it learns, or
        without one; action_vla: config by recipe; teacher: config, for objectives that need one
    tuned: by name of `Arm.tuned`
    video_seed, label_seed: of the data; labelled episodes of seed s have label_seed + s
    rollout_seed: of the start states, which all arms and seeds share
    """

    scene: Mapping[str, Any]
    tasks: tuple[str, ...]
    views: tuple[str, ...]
    robot: str
    videos: int
    rollouts: int
    quantizer: Callable[[str], ConfigDict]
    latent_vla: Callable[..., ConfigDict]
    action_vla: Callable[[str], ConfigDict]
    tuned: Mapping[str, Tuned]
    teacher: Callable[[], ConfigDict] | None = None
    shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    other: tuple[str, ...] = ()
    part: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unseen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    best: str = "algebraic"  # the objective of `lapa_best`
    noise: float = 0.3  # of the expert in the videos
    workers: int = 1  # processes that collect, of a world that cannot be traced
    video_seed: int = 700
    label_seed: int = 710
    rollout_seed: int = 0
