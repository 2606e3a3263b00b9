"""Every key of every shipped config: what it cannot be is refused by name before anything runs."""

import copy
import math

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_configs import EXPERIMENTS, load

from data_pipelines import keys
from experiments import base
from lapa_jax import config as configs
from lapa_jax import settings
from lapa_jax.latent.bottlenecks import BOTTLENECKS
from lapa_jax.latent.objectives import OBJECTIVES
from lapa_jax.policy.front_end import FRONT_ENDS
from lapa_jax.policy.heads import HEADS
from lapa_jax.stages.augmentation import AUGMENTATIONS
from lapa_jax.training.optimizer import OPTIMIZERS

MAY_BE_ZERO = set(
    """seed data.corpora.*.fps data.corpora.*.action_fraction data.corpora.*.min_episode_steps
    data.history_seconds data.min_pair_difference data.action_absolute data.max_bad_fraction
    data.augment.brightness data.augment.contrast data.augment.hue_degrees data.augment.saturation
    data.augment.value data.augment.colour_fraction optimizer.end_lr optimizer.warmup_steps
    optimizer.weight_decay optimizer.clip_norm optimizer.ema_decay optimizer.b1 optimizer.b2
    optimizer.momentum optimizer.max_decay optimizer.groups.*.lr_scale
    optimizer.groups.*.decay_scale checkpoint.every_minutes checkpoint.keep_every_steps
    guard.spike_sigmas guard.max_events evaluation.every_steps evaluation.episodes
    evaluation.env.min_gap model.image_vocab model.unroll model.lora_rank model.sequence_length
    model.targets.*.loss_weight model.collapse_fraction model.normalize_decay model.registers
    model.mask_fraction model.decoder_depth model.latent_codes model.noise
    model.image_tokenizer.unroll model.objective.teacher.registers
    model.bottleneck.continuous_steps model.bottleneck.ramp_steps model.bottleneck.dead_fraction
    model.bottleneck.replace_every_steps model.bottleneck.replace_noise
    model.objective.commitment_weight model.objective.untold
    model.objective.compose_weight model.objective.additivity
    model.objective.reversal
    model.bottleneck.commitment_weight model.bottleneck.sharpness_weight
    model.bottleneck.entropy_weight model.bottleneck.diversity model.bottleneck.kl_weight
    model.state.noise_std model.state.dropout model.targets.*.max_tokens model.targets.*.depth
    model.targets.*.latent_weight model.targets.*.codebook_size model.objective.decay
    model.objective.state_weight model.objective.pose_weight model.objective.action_dim
    model.objective.action_weight model.objective.augment.brightness
    model.objective.augment.contrast model.objective.augment.hue_degrees
    model.objective.augment.saturation model.objective.augment.value
    model.objective.augment.colour_fraction""".split()
)
MAY_BE_ZERO |= {
    f"model.objective.{name}_weight" for name in ("cross", "action", "coordination", "task", "body")
}
MAY_BE_NEGATIVE = {"data.action_absolute", *(f"mesh.{axis}" for axis in ("data", "fsdp", "seq"))}
MAY_BE_NEGATIVE |= {"mesh.tensor"}
MAY_BE_EMPTY = set(
    """init_from checkpoint.best_metric logging.wandb_project model.tokenizer model.action_codec
    model.front_end.weights model.objective.weights model.weights data.corpora.*.sidecar_dir
    data.corpora.*.image_key data.corpora.*.action_key data.corpora.*.instruction_key
    data.corpora.*.state_key data.corpora.*.label_set data.corpora.*.image_token_set
    data.corpora.*.action_set
    data.corpora.*.extra_image_keys
    data.action_absolute evaluation.corpora model.front_end.stem_channels
    model.targets.*.tokenizer""".split()
)
NOT_FINITE = (math.nan, math.inf, -math.inf)
HUGE = (1e30, -1e30, 10**400)


def shipped() -> list[ConfigDict]:
    """The shipped configs, and each part that another name would choose, in one of them."""
    found = [load(experiment) for experiment in EXPERIMENTS]
    quantizer, policy = load(EXPERIMENTS_OF["quantizer"]), load(EXPERIMENTS_OF["action_vla"])
    for config, key, registry, new in (
        (quantizer, "model.bottleneck", BOTTLENECKS, base.bottleneck),
        (quantizer, "model.objective", OBJECTIVES, base.objective),
        (quantizer, "data.augment", AUGMENTATIONS, base.augment),
        (quantizer, "optimizer", OPTIMIZERS, base.optimizer),
        (policy, "model.front_end", FRONT_ENDS, base.front_end),
        (policy, "model.targets.action", HEADS.keys() - {"tokens"}, base.head),  # which it has
    ):
        holder, _, last = key.rpartition(".")
        for name in registry:
            other = ConfigDict(config.to_dict())
            (other[holder] if holder else other)[last] = new(name)
            found.append(other)
    return found


EXPERIMENTS_OF = {path.split("/")[1]: path for path in EXPERIMENTS if "tabletop" in path}


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, keys.Key], dict]:
    """(key, "*" for names of the user, as it is declared) → a config that has it."""
    found = {}
    for config in shipped():
        settings.check(config)
        for key, values, kinds in settings.parts(config):
            assert values.keys() == {one.name for kind in kinds for one in keys.of(kind)}
            for one in (one for kind in kinds for one in keys.of(kind)):
                path = f"{key}.{one.name}" if key else one.name
                found.setdefault((general(path), one), (path, config))
    return found


def general(path: str) -> str:
    names = path.split(".")
    if ".".join(names[:2]) in ("data.corpora", "optimizer.groups", "model.targets"):
        names[2:3] = ["*"] if names[2:] else []
    return ".".join(names)


def refusal(config: ConfigDict, path: str, value) -> str:
    """What a config with this value is told, "" where it is right."""
    values = config.to_dict()
    *holders, last = path.split(".")
    holder = values
    for name in holders:
        holder[name] = dict(holder[name])
        holder = holder[name]
    holder[last] = value
    try:
        settings.check(ConfigDict(values))
    except ValueError as error:
        return str(error)
    return ""


def wrong_values(path: str, key: keys.Key):
    """Values that no key of its kind may have, apart from those that the lists above allow."""
    if isinstance(key.range, tuple):
        yield from ("nonsense", "", 1, None, True, ["x"], math.nan)
    elif key.kind is bool:
        yield from (0, 1, "True", "", None, math.nan, [True])
    elif key.kind is str:
        yield from (0, 1.5, None, True, ["x"], math.nan, "two\nlines", "nul\0")
        if path not in MAY_BE_EMPTY:
            yield ""
    elif key.kind in (int, float):
        yield from (*NOT_FINITE, *HUGE, 2**63, -(2**63), "", "1", None, True, False, [1], {})
        if key.kind is int:
            yield from (1.5, 1.0)
        if path not in MAY_BE_ZERO:
            yield from (0, 0.0)
        if path not in MAY_BE_NEGATIVE:
            yield from (-1, -1.0, -1e-9)
    else:
        yield from (0, 1.5, None, True, "x", "", ["x"], math.nan)


def test_every_wrong_value_is_refused_by_its_key(known):
    accepted, unclear = [], []
    for (general_path, key), (path, config) in known.items():
        wrong = list(wrong_values(general_path, key))
        if key.items is not None:
            several = max(key.items, 1)
            wrong = [[value] * several for value in wrong if not isinstance(value, list)]
            wrong += [None, 1, "", "x", True, math.nan, {}, 2**63, [[1]]]
            if key.items > 0:
                wrong.append([1] * (key.items + 1))
            if general_path not in MAY_BE_EMPTY:
                wrong.append([])
        for value in wrong:
            told = refusal(config, path, copy.copy(value))
            if not told:
                accepted.append((path, value))
            elif path not in told or not told.startswith((path, f"{path}.name")):
                unclear.append((path, value, told))
    assert not accepted and not unclear
    assert len(known) > 190


def test_values_of_other_makes_that_mean_the_same():
    config = load("experiments/quantizer/tabletop.py")
    config.optimizer.peak_lr = np.float64(1e-3)
    config.data.corpora.robot.path = "daten/Übung\u00a01 🤖"
    settings.check(config)
    assert configs.to_dict(config)["optimizer"]["peak_lr"] == 1e-3


def test_what_is_declared_is_told(known):
    for (_, key), _ in known.items():
        assert key.doc and key.doc[-1] not in ".;" and "  " not in key.doc


@pytest.mark.parametrize(
    "override, told",
    [
        ("optimizer.b1=2.0", r"optimizer.b1=2.0 must be a number in \[0, 1\)"),
        ("log_every_steps=-1", r"log_every_steps=-1 must be an integer in \[1, 1e9\]"),
        ("optimizer.peak_lr=nan", r"optimizer.peak_lr=nan must be a number in \(0, 100\]"),
        ("data.image_size=(64,)", r"data.image_size=\(64,\) must be 2 values, each an integer in"),
        ("mesh.data=0", r"mesh.data=0 must be an integer in \[1, 1048576\] or -1"),
        ("optimizer.schedule=linear", "optimizer.schedule='linear' must be one of .*'wsd'"),
        ("optimizer.end_lr=0.5", "optimizer.end_lr=0.5 must be at most optimizer.peak_lr=0.008"),
        ("data.corpora.robot.path=", "data.corpora.robot.path='' must be a text that is not empty"),
        ("model.bottleneck.name=fsq", "model.bottleneck: unknown keys .*missing keys"),
        ("evaluation.env.blocks=9", r"evaluation.env.blocks=9 must be an integer in \[2, 8\]"),
    ],
)
def test_what_is_told_of_an_override(override, told):
    config = load("experiments/quantizer/tabletop.py", "", [f"--config.{override}"])
    with pytest.raises(ValueError, match=f"^{told}"):
        settings.check(config)
    assert configs.to_dict(config)
