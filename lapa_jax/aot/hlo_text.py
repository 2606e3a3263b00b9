"""The optimised HLO text of a compiled program: its instructions, and how often each runs.

The compilers' own cost analysis counts the body of a loop once. Here every instruction counts as
often as the loops around it run: trips come from the compiler's `known_trip_count` where there is
one, else from the comparison that ends the loop.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = {"call": ("to_apply",), "conditional": ("true_computation", "false_computation")}
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")


@dataclasses.dataclass
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str
    literal: str  # what stands between the parentheses: a constant's value, a parameter's number
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return match and match[1]

    def called(self) -> list[str]:
        """The computations that it runs, but for a loop's."""
        if match := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            return _NAME.findall(match[1])
        names = _CALLS.get(self.opcode, ("calls",))
        return [name for name in map(self.attribute, names) if name]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an instruction stands in the execution of a module."""

    computation: str
    times: int
    fused: bool  # inside a fusion: its operands and results are not in memory
    in_loop: bool  # inside a loop that the program has, not one that the compiler made


class Program:
    """A parsed HLO module."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if current is None:
                match = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if match and not line.startswith("HloModule"):
                    current = self.computations.setdefault(match[2], {})
                    self.entry = match[2] if match[1] else self.entry
            elif line == "}" or line.startswith("}, "):  # such as execution_thread="sparsecore"
                current = None
            elif _INSTRUCTION.match(line):  # others continue one: kernels have attributes of lines
                instruction = _parse(line)
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("this is no HLO module: it has no ENTRY computation")

    def executed(self) -> Iterator[tuple[Instruction, Place]]:
        """Every instruction that runs, with its place."""
        yield from self._visit(Place(self.entry, times=1, fused=False, in_loop=False))

    def _visit(self, place: Place) -> Iterator[tuple[Instruction, Place]]:
        computation = self.computations[place.computation]
        for instruction in computation.values():
            yield instruction, place
            if instruction.opcode == "while":
                trips = self._trips(instruction, computation)
                yield from self._visit(
                    dataclasses.replace(
                        place,
                        computation=instruction.attribute("body"),
                        times=place.times * trips,
                        in_loop=place.in_loop or _is_source_loop(instruction),
                    )
                )
                continue
            fused = place.fused or instruction.opcode == "fusion"
            for name in instruction.called():
                yield from self._visit(dataclasses.replace(place, computation=name, fused=fused))

    def _trips(self, loop: Instruction, computation: dict[str, Instruction]) -> int:
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if match:
            return int(match[1])
        condition = self.computations[loop.attribute("condition")]
        root = _root(condition)
        if root.opcode == "fusion":
            given = [condition[o] for o in root.operands]
            condition = self.computations[root.attribute("calls")]
            root = _root(condition)
            condition = {
                name: given[int(i.literal)] if i.opcode == "parameter" else i
                for name, i in condition.items()
            }
        # Of a loop that may end earlier (`and`), the most it can take.
        compared = [root] if root.opcode != "and" else map(condition.get, root.operands)
        bounds = [found for one in compared if (found := self._bound(one, condition))]
        if not bounds:
            raise ValueError(f"loop {loop.name}: cannot read its trips from {root}")
        counter, bound = bounds[0]
        index = int(re.search(r"index=(\d+)", counter.attributes)[1])
        given, start = computation.get(loop.operands[0]), 0
        if given and given.opcode == "tuple":
            start = _integer(computation.get(given.operands[index])) or 0
        body = self.computations[loop.attribute("body")]
        new = _root(body)
        step = self._step(body, new.operands[index]) if new.opcode == "tuple" else 1
        return max(0, -(-(bound - start) // step))

    def _bound(
        self, compare: Instruction, condition: dict[str, Instruction]
    ) -> tuple[Instruction, int] | None:
        """(counter, bound) of `counter < bound`; None of anything else."""
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, bound = (condition.get(o) for o in compare.operands)
        bound = _integer(bound)
        if bound is None or counter.opcode != "get-tuple-element":
            return None
        return counter, bound

    def _step(self, body: dict[str, Instruction], name: str) -> int:
        """What a loop adds to its counter."""
        instruction = body[name]
        while instruction.opcode in ("copy", "bitcast"):
            instruction = body[instruction.operands[0]]
        if instruction.opcode == "fusion":
            body = self.computations[instruction.attribute("calls")]
            instruction = _root(body)
        if instruction.opcode == "add":
            for operand in instruction.operands:
                value = _integer(body.get(operand))
                if value is not None:
                    return value
        return 1


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(i for i in computation.values() if i.is_root)


def _is_source_loop(loop: Instruction) -> bool:
    """Whether a loop is one of the program: a compiler's own, which overlaps a product with its
    collective, has the product's name."""
    name = re.search(r'op_name="([^"]+)"', loop.attributes)
    return not name or name[1].endswith("/while")


def _parse(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    is_root = left.startswith("ROOT ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    open_ = rest.index("(")
    close = _closing(rest, open_)
    inside = rest[open_ + 1 : close]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        shape=shape,
        opcode=rest[:open_],
        operands=_NAME.findall(inside),
        attributes=rest[close + 1 :],
        literal=inside,
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def _integer(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None


def num_bytes(shape: str) -> int:
    """Bytes of an array or tuple shape, without padding: bf16[8,128]{1,0} has 2048."""
    return sum(size for size, _ in arrays(shape))


def num_hbm_bytes(shape: str) -> int:
    """... of the arrays in it that lie in the device's main memory."""
    return sum(size for size, layout in arrays(shape) if in_hbm(layout))


def in_hbm(layout: str) -> bool:
    return not re.search(r"S\([1-9]", layout)


def arrays(shape: str) -> Iterator[tuple[int, str]]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        count = math.prod(int(d) for d in dims.split(",") if d)
        yield -(-bits * count // 8), layout
