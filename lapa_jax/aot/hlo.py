"""What a compiled program does on one device: which collectives it runs, what memory it moves."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from lapa_jax.aot import hlo_text
from lapa_jax.aot.hlo_text import Instruction, arrays, in_hbm, num_bytes, num_hbm_bytes

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


class Module(hlo_text.Program):
    """A parsed HLO module."""

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
            return [size for size, _ in arrays(instruction.shape)][len(operands[:1])]
        if opcode.endswith("-start"):
            return sum(operands)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        if opcode == "dynamic-update-slice":
            return 2 * operands[1]
        if opcode == "fusion":
            return self._fusion_traffic(instruction, operands, written)
        if opcode == "custom-call" and '="__cublas' in instruction.attributes:
            written -= list(arrays(instruction.shape))[-1][0]  # room that the library may use
        return sum(operands) + written

    def _fusion_traffic(self, fusion: Instruction, operands: list[int], written: int) -> int:
        name = fusion.attribute("calls")
        if name.startswith("async_collective"):
            # A product with a piece of a collective in it, whose buffers pass through untouched.
            aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", fusion.attributes)
            passed, held = {int(i) for i, _ in aliases}, {int(j) for _, j in aliases}
            outputs = enumerate(arrays(fusion.shape))
            written = sum(n for i, (n, layout) in outputs if i not in passed and in_hbm(layout))
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


def _is_partial(user: Instruction, place: int) -> bool:
    return place == 0 and user.opcode in (_UPDATE, "dynamic-slice", "slice", "gather")


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
        chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])
        parts = {axis: (int(before or 1), int(size or 0)) for axis, before, size in chosen}
        if len(parts) < len(chosen) or not parts.keys() <= set(names):
            raise ValueError(f"cannot read the groups of a collective: {match[0]}")
        places, new_shape = [], []
        for name, full in zip(names, shape, strict=True):
            if name in parts:
                before, size = parts[name][0], parts[name][1] or full
                places.append(len(new_shape) + 1)
                new_shape += [before, size, full // (before * size)]
            else:
                new_shape.append(full)
        grid = ids.reshape(new_shape)
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
