"""A job on GPU nodes under Slurm: one batch script, shown or submitted.

    python -m launch.slurm --hardware h100 --nodes 8 --time 24:00:00 -- \
        lapa train --config FILE --workdir /shared/runs/x

Every task is a supervisor with one process. Before the time limit and at preemption Slurm sends
SIGTERM: the run saves, the supervisors exit with 75, and the job puts itself back into the queue.
The workdir and the data must be on storage that all nodes share.
"""

import argparse
import math
import os
import re
import shlex
import sys

from lapa_jax.machine import xla_flags
from lapa_jax.training.run_files import EXIT_RESTART

from .check import check_training
from .shell import Action, Shell, assignments, at_least, checked_env_file, run_tool, supervised

FLAGS = {
    "--nodes": {"type": at_least(1), "default": 1},
    "--gpus_per_node": {"type": at_least(1), "default": 8},
    "--process_per": {
        "choices": ("gpu", "node"),
        "default": "gpu",
        "help": "one process for each GPU (default), or one for all GPUs of a node",
    },
    "--time": {"default": "24:00:00", "help": "limit of one turn; the job then queues again"},
    "--name": {"default": "lapa"},
    "--partition": {},
    "--account": {},
    "--env_file": {"help": "NAME=VALUE lines, secrets too; on storage that the nodes share"},
}
SUBMIT = Action("", f"--hardware --exact --save_seconds {' '.join(FLAGS)}", takes_command=True)


def main(argv: list[str] | None = None) -> int:
    """Submits the job; with --dry_run prints the script."""
    does = "Submits a supervised job on GPU nodes."
    return run_tool("slurm", does, {"submit": SUBMIT}, FLAGS, _submit, argv)


def _submit(args: argparse.Namespace, command: list[str], shell: Shell) -> None:
    gpus = args.nodes * args.gpus_per_node
    check_training(command, f"{args.hardware}-{gpus}", gpus)
    if seconds_of(args.time) <= args.save_seconds:
        raise ValueError(
            f"--time {args.time} is no longer than the --save_seconds {args.save_seconds} at its "
            f"end: the run would be stopped as it starts, and queue again for ever"
        )
    shell.run(["sbatch"], stdin=script(args, command))


def seconds_of(limit: str) -> float:
    """A time limit as sbatch reads it; 0 is none. ValueError for what it does not take."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not found:
        raise ValueError(
            f"--time {limit} must be as sbatch has it: MINUTES, MM:SS, HH:MM:SS, DAYS-HH, ..."
        )
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # hours come first
        numbers += [0] * (3 - len(numbers))
    elif len(numbers) < 3:  # minutes do
        numbers = [0, *numbers, 0][:3]
    hours, minutes, seconds = numbers
    return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds or math.inf


def script(args: argparse.Namespace, command: list[str]) -> str:
    """The batch script, which sbatch reads from its standard input."""
    per_node = args.gpus_per_node if args.process_per == "gpu" else 1
    settings = {
        "job-name": args.name,
        "nodes": args.nodes,
        "ntasks-per-node": per_node,
        "gpus-per-node": args.gpus_per_node,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "signal": f"TERM@{args.save_seconds}",
        "output": f"{args.name}-%j.log",
        "open-mode": "append",  # one log over all turns
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}={value}" for name, value in settings.items() if value]
    lines += ["#SBATCH --exclusive", "#SBATCH --requeue", ""]
    lines += [f"cd {shlex.quote(os.getcwd())} || exit"]
    if args.env_file:
        path = shlex.quote(os.path.abspath(checked_env_file(args.env_file)))
        lines += ["set -a", "# shellcheck source=/dev/null", f". {path}", "set +a"]
    variables = xla_flags.gpu_environment(args.hardware, args.exact)
    if args.process_per == "node":
        # Under Slurm JAX shows each process one GPU unless told otherwise.
        variables["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(args.gpus_per_node)))
    lines += [f"export {variable}" for variable in assignments(variables)]
    lines += [
        # Supervisors outlive the end of one of them: each starts its own process again.
        f"srun --kill-on-bad-exit=0 {shlex.join(supervised(command, args.save_seconds))}",
        "code=$?",
        f'if [ "$code" -eq {EXIT_RESTART} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
