"""Before a job is sent: does its config load, and does it fit the machine that is asked for?

What cannot be known here is said and left: this machine may lack the packages, or the file, which
the image has.
"""

import argparse
import math
import re
import sys

from lapa_jax.machine import xla_flags
from lapa_jax.machine.tpu_shapes import SLICES

CORES = {"tpu7x": 2}  # devices of a chip, where JAX sees more than one


def slice_shape(accelerator: str) -> tuple[str, str]:
    """A slice by its Cloud TPU name: chip, and chips along each dimension. ValueError if there is
    no such slice."""
    chip = xla_flags.chip_of(accelerator)
    if chip not in SLICES:
        raise ValueError(f"--accelerator {accelerator} is no TPU")
    count = accelerator.rpartition("-")[2]
    if not count.isdecimal():
        raise ValueError(f"--accelerator {accelerator}: give the size too, for example {chip}-64")
    topology = SLICES[chip].get(int(count))
    if topology is None:
        sizes = ", ".join(f"{chip}-{size}" for size in SLICES[chip])
        raise ValueError(f"--accelerator {accelerator}: known are {sizes}")
    return chip, topology


def check_on_slices(command: list[str], accelerator: str, slices: int, mount: str) -> None:
    """`check_training` on so many slices of TPUs, whose hosts run it in containers, with shared
    storage below `mount`."""
    chip, topology = slice_shape(accelerator)
    devices = math.prod(map(int, topology.split("x"))) * CORES.get(chip, 1) * slices
    name = f"{chip}-{accelerator.rpartition('-')[2]}"
    check_training(command, f"{slices}x{name}" if slices > 1 else name, devices, mount)


def check_training(
    command: list[str], hardware: str, devices: int, mount: str | None = None
) -> None:
    """Of `lapa train ...`; other commands are not looked at.

    hardware: the machine as configs name it: v5p-64, 2xv5p-128, h100-64. mount: where only what
    lies below it, or in a bucket, outlives the job. ValueError says what does not fit: the flags,
    the config, what it is laid out for, its mesh, or its batch.
    """
    if command[:2] != ["lapa", "train"]:
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    args, _ = parser.parse_known_args(command[2:])
    if not args.config or not args.workdir:
        raise ValueError("lapa train needs --config FILE and --workdir DIR")
    if mount is not None and not args.workdir.startswith((f"{mount}/", "gs://")):
        raise ValueError(
            f"--workdir {args.workdir} would lie in the container of each host, and end with it: "
            f"give a path below {mount}/, which all hosts share, or gs://BUCKET/PATH"
        )
    laid_out = re.search(r"\bhardware=([^,]+)", args.config)
    if laid_out and laid_out[1] != hardware:
        raise ValueError(
            f"--config {args.config} is laid out for {laid_out[1]}, and {hardware} is asked for"
        )
    try:
        from lapa_jax import config as configs
        from lapa_jax import settings, train
        from lapa_jax.parallel.mesh import axis_sizes

        configs.locate(args.config)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        sys.stderr.write(f"the config is not checked here: {error}\n")
        return
    _, config = train.parse(command[2:])
    settings.check(config)
    sizes = axis_sizes(config.mesh, devices)
    shards = sizes[0] * sizes[1]
    if config.global_batch % (shards * config.microbatches):
        raise ValueError(
            f"global_batch={config.global_batch} must be a multiple of mesh.data={sizes[0]} x "
            f"mesh.fsdp={sizes[1]} x microbatches={config.microbatches} on {devices} devices"
        )
