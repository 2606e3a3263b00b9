"""Compiler flags by hardware: what each does, and who says so.

    python -m lapa_jax.machine.xla_flags h100            # as shell assignments
    python -m lapa_jax.machine.xla_flags v5e-256 --slices 2

Few on purpose: the defaults of jaxlib 0.10.2 and libtpu 0.0.42 hide most latency by themselves, and
no flag here has been timed on its hardware by this project. That the compilers know every flag is
tested. Left out: `xla_tpu_spmd_rng_bit_generator_unsafe`, whose random numbers depend on the
sharding, so that a run could not continue on another mesh.
"""

import argparse
import re
import shlex
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One flag, or one environment variable where `name` is in capitals."""

    name: str
    value: str
    does: str
    source: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


# Where, NAME=VALUE, who says so; below it, what it does. `slices`: TPU slices that meet over the
# data-centre network. `exact`: for runs that must give the same bits each time, on GPUs; TPUs do
# without.
_TABLE = """
gpu xla_gpu_enable_latency_hiding_scheduler=true openxla.org/xla/flags_guidance
    orders the program so that collectives run beside computation
gpu xla_gpu_enable_pipelined_all_gather=true NVIDIA
    gathers the weights of the next layer of a scan while this one computes (FSDP)
gpu xla_gpu_enable_pipelined_reduce_scatter=true NVIDIA
    the same for the gradients that a layer scatters
gpu xla_gpu_enable_while_loop_double_buffering=true NVIDIA
    two buffers for what a scan carries, without which pipelined collectives copy
gpu XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 NVIDIA
    JAX takes 90 % of the memory instead of 75 %; the rest is for NCCL and cuDNN
v5e xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true openxla.org/xla/flags_guidance
    all-reduces run beside computation on v5e, as all-gathers do by default
v6e xla_tpu_scoped_vmem_limit_kib=98304 MAXTEXT
    VMEM that one operation may use, for programs bound by computation; the rest is for prefetching
slices xla_tpu_enable_data_parallel_all_reduce_opt=true openxla.org/xla/flags_guidance
    more overlap for the all-reduces between slices
slices xla_tpu_data_parallel_opt_different_sized_ops=true openxla.org/xla/flags_guidance
    pipelines data-parallel operations over iterations also where sizes differ; more memory
exact xla_gpu_exclude_nondeterministic_ops=true openxla.org/xla/determinism
    deterministic scatter, matrix products and attention, maybe slower
"""
_SOURCES = {
    "NVIDIA": "docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance",
    "MAXTEXT": "github.com/AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py",
}


def _of(place: str) -> tuple[Flag, ...]:
    found = []
    for entry in re.findall(rf"(?m)^{place} .*\n .*$", _TABLE):
        _, setting, source, does = entry.split(maxsplit=3)
        found.append(Flag(*setting.split("="), does, _SOURCES.get(source, source)))
    return tuple(found)


_GPUS = ("h100", "h200", "b200")
FLAGS = {chip: _of(chip) for chip in ("v4", "v5e", "v5p", "v6e", "tpu7x")}
FLAGS |= dict.fromkeys(_GPUS, _of("gpu"))
SLICES, EXACT = _of("slices"), _of("exact")


def chip_of(hardware: str) -> str:
    """`v5p-64` and `v5p` are v5p; `v5litepod-16` is v5e."""
    chip = hardware.partition("-")[0].replace("v5litepod", "v5e")
    if chip not in FLAGS:
        raise ValueError(f"hardware {hardware!r}: the chip must be one of {', '.join(FLAGS)}")
    return chip


def is_tpu(hardware: str) -> bool:
    return chip_of(hardware) not in _GPUS


def flags(hardware: str, *, slices: int = 1, exact: bool = False) -> tuple[Flag, ...]:
    """The flags of a machine."""
    tpu = is_tpu(hardware)
    if slices > 1 and not tpu:
        raise ValueError(f"slices={slices}: {hardware} is no TPU")
    chosen = FLAGS[chip_of(hardware)]
    return chosen + (SLICES if slices > 1 else ()) + (EXACT if exact and not tpu else ())


def environment(hardware: str, *, slices: int = 1, exact: bool = False) -> dict[str, str]:
    """The variables that carry the flags to the compiler of a machine."""
    chosen = flags(hardware, slices=slices, exact=exact)
    variables = {flag.name: flag.value for flag in chosen if flag.name.isupper()}
    words = " ".join(str(flag) for flag in chosen if not flag.name.isupper())
    if words:
        variables["LIBTPU_INIT_ARGS" if is_tpu(hardware) else "XLA_FLAGS"] = words
    return variables


def gpu_environment(hardware: str, exact: bool) -> dict[str, str]:
    """The same for machines with GPUs; a TPU is a ValueError."""
    if is_tpu(hardware):
        raise ValueError(f"--hardware {hardware} is a TPU: see launch/tpu_pod.py")
    return environment(hardware, exact=exact)


def main(argv: list[str] | None = None) -> int:
    """Prints the variables of a machine as shell assignments, with what they are for."""
    parser = argparse.ArgumentParser(prog="python -m lapa_jax.machine.xla_flags")
    parser.add_argument("hardware", help="a chip or a machine: v5e, v5p-64, h100-8")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="the same bits each time, on GPUs")
    args = parser.parse_args(argv)
    try:
        for flag in flags(args.hardware, slices=args.slices, exact=args.exact):
            sys.stdout.write(f"# {flag.name}: {flag.does} ({flag.source})\n")
        variables = environment(args.hardware, slices=args.slices, exact=args.exact)
    except ValueError as error:
        parser.error(str(error))
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
