"""One machine, all of its GPUs: the flags of the hardware, and a supervised job.

    python -m launch.gpu_host --hardware h100 -- lapa train --config FILE --workdir runs/x

One process drives all GPUs, which is the simplest; --processes splits them.
"""

import argparse
import os
import shlex
import sys

from launch import supervise, xla_flags
from launch.shell import Shell, needed, run_tool


def main(argv: list[str] | None = None) -> int:
    """Runs the job to its end; the exit code is the supervisor's."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.gpu_host",
        usage="%(prog)s --hardware CHIP [flags] -- COMMAND --workdir DIR ...",
        description="Runs a job on all GPUs of this machine, supervised.",
    )
    add = parser.add_argument
    add("--hardware", required=True, help="h100, h200 or b200")
    add("--gpus", type=int, default=8, help="of the machine (default 8)")
    add("--processes", type=int, default=1, help="that share the GPUs (default 1)")
    add("--exact", action="store_true", help="the same bits each time, maybe slower")
    add("--dry_run", action="store_true", help="print the command")
    return run_tool(parser, _run, argv)


def _run(args: argparse.Namespace, command: list[str], shell: Shell) -> int:
    if xla_flags.is_tpu(args.hardware):
        raise ValueError(f"--hardware {args.hardware} is a TPU: see launch/tpu_pod.py")
    if args.processes < 1 or args.gpus % args.processes:
        raise ValueError(f"--gpus {args.gpus} must divide by --processes {args.processes}")
    variables = xla_flags.environment(args.hardware, exact=args.exact)
    job = ["--", *needed(command)]
    if args.processes > 1:
        each = args.gpus // args.processes
        job = ["--processes", f"{args.processes}", "--devices_per_process", f"{each}", *job]
    if shell.dry_run:
        words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        words.append(shlex.join(["python", "-m", "launch.supervise", *job]))
        sys.stdout.write(" \\\n    ".join(words) + "\n")
        return 0
    # XLA takes the last of equal flags: what the user has set wins.
    mine = os.environ.get("XLA_FLAGS", "")
    os.environ.update(variables)
    os.environ["XLA_FLAGS"] = f"{variables['XLA_FLAGS']} {mine}".strip()
    return supervise.main(job)


if __name__ == "__main__":
    sys.exit(main())
