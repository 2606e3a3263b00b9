"""One machine, all of its GPUs: the flags of the hardware, and a supervised job.

    python -m launch.gpu_host --hardware h100 -- lapa train --config FILE --workdir runs/x

One process drives all GPUs, which is the simplest; --processes splits them.
"""

import argparse
import os
import shlex
import sys

from lapa_jax.machine import xla_flags

from . import supervise
from .check import check_training
from .shell import Action, Shell, assignments, at_least, run_tool

FLAGS = {
    "--gpus": {"type": at_least(1), "default": 8, "help": "of the machine (default 8)"},
    "--processes": {"type": at_least(1), "default": 1, "help": "that share the GPUs (default 1)"},
}
RUN = Action("", "--hardware --exact --gpus --processes", takes_command=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the job to its end; the exit code is the supervisor's."""
    does = "Runs a job on all GPUs of this machine, supervised."
    return run_tool("gpu_host", does, {"run": RUN}, FLAGS, _run, argv)


def _run(args: argparse.Namespace, command: list[str], shell: Shell) -> int:
    check_training(command, f"{args.hardware}-{args.gpus}", args.gpus)
    variables = xla_flags.gpu_environment(args.hardware, args.exact)
    if args.processes < 1 or args.gpus % args.processes:
        raise ValueError(f"--gpus {args.gpus} must divide by --processes {args.processes}")
    job = ["--", *command]
    if args.processes > 1:
        each = args.gpus // args.processes
        job = ["--processes", f"{args.processes}", "--devices_per_process", f"{each}", *job]
    if shell.dry_run:
        words = [
            *assignments(variables),
            shlex.join(["python", "-m", f"{__package__}.supervise", *job]),
        ]
        sys.stdout.write(" \\\n    ".join(words) + "\n")
        return 0
    # XLA takes the last of equal flags: what the user has set wins.
    mine = os.environ.get("XLA_FLAGS", "")
    os.environ.update(variables)
    os.environ["XLA_FLAGS"] = f"{variables['XLA_FLAGS']} {mine}".strip()
    return supervise.main(job)


if __name__ == "__main__":
    sys.exit(main())
