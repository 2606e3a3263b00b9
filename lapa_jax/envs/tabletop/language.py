"""Instructions: every task in several phrasings, the last ones held out from training.

Strings exist on the host only. A string names one task: `parse` inverts `instruction`.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lapa_jax.envs.env import phrasing_numbers
from lapa_jax.envs.tabletop.state import COLOURS, FAMILIES, NUM_KINDS, SHAPES

NUM_TRAIN = 4
NUM_HELD_OUT = 2
NUM_PHRASINGS = NUM_TRAIN + NUM_HELD_OUT

# Orders of tasks.DIRECTIONS and tasks.LOCATIONS.
DIRECTIONS = ("right", "up", "left", "down", "up and right", "up and left", "down and left",
              "down and right")  # fmt: skip
_SIDE_OF = ("to the right of", "above", "to the left of", "below", "to the upper right of",
            "to the upper left of", "to the lower left of", "to the lower right of")  # fmt: skip
LOCATIONS = ("center", "right side", "top side", "left side", "bottom side", "top right corner",
             "top left corner", "bottom left corner", "bottom right corner")  # fmt: skip

# NUM_TRAIN phrasings, then NUM_HELD_OUT.
_TEMPLATES = {
    "block_to_block": (
        "push the {a} to the {b}",
        "move the {a} next to the {b}",
        "bring the {a} over to the {b}",
        "slide the {a} into the {b}",
        "put the {a} against the {b}",
        "make the {a} touch the {b}",
    ),
    "block_to_absolute": (
        "push the {a} to the {which} of the board",
        "move the {a} to the {which}",
        "slide the {a} into the {which}",
        "bring the {a} over to the {which} of the board",
        "put the {a} in the {which}",
        "the {a} belongs in the {which} of the board",
    ),
    "block_to_block_relative": (
        "push the {a} {which} the {b}",
        "move the {a} {which} the {b}",
        "slide the {a} so that it is {which} the {b}",
        "bring the {a} {which} the {b}",
        "put the {a} {which} the {b}",
        "the {a} should end up {which} the {b}",
    ),
    "block_to_relative": (
        "push the {a} {which} a bit",
        "move the {a} somewhat {which}",
        "slide the {a} {which} slightly",
        "nudge the {a} {which}",
        "shift the {a} {which} a little",
        "the {a} should go {which} a bit",
    ),
    "separate_blocks": (
        "separate the {a} from the {b}",
        "move the {a} away from the {b}",
        "push the {a} far from the {b}",
        "pull the {a} and the {b} apart",
        "get the {a} clear of the {b}",
        "keep the {a} at a distance from the {b}",
    ),
    "reach": (
        "touch the {a}",
        "move to the {a}",
        "reach the {a}",
        "go to the {a}",
        "point at the {a}",
        "approach the {a}",
    ),
}
_WHICH = {
    "block_to_absolute": LOCATIONS,
    "block_to_block_relative": _SIDE_OF,
    "block_to_relative": DIRECTIONS,
}
TWO_BLOCKS = ("block_to_block", "block_to_block_relative", "separate_blocks")


class Task(NamedTuple):
    """What an instruction says. b is -1 without a second block, which 0 without an argument."""

    family: int
    kind_a: int
    kind_b: int
    which: int


def block_name(kind: int) -> str:
    """E.g. "red star"."""
    return f"{COLOURS[kind % len(COLOURS)]} {SHAPES[kind // len(COLOURS)]}"


def phrasings(split: str) -> range:
    """Phrasing numbers of "train", "held_out" or "all"."""
    return phrasing_numbers(split, NUM_TRAIN, NUM_PHRASINGS)


def instruction(task: Task, phrasing: int) -> str:
    """The task in words."""
    if not 0 <= phrasing < NUM_PHRASINGS:
        raise ValueError(f"phrasing {phrasing} is not within 0..{NUM_PHRASINGS - 1}")
    family = FAMILIES[task.family]
    which = _WHICH[family][task.which] if family in _WHICH else ""
    other = block_name(task.kind_b) if family in TWO_BLOCKS else ""
    return _TEMPLATES[family][phrasing].format(a=block_name(task.kind_a), b=other, which=which)


def all_tasks(families: Sequence[str]) -> Iterator[Task]:
    """Every task of some scene, in a fixed order."""
    for family in families:
        count = len(_WHICH.get(family, ("",)))
        for a in range(NUM_KINDS):
            others = range(NUM_KINDS) if family in TWO_BLOCKS else (-1,)
            for b in others:
                if b != a:
                    for which in range(count):
                        yield Task(FAMILIES.index(family), a, b, which)


def all_instructions(families: Sequence[str], split: str) -> list[str]:
    """Every string of these families in the phrasings of the split."""
    numbers = phrasings(split)
    return [instruction(task, p) for task in all_tasks(families) for p in numbers]


@functools.cache
def _inverse() -> dict[str, tuple[Task, int]]:
    return {
        instruction(task, p): (task, p) for task in all_tasks(FAMILIES) for p in phrasings("all")
    }


def parse(text: str) -> tuple[Task, int]:
    """The task and phrasing number of an instruction."""
    try:
        return _inverse()[text]
    except KeyError:
        raise ValueError(f"{text!r} is not an instruction of the tabletop") from None
