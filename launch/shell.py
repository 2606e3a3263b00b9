"""Commands of other programs: shown exactly, then run, or with --dry_run only shown.

What a dry run prints is a shell script that does the same.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# A word that carries the value of a secret: HF_TOKEN=..., --api_key=...
_SECRET = re.compile(r"(?i)(?:^|[-_.\s])(\w*(?:token|secret|password|api_?key|credentials?))=\S")


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
    for word in words:
        found = _SECRET.search(word)
        if found:
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
    values = {name: getattr(args, name) for name in names}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value]


def supervised(command: list[str], save_seconds: int) -> list[str]:
    """`lapa train` under launch/supervise.py, which must have saved after so long; any other
    command as it is."""
    if command[:2] != ["lapa", "train"]:
        return command
    drain = ["--drain_seconds", f"{max(30, save_seconds - 30)}"]
    return ["python", "-m", "launch.supervise", *drain, "--", *command]


def run_tool(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, list[str], Shell], int | None],
    argv: list[str] | None,
) -> int:
    """Parses and works; wrong values and failed commands become one line and an exit code.

    The parser must have --dry_run.
    """
    args, command = split(parser, sys.argv[1:] if argv is None else argv)
    try:
        return work(args, command, Shell(args.dry_run)) or 0
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except (subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def needed(command: list[str]) -> list[str]:
    """The command behind `--`, which must be there and carry no secret."""
    if not command:
        raise ValueError("give the command behind --, for example: -- lapa train --config ...")
    refuse_secrets(command)
    return command
