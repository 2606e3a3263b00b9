"""Commands of other programs: shown exactly, then run, or with --dry_run only shown.

What a dry run prints is a shell script that does the same. Below: what the tools have in common.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# A word that carries the value of a secret: HF_TOKEN=..., --api_key=...
_SECRET = re.compile(r"(?i)(?:^|[-_.\s])(\w*(?:token|secret|password|api_?key|credentials?))=\S")


def at_least(low: int) -> Callable[[str], int]:
    """What argparse reads a whole number with that has a lower bound."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {low}")
        return int(text)

    return number


NEEDED, SWITCH = {"required": True}, {"action": "store_true"}
Flags = dict[str, dict[str, Any]]  # flag, or word without a flag → what argparse is told of it
FLAGS: Flags = {  # of more than one tool
    "--accelerator": {**NEEDED, "help": "v5p-64, v5e-256, v6e-256, on GKE tpu7x-64 too, ..."},
    "--slices": {"type": at_least(1), "default": 1, "help": "that make one machine (default 1)"},
    "--spot": {**SWITCH, "help": "cheaper, and taken away at any time"},
    "--image": {**NEEDED, "help": "built from launch/docker/tpu.Dockerfile"},
    "--zone": {"help": "default: that of gcloud's configuration"},
    "--project": {"help": "default: that of gcloud's configuration"},
    "--hardware": {**NEEDED, "help": "h100, h200 or b200"},
    "--exact": {**SWITCH, "help": "the same bits each time, maybe slower"},
    "--env_file": {"help": "NAME=VALUE lines, secrets too; readable by you alone"},
    "--save_seconds": {
        "type": at_least(1),
        "default": 300,
        "help": "to save, at the end (default 300)",
    },
}


class Shell:
    """Runs commands one after the other; the first that fails ends the program."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, command: list[str], *, stdin: str | None = None) -> None:
        """Runs it in the foreground; `stdin` is a text for its standard input."""
        self._show(command, stdin)
        if not self.dry_run:
            # The text as bytes: a text of ours has one kind of line end.
            data = None if stdin is None else stdin.encode()
            subprocess.run(command, input=data, check=True)

    def read(self, command: list[str]) -> str | None:
        """What it prints, or None if it fails, which is an answer too. Nothing in a dry run."""
        self._show(command, None)
        if self.dry_run:
            return ""
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.stderr.write(done.stderr)
            return None
        return done.stdout.strip()

    def _show(self, command: list[str], stdin: str | None) -> None:
        refuse_secrets(command)
        text = shlex.join(command)
        if stdin is not None:
            text += f" <<'END'\n{stdin.rstrip()}\nEND"
        stream = sys.stdout if self.dry_run else sys.stderr
        stream.write(text + "\n")
        stream.flush()


def refuse_secrets(words: list[str]) -> None:
    """Raises ValueError where a word gives a secret its value: all users of a machine see it."""
    for found in filter(None, map(_SECRET.search, words)):
        raise ValueError(
            f"{found[1]}=... on a command line can be read by everybody on the machine: put it "
            f"into a file of lines NAME=VALUE, and name that with --env_file (on GKE: into a "
            f"Kubernetes secret, with --secret)"
        )


def checked_env_file(path: str) -> str:
    """The path, if the file is readable by its owner alone and holds NAME=VALUE lines."""
    mode = Path(path).stat().st_mode & 0o777
    if mode & 0o077:
        raise ValueError(f"--env_file {path} has mode {mode:o}: chmod 600 {path}")
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        name = line.partition("=")[0]
        if line.strip() and not line.startswith("#") and not ("=" in line and name.isidentifier()):
            raise ValueError(f"--env_file {path}, line {number}: not NAME=VALUE")
    return path


def split(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags before `--`, and gives the command behind it (empty without)."""
    at = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:at]), argv[at + 1 :]


def given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of the flags that have a value, for a program that has them too."""
    values = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    return [flag if value is True else f"{flag}={value}" for flag, value in values.items() if value]


def assignments(variables: dict[str, str]) -> list[str]:
    """NAME=VALUE words of a shell."""
    return [f"{name}={shlex.quote(value)}" for name, value in variables.items()]


def supervised(command: list[str], save_seconds: int) -> list[str]:
    """`lapa train` under launch/supervise.py, which must have saved after so long; any other
    command as it is."""
    if command[:2] != ["lapa", "train"]:
        return command
    drain = ["--drain_seconds", f"{max(30, save_seconds - 30)}"]
    return ["python", "-m", f"{__package__}.supervise", *drain, "--", *command]


class Action(NamedTuple):
    """One thing that a tool does."""

    does: str
    flags: str  # in one line: those of FLAGS and of the tool
    takes_command: bool = False  # behind `--`; without one it must not be given


def run_tool(
    name: str,
    does: str,
    actions: dict[str, Action],
    flags: Flags,
    work: Callable[[argparse.Namespace, list[str], Shell], int | None],
    argv: list[str] | None,
) -> int:
    """Parses and works; wrong values and failed commands become one line and an exit code.

    `args.action` names one of the actions, which is not written where there is only one.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.{name}", description=does)
    several = None
    if len(actions) > 1:
        several = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for key, action in actions.items():
        one = parser
        if several:
            one = several.add_parser(key, help=action.does, description=action.does)
        one.set_defaults(action=key)
        for flag in action.flags.split():
            one.add_argument(flag, **(FLAGS | flags)[flag])
        one.add_argument("--dry_run", action="store_true", help="print the commands")
        if action.takes_command:
            one.usage = one.format_usage().removeprefix("usage: ").rstrip() + " -- COMMAND ..."
    args, command = split(parser, sys.argv[1:] if argv is None else argv)
    try:
        if not actions[args.action].takes_command:
            if command:
                raise ValueError(f"{args.action} takes no command, got {shlex.join(command)!r}")
        elif not command:
            raise ValueError("give the command behind --, for example: -- lapa train --config ...")
        refuse_secrets(command)
        return work(args, command, Shell(args.dry_run)) or 0
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except (subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
