"""The device mesh: axes ('data', 'fsdp', 'seq', 'tensor'), always with Auto axis types.

Sizes come from the config; one of them may be -1 (all remaining devices). Slices of a multi-slice
machine are split over 'data', the only axis whose traffic crosses the slow network.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lapa_jax.parallel.sharding import MESH_AXES, ShardingError


def axis_sizes(mesh_config: Mapping[str, Any], num_devices: int) -> tuple[int, ...]:
    """Sizes in the order of MESH_AXES, with -1 resolved."""
    unknown = sorted(set(mesh_config) - set(MESH_AXES) - {"preset"})
    missing = [axis for axis in MESH_AXES if axis not in mesh_config]
    if unknown or missing:
        raise ShardingError(
            f"config.mesh needs the keys {MESH_AXES} (and preset): unknown {unknown}, "
            f"missing {missing}"
        )
    sizes = [int(mesh_config[axis]) for axis in MESH_AXES]
    told = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ShardingError(f"{told}: sizes are at least 1, and at most one of them is -1")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ShardingError(
            f"{told} need {known} devices{' or a multiple' if -1 in sizes else ''}, but there are "
            f"{num_devices}: change the sizes (one may be -1)"
        )
    return tuple(num_devices // known if size == -1 else size for size in sizes)


def make_mesh(mesh_config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all devices of all processes)."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(mesh_config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if sizes[0] % slices:
            raise ShardingError(
                f"mesh.data={sizes[0]} is not a multiple of the {slices} slices, and only 'data' "
                f"may cross slices"
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (sizes[0] // slices, *sizes[1:]),
            (slices, 1, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        # No torus to fit: keep the order of the devices, so that a host's devices stay together.
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
