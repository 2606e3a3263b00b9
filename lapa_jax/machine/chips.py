"""Figures of accelerators, each with its source, for rooflines and memory budgets.

[T] is docs.cloud.google.com/tpu/docs/VERSION ("key specifications"), [7] its tpu7x page, which
compares v5p, v6e and tpu7x, [S] jax-ml.github.io/scaling-book/tpus, [H] NVIDIA's H100 and H200
data sheets (SXM, dense figures: half of those "with sparsity"), [B] its HGX B200 data sheet, [D]
its DGX data sheets, [P] table 4 of arXiv 2304.01433, [L] the limit that libtpu 0.0.42.1 enforced
when a program was too large, [N] what NVIDIA's driver reports (both less than the chip has, since
the runtime keeps some).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; a GB is 1e9 bytes. A JAX device is a `devices_per_chip`th of it."""

    name: str
    bf16_tflops: float  # peak
    hbm_gib: float  # what programs may use
    hbm_gb_per_second: float
    ici_gb_per_second: float  # what a chip sends over all of its links: half of "bidirectional"
    dcn_gb_per_second: float  # what a host sends
    chips_per_host: int
    torus: int = 0  # dimensions of the network between chips; 0: all to all through switches
    devices_per_chip: int = 1

    @property
    def is_tpu(self) -> bool:
        return self.torus > 0


# name, TFLOP/s, HBM GiB, HBM GB/s, ICI GB/s, DCN GB/s, chips per host; sources in that order.
_TABLE = (
    # [T], [L], [T], [P]: six links of 50, [S]: 6.25 a chip
    Chip("v4", 275, 30.75, 1200, 300, 25, 4, torus=3),
    # [T], [L], [T], [T]: 400 bidirectional, [T]: 2 x 100 Gbit/s a host
    Chip("v5e", 197, 15.75, 819, 200, 25, 8, torus=2),
    # [T], [L], [T], [T]: 1200 bidirectional, [T]: 50 Gbit/s a chip
    Chip("v5p", 459, 95.74, 2765, 600, 25, 4, torus=3),
    # [T], [L], [T], [T]: 800 bidirectional, [T]: 4 x 200 Gbit/s a host
    Chip("v6e", 918, 31.25, 1638, 400, 100, 8, torus=2),
    # [7], [L]: 94.75 a device, [7], [7]: 1200 bidirectional, [7]: 100 Gbit/s a chip
    Chip("tpu7x", 2307, 189.5, 7380, 600, 50, 4, torus=3, devices_per_chip=2),
    # [H], [N] of 80 GB, [H], [H]: NVLink, 900 bidirectional, [D]: 8 x 400 Gbit/s
    Chip("h100", 989.4, 79.1, 3350, 450, 400, 8),
    # [H], [N], [H], [H], [D]: 8 x 400 Gbit/s
    Chip("h200", 989.4, 141.0, 4800, 450, 400, 8),
    # [B], [N] of 180 GB, [B], [B]: NVLink, 1800 bidirectional, [D]: 8 x 400 Gbit/s
    Chip("b200", 2250, 178.4, 7700, 900, 400, 8),
)
CHIPS = {chip.name: chip for chip in _TABLE}

# jax.Device.device_kind → name in CHIPS; TPUs have two spellings.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}


def peak_flops(device_kind: str) -> float | None:
    """Of one JAX device, in bfloat16; None for a kind that is not in the table."""
    if device_kind not in _KINDS:
        return None
    chip = CHIPS[_KINDS[device_kind]]
    return chip.bf16_tflops * 1e12 / chip.devices_per_chip
