"""Keys of configs that moved or came later: runs, files and flags of earlier code are read."""

import logging

import pytest
import tiny

from experiments import base
from lapa_jax import config as configs
from lapa_jax import envs
from lapa_jax.studies import sweep

FILE = """
from ml_collections import ConfigDict

def get_config(arg=None):
    config = ConfigDict({"old": {"name": 3}} if arg == "old" else {"part": {"name": 2}})
    config.corpora = ConfigDict({"a": {"path": "x"}, "b": {"path": "y", "fraction": 0.5}})
    return config
"""


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setattr(configs, "RENAMED", {"old.name": "part.name", "gone.by": "part.x.by"})
    monkeypatch.setattr(configs, "ADDED", {"corpora.*.fraction": 1.0, "part.size": [1, 2]})


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "file.py").write_text(FILE)
    return str(tmp_path / "file.py")


def test_old_keys_become_new_ones_with_one_warning(keys, caplog):
    old = {"old": {"name": 1, "kept": 0}, "gone": {"by": 2}, "corpora": {"a": {}, "b": {}}}
    with caplog.at_level(logging.WARNING):
        new = configs.upgrade(old)
    assert new == {
        "old": {"kept": 0},
        "gone": {},
        "part": {"name": 1, "x": {"by": 2}, "size": [1, 2]},
        "corpora": {"a": {"fraction": 1.0}, "b": {"fraction": 1.0}},
    }
    assert len(caplog.records) == 1
    assert "old.name (now part.name), gone.by (now part.x.by)" in caplog.text
    assert old["old"]["name"] == 1  # what is given stays


def test_a_config_of_today_is_as_it_is(keys, caplog):
    config = {"part": {"name": 1, "size": [3]}, "corpora": {"a": {"fraction": 0.5}}}
    assert configs.upgrade(config) == config and not caplog.records
    assert configs.to_dict(configs.from_dict(config)) == config


def test_an_override_may_use_the_old_name(keys, spec, caplog):
    with caplog.at_level(logging.WARNING):
        config = configs.load(spec, ["--config.old.name=7"])
    assert config.part.name == 7 and "old" not in config
    assert "old.name (now part.name)" in caplog.text
    with pytest.raises(ValueError, match="'old.nam' .* is unknown"):
        configs.load(spec, ["--config.old.nam=7"])


def test_a_file_may_use_the_old_name(keys, spec):
    config = configs.load(f"{spec}:old")
    assert config.part.name == 3 and config.is_locked
    assert config.corpora.a.fraction == 1.0 and config.corpora.b.fraction == 0.5


def test_an_override_counts_over_a_file_that_uses_the_old_name(keys, spec, caplog):
    for name in ("old.name", "part.name"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert configs.load(f"{spec}:old", [f"--config.{name}=7"]).part.name == 7
        assert caplog.text.count("old.name (now part.name)") == 1 + (name == "old.name")


def test_old_keys_that_python_sets_count_where_they_are_used(tmp_path):
    """In what `lapa_jax.train.train` is given, and in the grid of a sweep."""
    config = base.stage_defaults("action_finetuning")
    config.model = base.policy_model(action_vocab=16)
    config.action_tokens, config.evaluation.blocks = "clusters", 2
    now = configs.today(config)
    assert now.model.targets.action.codec == "clusters" and "action_tokens" not in now
    assert now.evaluation.env.blocks == 2 and now.evaluation.env.name == "tabletop"
    assert configs.today(now) is now
    (tmp_path / "sweep.py").write_text(
        "from experiments.latent_vla import tabletop\n"
        "def get_sweep(arg=None):\n"
        "    return {'config': tabletop.get_config(), 'grid': {'model.latent_vocab': (4, 8)}}\n"
    )
    points = sweep.read_points(str(tmp_path / "sweep.py"))
    assert [point.config.model.targets.latent.vocab for point in points] == [4, 8]


def test_the_stages_of_a_demo_have_todays_keys(caplog):
    stage = {"stage": "action_finetuning", "action_tokens": "bins", "evaluation": {"blocks": 2}}
    stage["model"] = {"action_vocab": 8, "latent_vocab": 0}
    old = {"quantizer": {"stage": "quantizer"}, "action": stage, "scene": {"num_blocks": 4}}
    with caplog.at_level(logging.WARNING):
        now = configs.upgrade(old)
    scene = {"name": "tabletop", "blocks": 4, "combinations": "all", "min_gap": 0.016}
    assert now["scene"] == scene and len(caplog.records) == 1
    assert now["action"]["model"]["targets"]["action"]["codec"] == "bins"
    assert now["action"]["evaluation"]["env"]["blocks"] == 2
    assert now["quantizer"] == {"stage": "quantizer", "compile_effort": "full"}


def test_the_environment_of_earlier_runs():
    """What `lapa evaluate` and --config.evaluation.blocks=2 of earlier code meant."""
    old = {"evaluation": {"episodes": 3, "families": ["reach"], "blocks": 2}}
    env = {"name": "tabletop", "families": ["reach"], "blocks": 2, "horizon": 40}
    env |= {"combinations": "all", "min_gap": 0.016}
    found = {"episodes": 3, "execution_horizon": 1, "env": env}
    assert configs.upgrade(old) == {"evaluation": found}
    assert envs.make(env) == envs.make({"name": "tabletop", "families": ["reach"], "blocks": 2})
    other = {"evaluation": {"execution_horizon": 1, "env": {"name": "another", "goal": 3}}}
    assert configs.upgrade(other) == other
    spec = f"{tiny.ROOT}/experiments/action_vla/tabletop.py"
    flags = ["--config.evaluation.blocks=2", "--config.evaluation.families=('separate_blocks',)"]
    config = configs.load(spec, flags)
    assert config.evaluation.env.blocks == 2
    assert config.evaluation.env.families == ("separate_blocks",)
    assert config.evaluation.env.horizon == 40


def old_policy(stage: str, **vocabularies: int) -> dict:
    """As a policy's run of earlier code kept it."""
    model = {"dim": 32} | {f"{name}_vocab": size for name, size in vocabularies.items()}
    return {"stage": stage, "model": model}


def test_vocabularies_of_earlier_policies_become_their_heads(caplog):
    old = old_policy("action_finetuning", latent=0, action=16) | {"action_tokens": "clusters"}
    with caplog.at_level(logging.WARNING):
        found = configs.from_dict(old)
    action = {"name": "tokens", "vocab": 16, "codec": "clusters", "loss_weight": 1.0}
    assert found.model.targets.to_dict() == {"action": action}
    assert "action_tokens" not in found and "action_vocab" not in found.model
    assert len(caplog.records) == 1 and "(now model.targets.action.codec)" in caplog.text
    # A table that its stage did not train stays in the model, and that is all.
    both = configs.from_dict(old_policy("latent_pretraining", latent=8, action=16)).model.targets
    assert both.latent.loss_weight == 1.0 and both.latent.codec == "codes"
    assert both.action.loss_weight == 0.0 and both.action.vocab == 16
    none = configs.from_dict(old_policy("latent_pretraining", latent=0, action=0))
    assert none.model.targets.to_dict() == {}


def test_users_files_and_flags_of_earlier_policies(tmp_path):
    (tmp_path / "file.py").write_text(
        "from experiments import base\n\n"
        "def get_config(arg=None):\n"
        "    config = base.stage_defaults('action_finetuning')\n"
        "    config.model = base.policy_model(action_vocab=64)\n"
        "    config.action_tokens = 'clusters'\n"
        "    return config\n"
    )
    found = configs.load(str(tmp_path / "file.py"), ["--config.model.action_vocab=32"])
    action = {"name": "tokens", "vocab": 32, "codec": "clusters", "loss_weight": 1.0}
    assert found.model.targets.to_dict() == {"action": action}
