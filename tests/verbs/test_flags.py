"""Flags from dataclasses, and tables."""

import dataclasses
from typing import Annotated

import pytest

from lapa_jax.verbs import flags, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What all have.

    out: where it
        goes to
    """

    out: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Base):
    """Of a verb.

    fps: of the frames, 5 % more or less
    names: whose (default: nobody's)

    Nothing of this is a flag: fps.
    """

    source: str = dataclasses.field(metadata={"positional": True, "metavar": "folder"})
    fps: float = 10.0
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    count: int | None = None
    quiet: bool = False
    exclude: list[str] = dataclasses.field(default_factory=list)
    fit: str = dataclasses.field(default="crop", metadata={"choices": ("crop", "pad")})

    def __post_init__(self):
        if self.fps <= 0:
            raise ValueError(f"--fps {self.fps} must be positive")


def parse(*argv: str) -> Options:
    return flags.parse(flags.parser("lapa test", "Tests.", "lapa test x"), list(argv), Options)


def test_defaults_and_types():
    assert parse("in", "--out", "there") == Options(source="in", out="there")
    given = "in --out o --fps 2 --names a,b --sizes 3 --count 4 --quiet --fit pad"
    found = parse(*given.split(), "--exclude", "x", "--exclude", "y")
    assert found == Options(
        **dict(source="in", out="o", fps=2.0, names=("a", "b"), sizes=(3,), count=4, quiet=True),
        **dict(fit="pad", exclude=["x", "y"]),
    )


@dataclasses.dataclass(frozen=True)
class Fields:
    """Of a source."""

    action_key: str = "action"
    instruction_key: str = ""
    camera: str = ""


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("action_key", "arm[:", "is not PATH"),
        ("instruction_key", "task[:2]", "is for numbers"),
        ("camera", "a,", "is not PATH"),
    ],
)
def test_a_selection_that_is_none_is_told_by_its_flag(flag, value, told):
    parser = flags.parser("lapa test", "Tests.")
    with pytest.raises(ValueError, match=f"--{flag} .*{told}"):
        flags.parse(parser, [f"--{flag}", value], Fields)


def test_help_is_what_docstrings_say(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "--out OUT where it goes to" in told
    assert "of the frames, 5 % more or less (default: 10.0)" in told
    assert "--names NAMES whose (default: nobody's)" in told and "(default: 1,2)" in told
    assert told.count("default: nobody") == 1 and "folder" in told
    assert "--count COUNT --quiet" in told, "nothing is said of what has no text"
    assert told.endswith("example: lapa test x")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["in"], "required: --out"),
        (["--out", "o"], "required: folder"),
        (["in", "--out", "o", "--count", "1.5"], "--count: invalid int value"),
        (["in", "--out", "o", "--fit", "none"], "--fit: invalid choice"),
    ],
)
def test_what_argparse_refuses(argv, told, capsys):
    with pytest.raises(SystemExit):
        parse(*argv)
    assert told in capsys.readouterr().err


def test_the_dataclass_checks_itself():
    with pytest.raises(ValueError, match=r"--fps 0.0 must be positive"):
        parse("in", "--out", "o", "--fps", "0")


@dataclasses.dataclass(frozen=True)
class Cut:
    """length: of what is left"""

    length: int = dataclasses.field(metadata={"why": "nobody else knows"})
    slowly: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """length: of the mark"""

    length: int = 5
    colour: str | None = None


def choose(*argv):
    parser = flags.parser("lapa test", "A test.")
    choices = {"cut": ("shorter", Cut), "mark": ("seen", Mark)}
    flags.add_choice(parser, "how", choices)
    return flags.read_choice(parser.parse_args(argv), "how", choices)


def test_each_choice_has_its_own_flags(capsys):
    assert choose("--how", "cut", "--length", "3", "--slowly") == Cut(3, True)
    assert choose("--how", "mark", "--colour", "red") == Mark(5, "red")
    with pytest.raises(ValueError, match="--how cut needs --length: nobody else knows"):
        choose("--how", "cut")
    with pytest.raises(ValueError, match="--how mark does not take --slowly"):
        choose("--how", "mark", "--slowly")
    with pytest.raises(SystemExit):
        choose("--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "cut: shorter; mark: seen" in told
    assert "of what is left (cut, mark)" in told and "--colour COLOUR (mark)" in told


def test_table():
    assert text.table([("name", "n"), ("a", 10), ("long one", 2)], left=(0,)) == (
        "name       n\na         10\nlong one   2"
    )


@dataclasses.dataclass(frozen=True)
class Ranged:
    """Of a verb."""

    share: Annotated[float, "(0, 1]", "of the episodes"] = 0.5
    rows: Annotated[tuple[int, ...], "[1, inf)", "of a table"] = ()
    free: float = 0.0


@pytest.mark.parametrize(
    "given", ["share=0", "share=nan", "share=1.1", "rows=1,0", "free=inf", "free=-inf", "free=nan"]
)
def test_numbers_are_in_range(given, capsys):
    with pytest.raises(SystemExit):
        flags.parse(flags.parser("lapa test", ""), [f"--{given}"], Ranged)
    assert " must be a" in capsys.readouterr().err


def test_ranges_are_told_once():
    found = flags.parse(flags.parser("lapa test", ""), ["--share=1", "--rows=2,3"], Ranged)
    assert found == Ranged(1.0, (2, 3))
    assert "of the episodes (default: 0.5)" in _help(Ranged)


def _help(options: type) -> str:
    parser = flags.parser("lapa test", "")
    flags.add(parser, options)
    return parser.format_help()
