"""Where the shipped models train: accelerator → mesh, preset, remat and microbatches.

A config takes a rule in one line, and `lapa compile` shows what the rule is worth:

    hardware.use(config, hardware.POLICY_7B, arg.hardware)

    lapa compile --config FILE.py:hardware=v5p-64 --topology v5p-64

Figures beside the rules are compiled ahead of time (docs/sharding.md says how and when): memory per
device, what of it is free, the bound on model FLOPs utilisation and what sets it.
"""

from dataclasses import asdict, dataclass

from ml_collections import ConfigDict

from experiments import base


@dataclass(frozen=True)
class Rule:
    """Sizes of the mesh axes, and what trades memory, or time to compile, for time."""

    data: int = 1
    fsdp: int = 1
    seq: int = 1
    tensor: int = 1
    preset: str = "fsdp"
    remat: str = "full"
    microbatches: int = 1
    unroll: int = 1  # layers per scan step, 0: all


# Peak GiB of a device, what is free, the MFU bound and its limit: of the latent VLA, batch 256.
POLICY_7B = {
    # 2.12, 87 %, 99 % (compute)
    "v5e-256": Rule(fsdp=64, tensor=4, preset="fsdp_tp", remat="dots_no_batch"),
    # 13.37, 86 %, 99 % (compute)
    "v5p-64": Rule(fsdp=16, tensor=2, preset="fsdp_tp", remat="dots_no_batch"),
    # 4.45, 95 %, 99 % (compute)
    "2xv5p-128": Rule(data=2, fsdp=32, tensor=2, preset="fsdp_tp", remat="dots_no_batch"),
    # 2.05, 93 %, 45 % (ICI: a chip has one example)
    "v6e-256": Rule(fsdp=64, tensor=4, preset="fsdp_tp", remat="dots_no_batch"),
    # 48.47, 39 %, 99 % (compute)
    "h100-8": Rule(fsdp=8, remat="dots_no_batch"),
    # 18.01, 77 %, 66 % (HBM, without cuDNN's attention)
    "h100-64": Rule(data=8, fsdp=8, remat="dots_no_batch"),
    # 48.47, 66 %, 99 % (compute)
    "h200-8": Rule(fsdp=8, remat="dots_no_batch"),
    # 48.47, 73 %, 99 % (compute)
    "b200-8": Rule(fsdp=8, remat="dots_no_batch"),
}

# The same of the released quantizer (344 M parameters), batch 64. Scanned, its layers would copy
# what the backward pass needs into stacks. Parameters fit whole, and are gathered once a step where
# that pays: gathered by layers, the bounds of TPUs are 48, 95 and 31 %; for GPUs it is 29 %.
QUANTIZER = {
    # 2.47, 84 %, 82 % (HBM)
    "v5e-8": Rule(fsdp=8, preset="zero", remat="none", unroll=0),
    # 3.85, 96 %, 100 % (compute)
    "v5p-8": Rule(fsdp=4, preset="zero", remat="none", unroll=0),
    # 2.19, 93 %, 36 % (HBM: a chip has 8 pairs)
    "v6e-8": Rule(fsdp=8, preset="zero", remat="none", unroll=0),
    # 2.29, 97 %, 31 % (HBM)
    "h100-8": Rule(fsdp=8, remat="none", unroll=0),
}

# Shipped configs and the machines they are compiled for by `make test-aot`.
_ONE_HOST = ("v5e-4", "h100-8")
SHIPPED = (
    *((f"experiments/latent_vla/paper.py:batch=256,hardware={name}", name) for name in POLICY_7B),
    *((f"experiments/action_vla/paper.py:hardware={name}", name) for name in ("v5p-64", "h100-8")),
    *((f"experiments/quantizer/paper.py:hardware={name}", name) for name in QUANTIZER),
    *(("experiments/teacher/tabletop.py", name) for name in _ONE_HOST),
    ("experiments/image_tokenizer/tabletop.py", "h100-8"),
    ("experiments/dynamics/tabletop.py", "h100-8"),
    *(("experiments/quantizer/tabletop.py", name) for name in _ONE_HOST),
    *(("experiments/quantizer/videos.py", name) for name in _ONE_HOST),
    *((f"experiments/{stage}_vla/bridge.py", "h100-8") for stage in ("latent", "action")),
    *(("experiments/latent_vla/tabletop.py", name) for name in (*_ONE_HOST, "v4-8", "tpu7x-8")),
    *(("experiments/action_vla/tabletop.py", name) for name in _ONE_HOST),
    ("experiments/quantizer/metaworld.py", "h100-8"),
    *((f"experiments/{stage}_vla/metaworld.py", "h100-8") for stage in ("latent", "action")),
)


def use(config: ConfigDict, rules: dict[str, Rule], accelerator: str) -> None:
    """Lays a config out for an accelerator, in place; an empty name leaves it as it is."""
    if not accelerator:
        return
    base.require("hardware", accelerator, rules)
    rule = rules[accelerator]
    settings = asdict(rule)
    config.microbatches = settings.pop("microbatches")
    config.model.update(remat=settings.pop("remat"), unroll=settings.pop("unroll"))
    config.mesh.update(settings)
