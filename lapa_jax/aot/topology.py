"""Names of machines → devices that JAX can compile for, with no hardware.

v5p:4x4x4       TPU chips along each dimension of the torus
v5p-128         Cloud TPU's name of the same slice (v4, v5p and tpu7x count cores, not chips)
h100:8x8        GPU hosts x GPUs on each
h100-64         the same: GPUs, eight to a host
"""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from pathlib import Path

import jax
from jax.experimental import topologies

from lapa_jax.machine.chips import CHIPS, Chip
from lapa_jax.machine.tpu_shapes import SLICES

_HOSTS = {8 * hosts: f"{hosts}x8" for hosts in (1, 2, 4, 8, 16, 32, 64, 128)}
# Prefix of a name with a count → the count → the arrangement.
_NAMES = {
    "v5litepod": SLICES["v5e"],
    **SLICES,
    **dict.fromkeys(("h100", "h200", "b200"), _HOSTS),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`num_slices` times the same machine; slices meet over the data-centre network only.

    `shape`: chips along each torus dimension (TPU), or (hosts, GPUs per host).
    """

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int

    @property
    def name(self) -> str:
        return (f"{self.num_slices}x" if self.num_slices > 1 else "") + self._slice

    @property
    def _slice(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    @property
    def num_islands(self) -> int:
        """Parts that meet over the data-centre network: slices, or hosts of GPUs. Only the mesh
        axis `data` may cross it."""
        return self.num_slices * (1 if self.chip.is_tpu else self.shape[0])

    def devices(self) -> list[jax.Device]:
        """Described devices, to make a mesh of.

        Raises RuntimeError naming what to install where the compiler is missing.
        """
        _environment()
        if self.chip.is_tpu:
            compiler, options = "libtpu", {"platform": "tpu", "topology_name": self._slice}
            options |= self._options()
        else:
            compiler, options = "jax_cuda12_plugin", {"platform": "cuda", "topology_name": ""}
            target = Path(__file__).with_name("targets") / f"{self.chip.name}.txtpb"
            options["target_config"] = target.read_text()
            options["topology"] = f"{self.num_islands}x1x{self.shape[1]}"
        if importlib.util.find_spec(compiler) is None:
            raise RuntimeError(
                f"compiling for {self.chip.name} needs {compiler}, which is not installed: "
                "make .venv/.aot, or pip install the versions that requirements/aot.txt names"
            )
        found = topologies.get_topology_desc(**options)
        if len(found.devices) != self.num_devices:
            raise RuntimeError(
                f"{self.name} has {self.num_devices} devices, but the compiler describes "
                f"{len(found.devices)}"
            )
        return found.devices

    def _options(self) -> dict:
        options = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # one device a chip, as on Cloud
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = (1,) * 3
        return options


def parse(name: str, num_slices: int = 1) -> Topology:
    """The topology of a name; an unknown one is a ValueError that lists the known."""
    if match := re.fullmatch(r"(\d+)x([a-z].*)", name):
        if num_slices != 1:
            raise ValueError(f"topology {name!r} has its slices, num_slices={num_slices} does not")
        name, num_slices = match[2], int(match[1])
    if num_slices < 1:
        raise ValueError(f"num_slices={num_slices} must be at least 1")
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", name)
    if match and match[1] in CHIPS:
        chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
        if len(shape) != (chip.torus or 2) or 0 in shape:
            wanted = "x".join("ABC"[: chip.torus]) if chip.is_tpu else "HOSTSxGPUS"
            raise ValueError(f"topology {name!r} must be {chip.name}:{wanted}")
        return Topology(chip, shape, num_slices)
    match = re.fullmatch(r"([a-z0-9]+)-(\d+)", name)
    if match and match[1] in _NAMES:
        chip, shapes = match[1].replace("v5litepod", "v5e"), _NAMES[match[1]]
        if int(match[2]) in shapes:
            return parse(f"{chip}:{shapes[int(match[2])]}", num_slices)
        known = ", ".join(f"{match[1]}-{count}" for count in shapes)
        raise ValueError(f"topology {name!r} is unknown; known: {known}, or {chip}:SHAPE")
    raise ValueError(
        f"topology {name!r} is unknown; known: {', '.join(f'{n}-COUNT' for n in _NAMES)} and "
        f"{', '.join(f'{n}:SHAPE' for n in CHIPS)}, such as v5p-64, v5p:2x4x4, h100:8x8"
    )


def _environment() -> None:
    """What libtpu must find before it is loaded, and JAX before it looks for devices. The Makefile
    keeps the compilers in a folder beside the environment's packages (`Makefile`, .aot)."""
    folder = os.path.join(sys.prefix, "aot")
    if os.path.isdir(folder) and folder not in sys.path:
        sys.path.append(folder)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
