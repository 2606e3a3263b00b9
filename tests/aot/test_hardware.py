"""Layouts by accelerator: possible on the machine that they are named after, and all compiled."""

import math

import pytest
import tiny
from ml_collections import ConfigDict
from test_configs import FOLDERS

from experiments import base, hardware
from lapa_jax.aot.topology import parse
from lapa_jax.nn.stack import REMAT
from lapa_jax.parallel.sharding import PRESETS

RULES = [*hardware.POLICY_7B.items(), *hardware.QUANTIZER.items()]


@pytest.mark.parametrize("name, rule", RULES)
def test_a_rule_fills_its_machine(name, rule):
    topology = parse(name)
    sizes = (rule.data, rule.fsdp, rule.seq, rule.tensor)
    assert math.prod(sizes) == topology.num_devices
    assert rule.data % topology.num_islands == 0, "only mesh.data crosses slices and hosts"
    assert rule.preset in PRESETS and rule.remat in REMAT


def test_a_config_takes_a_rule_by_name():
    config = base.stage_defaults("latent_pretraining")
    config.model = ConfigDict({"remat": "none"})
    before = config.to_dict()
    hardware.use(config, hardware.POLICY_7B, "")
    assert config.to_dict() == before
    hardware.use(config, hardware.POLICY_7B, "2xv5p-128")
    rule = hardware.POLICY_7B["2xv5p-128"]
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (2, rule.fsdp, rule.tensor)
    assert (config.mesh.preset, config.model.remat) == (rule.preset, rule.remat)
    with pytest.raises(ValueError, match="hardware='v5p-65' must be one of .*'v5p-64'"):
        hardware.use(config, hardware.POLICY_7B, "v5p-65")


def test_every_shipped_config_is_compiled_for_something():
    shipped = {
        str(path.relative_to(tiny.ROOT))
        for folder in FOLDERS
        for path in (tiny.ROOT / "experiments" / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    compiled = {spec.split(":")[0] for spec, _ in hardware.SHIPPED}
    assert compiled == shipped
    for _, name in hardware.SHIPPED:
        parse(name)
