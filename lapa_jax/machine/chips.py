"""Figures of accelerators, each with its source, for rooflines and memory budgets.

[T] is docs.cloud.google.com/tpu/docs/VERSION ("key specifications"), [7] its tpu7x page, which
compares v5p, v6e and tpu7x, [S] jax-ml.github.io/scaling-book/tpus, [H] NVIDIA's H100 and H200
data sheets (dense figures: half of those "with sparsity"), [B] its HGX B200 data sheet, [L] the
limit that libtpu 0.0.42.1 enforced when a program was too large (less than the chip has, since the
runtime keeps some).
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


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            bf16_tflops=275,  # [T]
            hbm_gib=30.75,  # [L]
            hbm_gb_per_second=1200,  # [T]
            ici_gb_per_second=300,  # six links of 50: arXiv 2304.01433, table 4
            dcn_gb_per_second=25,  # [S]: 6.25 a chip
            chips_per_host=4,
            torus=3,
        ),
        Chip(
            "v5e",
            bf16_tflops=197,  # [T]
            hbm_gib=15.75,  # [L]
            hbm_gb_per_second=819,  # [T]
            ici_gb_per_second=200,  # [T]: 400 bidirectional
            dcn_gb_per_second=25,  # [T]: 2 x 100 Gbit/s a host
            chips_per_host=8,
            torus=2,
        ),
        Chip(
            "v5p",
            bf16_tflops=459,  # [T]
            hbm_gib=95.74,  # [L]
            hbm_gb_per_second=2765,  # [T]
            ici_gb_per_second=600,  # [T]: 1200 bidirectional
            dcn_gb_per_second=25,  # [T]: 50 Gbit/s a chip
            chips_per_host=4,
            torus=3,
        ),
        Chip(
            "v6e",
            bf16_tflops=918,  # [T]
            hbm_gib=31.25,  # [L]
            hbm_gb_per_second=1638,  # [T]
            ici_gb_per_second=400,  # [T]: 800 bidirectional
            dcn_gb_per_second=100,  # [T]: 4 x 200 Gbit/s a host
            chips_per_host=8,
            torus=2,
        ),
        Chip(
            "tpu7x",
            bf16_tflops=2307,  # [7]
            hbm_gib=189.5,  # [L]: 94.75 a device
            hbm_gb_per_second=7380,  # [7]
            ici_gb_per_second=600,  # [7]: 1200 bidirectional
            dcn_gb_per_second=50,  # [7]: 100 Gbit/s a chip
            chips_per_host=4,
            torus=3,
            devices_per_chip=2,
        ),
        Chip(
            "h100",
            bf16_tflops=989.4,  # [H], SXM
            hbm_gib=79.1,  # what the driver reports of 80 GB
            hbm_gb_per_second=3350,  # [H]
            ici_gb_per_second=450,  # [H]: NVLink, 900 bidirectional
            dcn_gb_per_second=400,  # DGX H100 data sheet: 8 x 400 Gbit/s
            chips_per_host=8,
        ),
        Chip(
            "h200",
            bf16_tflops=989.4,  # [H], SXM
            hbm_gib=141.0,  # what the driver reports
            hbm_gb_per_second=4800,  # [H]
            ici_gb_per_second=450,  # [H]
            dcn_gb_per_second=400,  # DGX H200 data sheet: 8 x 400 Gbit/s
            chips_per_host=8,
        ),
        Chip(
            "b200",
            bf16_tflops=2250,  # [B]
            hbm_gib=178.4,  # what the driver reports of 180 GB
            hbm_gb_per_second=7700,  # [B]
            ici_gb_per_second=900,  # [B]: NVLink, 1800 bidirectional
            dcn_gb_per_second=400,  # DGX B200 data sheet: 8 x 400 Gbit/s
            chips_per_host=8,
        ),
    )
}

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
