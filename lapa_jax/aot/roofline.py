"""How long a step takes at least: compute, memory, network inside a slice, network between slices.

Each term is what the compiled program asks of one resource over the resource's best rate, as if
everything overlapped perfectly; the longest bounds the step. Rates are data-sheet peaks and links
carry nothing but payload, so a real step is slower: the bound ranks layouts and says what limits
them, it does not predict.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lapa_jax.aot.hlo import Collective
from lapa_jax.machine.chips import Chip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device sends per step."""

    ici_bytes: float
    ici_seconds: float
    dcn_bytes: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds of the seconds per step."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def seconds(self) -> float:
        return max(dataclasses.astuple(self))

    @property
    def limit(self) -> str:
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def roofline(
    chip: Chip, num_devices: int, *, flops: float, hbm_bytes: float, traffic: Traffic
) -> Roofline:
    """`flops`: executed, of all devices; `hbm_bytes`, `traffic`: of one device."""
    parts = chip.devices_per_chip
    return Roofline(
        compute=flops / num_devices / (chip.bf16_tflops * 1e12 / parts),
        hbm=hbm_bytes / (chip.hbm_gb_per_second * 1e9 / parts),
        ici=traffic.ici_seconds,
        dcn=traffic.dcn_bytes * parts * chip.chips_per_host / (chip.dcn_gb_per_second * 1e9),
    )


def mfu(chip: Chip, num_devices: int, model_flops: float, seconds: float) -> float:
    """Model FLOPs of a step of `seconds`, as a fraction of the peak."""
    return model_flops / seconds / num_devices / (chip.bf16_tflops * 1e12 / chip.devices_per_chip)


# --- Network ---


def traffic(
    collectives: Sequence[Collective], devices: Sequence[Any], chip: Chip, num_slices: int
) -> Traffic:
    """Bytes that one device sends, from the shapes and groups of the compiled collectives.

    `devices` in the order of the program's device numbers. A collective of n members sends
    (n − 1)/n of its bytes (all-reduce: twice that), over the links of the torus dimensions in which
    its members differ; a permute over those of one dimension. One that spans slices runs inside of
    each and between them, where a slice's members share the load.
    """
    slice_of = np.array([_slice(device, chip) for device in devices])
    coords = [(*device.coords, device.core_on_chip) for device in devices] if chip.is_tpu else None
    link_rate = chip.ici_gb_per_second * 1e9 / chip.devices_per_chip
    ici_bytes = ici_seconds = dcn_bytes = 0.0
    for collective in collectives:
        size = collective.num_bytes * collective.times
        if collective.groups is None:
            dcn_bytes += size * _sent(collective.kind, num_slices)
            continue
        group = collective.groups[0]
        if collective.kind == "collective-permute":
            if any(slice_of[a] != slice_of[b] for a, b in collective.groups):
                dcn_bytes += size
                continue
            inside, dimensions = size, 1
        else:
            across = len(set(slice_of[group]))
            members = len(group) // across
            dcn_bytes += size * _sent(collective.kind, across) / members
            inside = size * _sent(collective.kind, members)
            dimensions = _dimensions([coords[i] for i in group]) if coords else 0
        share = max(1, min(dimensions, chip.torus)) / chip.torus if chip.torus else 1.0
        ici_bytes += inside
        ici_seconds += inside / (link_rate * share)
    return Traffic(ici_bytes, ici_seconds, dcn_bytes)


def _sent(kind: str, members: int) -> float:
    """What a member sends, as a part of the collective's bytes."""
    return (members - 1) / members * (2 if kind == "all-reduce" else 1)


def _slice(device: Any, chip: Chip) -> int:
    """GPUs of different hosts meet over the data-centre network, as TPUs of different slices do."""
    return getattr(device, "slice_index", 0) if chip.is_tpu else device.process_index


def _dimensions(coords: list[tuple[int, ...]]) -> int:
    """Dimensions of the torus in which the members differ."""
    return sum(len(set(values)) > 1 for values in list(zip(*coords, strict=True))[:3])
