"""Times of traffic on known networks."""

import dataclasses

import numpy as np
import pytest

from lapa_jax.aot import roofline
from lapa_jax.aot.hlo import Collective
from lapa_jax.machine.chips import CHIPS

V5E, H100 = CHIPS["v5e"], CHIPS["h100"]


@dataclasses.dataclass
class Device:
    coords: tuple[int, ...]
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0


def collective(kind, num_bytes, groups, times=1):
    groups = None if groups is None else np.array(groups)
    return Collective(kind, kind, num_bytes, groups, times, in_loop=False)


PLANE = [Device((x, y, 0)) for x in range(4) for y in range(4)]  # v5e:4x4
ROWS = [list(range(4 * x, 4 * x + 4)) for x in range(4)]


@pytest.mark.parametrize(
    "kind, sent", [("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-reduce", 1.5)]
)
def test_what_a_ring_sends(kind, sent):
    """Along one of two dimensions: half of the chip's links."""
    found = roofline.traffic([collective(kind, 1e9, ROWS, times=2)], PLANE, V5E, 1)
    assert found.ici_bytes == pytest.approx(2e9 * sent)
    assert found.ici_seconds == pytest.approx(2e9 * sent / (V5E.ici_gb_per_second * 1e9 / 2))
    assert found.dcn_bytes == 0
    both = roofline.traffic([collective(kind, 1e9, [range(16)])], PLANE, V5E, 1)
    assert both.ici_seconds == pytest.approx(both.ici_bytes / (V5E.ici_gb_per_second * 1e9))


def test_traffic_between_slices():
    slices = [dataclasses.replace(d, slice_index=s) for s in (0, 1) for d in PLANE]
    found = roofline.traffic([collective("all-reduce", 1e9, None, times=3)], slices, V5E, 2)
    assert found.dcn_bytes == pytest.approx(3e9) and found.ici_bytes == 0
    times = roofline.roofline(V5E, 32, flops=0, hbm_bytes=0, traffic=found)
    assert times.dcn == pytest.approx(8 * 3e9 / 25e9), "eight chips share the network of a host"
    assert times.limit == "dcn" and times.seconds == times.dcn


def test_traffic_of_gpu_hosts():
    """Eight GPUs of a host share what crosses to the other host."""
    gpus = [Device((0,), process_index=h) for h in (0, 1) for _ in range(8)]
    inside = roofline.traffic([collective("all-gather", 8e9, [range(8)])], gpus, H100, 1)
    assert inside.dcn_bytes == 0 and inside.ici_bytes == pytest.approx(7e9)
    assert inside.ici_seconds == pytest.approx(7e9 / 450e9)
    across = roofline.traffic([collective("all-gather", 16e9, [range(16)])], gpus, H100, 1)
    assert across.dcn_bytes == pytest.approx(16e9 / 2 / 8)
    pairs = roofline.traffic([collective("collective-permute", 1e9, [(7, 8)])], gpus, H100, 1)
    assert pairs.dcn_bytes == 1e9 and pairs.ici_bytes == 0


def test_a_bound_and_its_limit():
    none = roofline.Traffic(0, 0, 0)
    times = roofline.roofline(V5E, 4, flops=4 * 197e12, hbm_bytes=819e9 / 2, traffic=none)
    assert times.compute == pytest.approx(1) and times.hbm == pytest.approx(0.5)
    assert times.limit == "compute"
    # A third of what is computed is recomputed: no step can be above three quarters of the peak.
    assert roofline.mfu(V5E, 4, 3 * 197e12, times.seconds) == pytest.approx(0.75)
    half = roofline.roofline(CHIPS["tpu7x"], 2, flops=2307e12, hbm_bytes=0, traffic=none)
    assert half.compute == pytest.approx(1), "two devices are one chip"
