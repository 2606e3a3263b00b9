"""Shipped configs load, shrink, and are what their golden files say."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tiny_policy import token_heads

from experiments import base
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.nn.module import Functional, flatten
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.policy.codecs import Clusters
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.policy.text import train
from lapa_jax.policy.vla import VLA, VLAConfig
from lapa_jax.stages.policy import LAYOUT_KEYS, TOKENIZER
from lapa_jax.training.optimizer import OPTIMIZERS, make_optimizer
from lapa_jax.training.state import create, state_shardings

FOLDERS = ("teacher", "image_tokenizer", "quantizer", "dynamics", "latent_vla", "action_vla")
EXPERIMENTS = sorted(
    str(path.relative_to(tiny.ROOT))
    for stage in FOLDERS
    for path in (tiny.ROOT / "experiments" / stage).glob("*.py")
    if path.name != "__init__.py"
)


def load(experiment: str, arg: str = "", overrides: list[str] | None = None):
    return configs.load(f"{tiny.ROOT / experiment}:{arg}", overrides)


def test_every_stage_that_is_trained_has_a_config():
    shipped = {load(experiment).stage for experiment in EXPERIMENTS}
    assert shipped == set(stages.STAGES)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_golden_config(experiment):
    name = "-".join(Path(experiment).with_suffix("").parts[1:])
    for quick in (False, True):
        config = configs.to_dict(load(experiment, f"quick={quick}"))
        tiny.check_golden(f"configs/{name}{'-quick' if quick else ''}.json", config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_quick_is_smaller(experiment):
    full, quick = load(experiment), load(experiment, "quick=True")
    assert quick.steps < full.steps
    assert quick.steps * quick.global_batch * 4 < full.steps * full.global_batch
    assert quick.model.dim < full.model.dim
    assert quick.stage == full.stage and quick.data.corpora == full.data.corpora
    assert quick.steps >= quick.checkpoint.every_steps and quick.steps >= quick.log_every_steps


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_wrong_arguments_are_errors(experiment):
    with pytest.raises(ValueError, match="'nonsense' is unknown; known: .*'quick'"):
        load(experiment, "nonsense=1")
    with pytest.raises(ValueError, match="quick='maybe' must be True or False"):
        load(experiment, "quick=maybe")
    with pytest.raises(ValueError, match="did you mean 'optimizer.peak_lr'"):
        load(experiment, "quick=True", ["--config.optimizer.peak_lrr=1"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_docstring_gives_the_command(experiment):
    module = importlib.import_module(".".join(Path(experiment).with_suffix("").parts))
    assert experiment in module.__doc__ and "lapa train" in module.__doc__
    assert "Shows" in module.__doc__ and "Cost" in module.__doc__


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_config_survives_json(experiment):
    config = load(experiment)
    again = configs.from_dict(configs.to_dict(config))
    assert again == config and again.is_locked
    with pytest.raises(AttributeError):
        again.stepz = 3


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("key", ["dim", "unroll"])
def test_a_key_that_a_config_lacks_is_an_error_though_new_configs_have_a_default(experiment, key):
    config = load(experiment)
    tokenizer = train([f"push block {i} to the wall" for i in range(20)], 384)
    clusters = Clusters(np.zeros((8, 2), np.float32), np.ones(2, np.float32)).to_json()
    with config.unlocked():
        del config.model[key]
    with pytest.raises(ValueError, match=rf"model: unknown keys \[\], missing keys \['{key}'\]"):
        stages.build(config, {TOKENIZER: tokenizer, CODEC: clusters})
    with config.unlocked():
        config.model[key], config.model.nonsense = 1, 1
    with pytest.raises(ValueError, match=r"model: unknown keys \['nonsense'\]"):
        stages.build(config, {TOKENIZER: tokenizer, CODEC: clusters})


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["tabletop", "dinov2_small", "dinov2_giant"])
def test_a_quantizer_at_full_size_predicts_features(encoder):
    config = load("experiments/quantizer/paper.py", f"objective=features,encoder={encoder}")
    encoder = stages.build(config, {}).model.abstract()[1]["objective"]["teacher"]
    wanted = config.model.objective.teacher
    assert encoder["positions"].shape == (1 + wanted.grid[0] * wanted.grid[1], wanted.dim)
    with pytest.raises(ValueError, match="encoder='clip' must be one of .*'dinov2_base'"):
        load("experiments/quantizer/paper.py", "objective=features,encoder=clip")
    config = load("experiments/quantizer/tabletop.py", "objective=algebraic+vae,quick=True")
    assert config.model.objective.of.name == "pixels" and config.data.num_frames == 3
    assert (config.model.bottleneck.name, config.model.normalize_decay) == ("gaussian", 0.0)
    config = load(
        "experiments/quantizer/tabletop.py", "objective=algebraic+pose,views=moving_camera"
    )
    assert config.model.objective.of.horizon == config.data.action_horizon == 2
    assert config.data.corpora.moving_camera.action_key == "observation/camera_motion"
    with pytest.raises(ValueError, match="objective='pixel' must be one of .*'features'"):
        load("experiments/quantizer/paper.py", "objective=pixel")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_policies_train_with_every_optimizer(name):
    """Adapted ones, too: every parameter is in a group and has the state that it should."""
    for stage in ("latent", "action"):
        config = load(f"experiments/{stage}_vla/tabletop.py", f"optimizer={name}")
        assert config.optimizer.name == name
        assert config.optimizer.peak_lr == base.optimizer(name).peak_lr
    settings = config.model.to_dict() | {"lora_rank": 2}
    settings = {key: value for key, value in settings.items() if key not in LAYOUT_KEYS}
    settings["front_end"] |= {"image_size": config.data.image_size}
    policy = VLAConfig(**settings, compute_dtype="float32")
    model = Functional(lambda rngs: VLA(policy, token_heads(action=16), rngs=rngs))
    optimizer = make_optimizer(config.optimizer, config.steps, model.axes())
    shapes = model.abstract()[0]
    assert len(optimizer.table(shapes).splitlines()) == 3
    mesh = make_mesh(dict(data=1, fsdp=4, seq=1, tensor=2), jax.devices()[:8])
    params = sharding.tree_shardings(model.axes(), shapes, mesh, "fsdp_tp")
    state = jax.eval_shape(lambda params: create(params, {}, optimizer, 0, ema=True), shapes)
    found = state_shardings(state, params, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)


def test_difference_names_keys_of_both_sides():
    one, other = {"a": 1, "b": {"c": (1, 2), "d": 0}}, {"a": 1, "b": {"c": [1, 3]}, "e": 5}
    assert configs.difference(one, other) == {
        "b.c": ([1, 2], [1, 3]),
        "b.d": (0, "absent"),
        "e": ("absent", 5),
    }


@pytest.mark.slow
def test_golden_shardings():
    """Where every parameter of the models lies under fsdp_tp."""
    mesh = make_mesh(dict(data=1, fsdp=4, seq=1, tensor=2), jax.devices()[:8])
    tokenizer = train([f"push block {i} to the wall" for i in range(20)], 384)
    found = {}
    for experiment in EXPERIMENTS:
        config = load(experiment, "", ["--config.model.heads=4"])  # a number that tensor divides
        if config.stage == "action_finetuning":
            continue  # the same model as for latents, but for the names of the head
        stage = stages.build(config, {TOKENIZER: tokenizer})
        specs = sharding.tree_shardings(stage.axes(), stage.model.abstract()[0], mesh, "fsdp_tp")
        found[experiment] = {path: str(s.spec) for path, s in flatten(specs).items()}
    tiny.check_golden("shardings.json", found)
