"""Where the shipped models train: accelerator → mesh, preset, remat and microbatches.

A config takes a rule in one line, and `lapa compile` shows what the rule is worth:

    hardware.use(config, hardware.POLICY_7B, arg.hardware)

    lapa compile --config FILE.py:hardware=v5p-64 --topology v5p-64

Figures beside the rules are compiled ahead of time (docs/sharding.md says how and when): memory per
device, what of it is free, the bound on model FLOPs utilisation and what sets it.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Rule:
    """Sizes of the mesh axes, and what trades memory for time."""

    data: int = 1
    fsdp: int = 1
    seq: int = 1
    tensor: int = 1
    preset: str = "fsdp"
    remat: str = "full"
    microbatches: int = 1


POLICY_7B: dict[str, Rule] = {}
QUANTIZER: dict[str, Rule] = {}


def use(config: ConfigDict, rules: dict[str, Rule], accelerator: str) -> None:
    """Lays a config out for an accelerator, in place; an empty name leaves it as it is."""
    if not accelerator:
        return
    if accelerator not in rules:
        raise ValueError(f"hardware={accelerator!r} must be one of {sorted(rules)}")
    rule = rules[accelerator]
    config.mesh.update(data=rule.data, fsdp=rule.fsdp, seq=rule.seq, tensor=rule.tensor)
    config.mesh.preset, config.model.remat = rule.preset, rule.remat
    config.microbatches = rule.microbatches
