"""Names of machines: Cloud's and by shape, translated, and refused with what is known."""

import importlib.util

import pytest

from lapa_jax.aot import topology
from lapa_jax.machine.chips import CHIPS


@pytest.mark.parametrize(
    "name, expected, chips, devices",
    [
        ("v5p-64", "v5p:2x4x4", 32, 32),  # Cloud counts the two cores of a v5p chip
        ("v4-32", "v4:2x2x4", 16, 16),  # megacore: one device a chip
        ("v5litepod-256", "v5e:16x16", 256, 256),
        ("v5e-256", "v5e:16x16", 256, 256),
        ("v6e-8", "v6e:2x4", 8, 8),
        ("tpu7x-128", "tpu7x:4x4x4", 64, 128),
        ("2xv5p-128", "2xv5p:4x4x4", 128, 128),
        ("h100-64", "h100:8x8", 64, 64),
        ("h200:1x4", "h200:1x4", 4, 4),
        ("2xb200:2x8", "2xb200:2x8", 32, 32),
    ],
)
def test_names(name, expected, chips, devices):
    found = topology.parse(name)
    assert (found.name, found.num_chips, found.num_devices) == (expected, chips, devices)
    assert topology.parse(found.name) == found


def test_slices_are_given_once():
    assert topology.parse("v5p-128", 2) == topology.parse("2xv5p-128")
    with pytest.raises(ValueError, match="'2xv5p-128'.*num_slices=3"):
        topology.parse("2xv5p-128", 3)
    with pytest.raises(ValueError, match="num_slices=0"):
        topology.parse("v5p-128", 0)


@pytest.mark.parametrize(
    "name, known",
    [
        ("v9-8", "v5litepod-COUNT.*tpu7x:SHAPE"),
        ("v5p", "v5p-COUNT"),
        ("v5p-65", "v5p-64, v5p-128"),  # no whole chips
        ("v5p-48", "v5p-32, v5p-64"),  # no arrangement
        ("v5e:4x4x4", "must be v5e:AxB"),
        ("v5p:4x4", "must be v5p:AxBxC"),
        ("h100:8", "h100:SHAPE"),
        ("h100:1x2x8", "must be h100:HOSTSxGPUS"),
        ("v5e:0x4", "must be v5e:AxB"),
        ("V5P-64", "v5p-COUNT"),
    ],
)
def test_unknown_names_list_the_known(name, known):
    with pytest.raises(ValueError, match=f"'{name}'.*{known}"):
        topology.parse(name)


@pytest.mark.parametrize("name", ["v5e-4", "h100-8"])
def test_a_missing_compiler_is_named(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(RuntimeError, match=r"needs (libtpu|jax_cuda12_plugin).*make .venv/.aot"):
        topology.parse(name).devices()


def test_figures_are_of_one_scale():
    """A figure in the wrong unit, or of both directions, would stand out."""
    for chip in CHIPS.values():
        assert 100 < chip.bf16_tflops < 3000 and 15 < chip.hbm_gib < 200
        intensity = chip.bf16_tflops * 1e3 / chip.hbm_gb_per_second  # FLOPs per byte
        assert 160 < intensity < 600, chip.name
        assert 3 < chip.hbm_gb_per_second / chip.ici_gb_per_second < 13, chip.name
        assert 2 < chip.dcn_gb_per_second / chip.chips_per_host < 51, chip.name
        assert (
            chip.is_tpu
            != (topology.Path(topology.__file__).parent / "targets" / f"{chip.name}.txtpb").exists()
        )
