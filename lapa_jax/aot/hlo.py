"""What a compiled program does on one device, read from its optimised HLO text.

The compilers' own cost analysis counts the body of a loop once. Here every instruction counts as
often as the loops around it run: trips come from the compiler's `known_trip_count` where there is
one, else from the comparison that ends the loop.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

FAMILIES = {
    "all-gather": "all-gather",
    "all-reduce": "all-reduce",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "collective-permute",
    "send": "send/recv",
}
# Instructions that move nothing themselves; starts and dones are counted by what is known there.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id opt-barrier add-dependency async-start async-update async-done "
    "send send-done recv recv-done".split()
)
_UPDATE = "dynamic-update-slice"
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
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

    @property
    def op_name(self) -> str:
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices.

    `kind` is what it does: that of an all-reduce that only keeps its own part (a TPU fusion called
    all-reduce-scatter) is "reduce-scatter", though its family is "all-reduce".
    """

    family: str
    kind: str
    num_bytes: int  # of the result (all-gather) or of what goes in (all others), on one device
    groups: np.ndarray | None  # (groups, members) of device numbers; None: between slices
    times: int  # per step
    in_loop: bool  # inside the loop over layers or over microbatches


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an instruction stands in the execution of a module."""

    computation: str
    times: int
    fused: bool  # inside a fusion: its operands and results are not in memory
    in_loop: bool  # inside a loop that the program has, not one that the compiler made


class Module:
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
            called = self._branches(instruction)
            if instruction.opcode == "call":
                called = [instruction.attribute("to_apply")]
            elif name := instruction.attribute("calls"):
                called = [name]
            for name in called:
                fused = place.fused or instruction.opcode == "fusion"
                yield from self._visit(dataclasses.replace(place, computation=name, fused=fused))

    def _branches(self, instruction: Instruction) -> list[str]:
        if instruction.opcode != "conditional":
            return []
        match = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        if match:
            return _NAME.findall(match[1])
        names = ("true_computation", "false_computation")
        return [b for b in map(instruction.attribute, names) if b]

    def _trips(self, loop: Instruction, computation: dict[str, Instruction]) -> int:
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if match:
            return int(match[1])
        condition = self.computations[loop.attribute("condition")]
        root = next(i for i in condition.values() if i.is_root)
        if root.opcode == "fusion":
            given = [condition[o] for o in root.operands]
            condition = self.computations[root.attribute("calls")]
            root = next(i for i in condition.values() if i.is_root)
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
        start = _integer(self._element(computation, loop.operands[0], index)) or 0
        body = self.computations[loop.attribute("body")]
        new = next(i for i in body.values() if i.is_root)
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

    def _element(self, computation, name: str, index: int) -> Instruction | None:
        found = computation.get(name)
        return computation.get(found.operands[index]) if found and found.opcode == "tuple" else None

    def _step(self, body: dict[str, Instruction], name: str) -> int:
        """What a loop adds to its counter."""
        instruction = body[name]
        while instruction.opcode in ("copy", "bitcast"):
            instruction = body[instruction.operands[0]]
        if instruction.opcode == "fusion":
            body = self.computations[instruction.attribute("calls")]
            instruction = next(i for i in body.values() if i.is_root)
        if instruction.opcode == "add":
            for operand in instruction.operands:
                value = _integer(body.get(operand))
                if value is not None:
                    return value
        return 1

    # --- Collectives ---

    def collectives(self, num_devices: int) -> list[Collective]:
        """Every collective of the program; the pieces that one was cut into count as one."""
        found, chains = [], set()
        for instruction, place in self.executed():
            opcode = instruction.opcode.removesuffix("-start")
            if opcode not in FAMILIES:
                continue
            chain = re.search(r'chain_id="\d+"', instruction.attributes)
            channel = re.search(r"channel_id=\d+", instruction.attributes)
            if chain and channel:
                if (piece := (opcode, chain[0], channel[0])) in chains:
                    continue
                chains.add(piece)
            computation, kind, groups = self.computations[place.computation], opcode, None
            shapes = [computation[o].shape for o in instruction.operands if o in computation]
            if opcode == "send":
                between_slices = re.search(
                    r'megascale_transfer_type="(\w+)"', instruction.attributes
                )
                if not between_slices:
                    continue  # to the host
                kind, shapes = between_slices[1].lower().replace("_", "-"), shapes[:1]
            else:
                groups = _groups(instruction.attributes, num_devices)
            size = sum(map(num_bytes, shapes))
            if opcode == "all-gather":
                size *= groups.shape[1]
            if opcode == "all-reduce" and place.computation.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            found.append(
                Collective(FAMILIES[opcode], kind, size, groups, place.times, place.in_loop)
            )
        return found

    # --- Memory traffic ---

    def hbm_bytes(self) -> int:
        """Bytes that the instructions read from and write to device memory, per device and step.

        What a fusion slices from an operand counts as the slice, what it updates in place as the
        update; arrays that the compiler keeps on the chip (memory space 1 of TPUs) count as none.
        """
        total = 0
        for instruction, place in self.executed():
            if not place.fused and instruction.opcode not in _FREE:
                computation = self.computations[place.computation]
                total += place.times * self._traffic(instruction, computation)
        return total

    def _traffic(self, instruction: Instruction, computation: dict[str, Instruction]) -> int:
        opcode = instruction.opcode
        operands = [num_hbm_bytes(computation[o].shape) for o in instruction.operands]
        written = num_hbm_bytes(instruction.shape)
        if opcode.endswith("-done"):
            return written
        if opcode.endswith("slice-start"):
            return [size for size, _ in _arrays(instruction.shape)][len(operands[:1])]
        if opcode.endswith("-start"):
            return sum(operands)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        if opcode == "dynamic-update-slice":
            return 2 * operands[1]
        if opcode == "fusion":
            return self._fusion_traffic(instruction, operands, written)
        return sum(operands) + written

    def _fusion_traffic(self, fusion: Instruction, operands: list[int], written: int) -> int:
        name = fusion.attribute("calls")
        if name.startswith("async_collective"):
            # A product with a piece of a collective in it, whose buffers pass through untouched.
            aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", fusion.attributes)
            passed, held = {int(i) for i, _ in aliases}, {int(j) for _, j in aliases}
            outputs = enumerate(_arrays(fusion.shape))
            written = sum(n for i, (n, layout) in outputs if i not in passed and _in_hbm(layout))
            operands = [0 if j in held else size for j, size in enumerate(operands)]
        total = written
        for parameter in self.computations[name].values():
            if parameter.opcode != "parameter":
                continue
            size = operands[int(parameter.literal)]
            found = list(self._uses(name, parameter.name)) if size else []
            if found and all(_is_partial(user, place) for user, place, _ in found):
                reads = [num_bytes(u.shape) for u, _, _ in found if u.opcode != _UPDATE]
                size = min(size, sum(reads))
                for user, _, inside in found:
                    if user.opcode == _UPDATE and written >= num_bytes(user.shape):
                        # In place: only the update is written, not what is around it.
                        total += num_bytes(inside[user.operands[1]].shape) - num_bytes(user.shape)
            total += size
        return max(total, 0)

    def _uses(self, computation: str, name: str) -> Iterator[tuple[Instruction, int, dict]]:
        """(user, place among its operands, its computation) of a value inside a fusion."""
        inside = self.computations[computation]
        for user in inside.values():
            for place, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode == "bitcast":
                    yield from self._uses(computation, user.name)
                elif user.opcode == "fusion":
                    inner = user.attribute("calls")
                    (parameter,) = (
                        p.name
                        for p in self.computations[inner].values()
                        if p.opcode == "parameter" and int(p.literal) == place
                    )
                    yield from self._uses(inner, parameter)
                else:
                    yield user, place, inside


def _is_source_loop(loop: Instruction) -> bool:
    """Whether a loop is one of the program: a compiler's own, which overlaps a product with its
    collective, has the product's name."""
    return not loop.op_name or loop.op_name.endswith("/while")


def _is_partial(user: Instruction, place: int) -> bool:
    return place == 0 and user.opcode in (_UPDATE, "dynamic-slice", "slice", "gather")


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
    return sum(size for size, _ in _arrays(shape))


def num_hbm_bytes(shape: str) -> int:
    """... of the arrays in it that lie in the device's main memory."""
    return sum(size for size, layout in _arrays(shape) if _in_hbm(layout))


def _in_hbm(layout: str) -> bool:
    return not re.search(r"S\([1-9]", layout)


def _arrays(shape: str) -> Iterator[tuple[int, str]]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        count = math.prod(int(d) for d in dims.split(",") if d)
        yield -(-bits * count // 8), layout


def _groups(attributes: str, num_devices: int) -> np.ndarray:
    """The replica groups of a collective in any of the ways HLO writes them."""
    if match := re.search(r"source_target_pairs=\{([\d{},]*)\}", attributes):
        return np.array([int(n) for n in re.findall(r"\d+", match[1])]).reshape(-1, 2)
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes
    ):
        sizes = re.findall(r"'([^']+)'=(\d+)", match[1])
        names, shape = [n for n, _ in sizes], [int(s) for _, s in sizes]
        ids = _iota(match[2]) if match[2] else np.arange(math.prod(shape))
        grid, chosen, split = ids.reshape(shape), [], []
        for axis, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3]):
            chosen.append((names.index(axis), int(before or 1), int(size or 0)))
        places, new_shape = [], []
        for i, full in enumerate(shape):
            parts = [(b, s or full) for a, b, s in chosen if a == i]
            split = [(1, full)] if not parts else parts
            for before, size in split:
                new_shape += [before, size, full // (before * size)] if parts else [full]
                places += [len(new_shape) - 2] if parts else []
            if len(parts) > 1:
                raise ValueError(f"cannot read the groups of a collective: {match[0]}")
        grid = grid.reshape(new_shape)
        rest = [d for d in range(grid.ndim) if d not in places]
        members = math.prod(new_shape[d] for d in places)
        return grid.transpose(rest + places).reshape(-1, members)
    if match := re.search(r"replica_groups=(\[[\d,]+\]<=\S*?)(?:, |$)", attributes):
        shape = [int(n) for n in re.match(r"\[([\d,]+)\]", match[1])[1].split(",")]
        return _iota(match[1].split("<=")[1]).reshape(shape)
    if match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        rows = [[int(n) for n in r.split(",") if n] for r in re.findall(r"\{([\d,]*)\}", match[1])]
        return np.array(rows) if rows else np.arange(num_devices)[None]
    if "replica_groups" in attributes:
        raise ValueError(f"cannot read the groups of a collective: {attributes[:300]}")
    return np.arange(num_devices)[None]


def _iota(text: str) -> np.ndarray:
    """`[8,4]T(1,0)`: 0, 1, 2, ... in that shape, transposed, in order."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not match:
        raise ValueError(f"cannot read the device order {text!r} of a collective")
    shape = [int(n) for n in match[1].split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose([int(n) for n in match[2].split(",")]) if match[2] else ids).reshape(-1)
