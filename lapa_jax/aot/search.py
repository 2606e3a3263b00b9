"""Other layouts of the same training: which fit, and which are worth their memory.

A result is what `lapa compile --json` prints of one layout; `assess` compiles a config to one.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from lapa_jax.aot.topology import Topology
from lapa_jax.parallel.mesh import axis_sizes
from lapa_jax.parallel.sharding import MESH_AXES, ShardingError

Result = dict[str, Any]
Assess = Callable[[ConfigDict, Topology], Result]

REMAT_ORDER = ("none", "dots", "dots_no_batch", "full")  # from what keeps most to what keeps least


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a search may change of a config; nothing of it changes what is learnt."""

    mesh: tuple[int, ...]  # sizes of MESH_AXES
    preset: str
    remat: str
    microbatches: int

    @classmethod
    def of(cls, config: ConfigDict, topology: Topology) -> "Layout":
        sizes = axis_sizes(config.mesh, topology.num_devices)
        return cls(sizes, config.mesh.preset, config.model.remat, config.microbatches)

    @classmethod
    def of_result(cls, result: Result) -> "Layout":
        mesh = tuple(result["mesh"].values())
        return cls(mesh, result["preset"], result["remat"], result["microbatches"])

    def apply(self, config: ConfigDict) -> ConfigDict:
        """A copy of the config that is laid out so."""
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(self._values())
        return config

    def flags(self, base: "Layout") -> str:
        """The overrides that turn `base` into this."""
        new, old = self._values(), base._values()
        return " ".join(f"--config.{key}={new[key]}" for key in new if new[key] != old[key])

    def _values(self) -> dict[str, Any]:
        return {
            **{f"mesh.{axis}": size for axis, size in zip(MESH_AXES, self.mesh, strict=True)},
            "mesh.preset": self.preset,
            "model.remat": self.remat,
            "microbatches": self.microbatches,
        }


def changes_that_fit(
    assess: Assess, config: ConfigDict, topology: Topology, wanted: int = 3, compiles: int = 10
) -> list[Result]:
    """The first `wanted` of the changes that fit, cheapest first; at most so many compiles."""
    tried = _tried(assess, config, topology, _smaller(config, topology), compiles)
    found = itertools.islice((result for result in tried if result["fits"]), wanted)
    return sorted(found, key=step_ms)


def search(
    assess: Assess, config: ConfigDict, topology: Topology, compiles: int, first: Result
) -> list[Result]:
    """Results of at most `compiles` layouts, and `first`, the config's own.

    Half are meshes, as the config recomputes and accumulates; the rest vary both on the best two.
    """
    results = [first]
    results += _tried(assess, config, topology, _meshes(config, topology), compiles // 2, results)
    best = sorted(results, key=lambda r: (not r["fits"], step_ms(r)))[:2]
    variants = [
        dataclasses.replace(Layout.of_result(r), remat=remat, microbatches=microbatches)
        for microbatches in (1, 2, 4)
        for remat in REMAT_ORDER
        for r in best
    ]
    left = compiles - sum(r["compile_seconds"] > 0 for r in results[1:])
    return [*results, *_tried(assess, config, topology, variants, left, results)]


def pareto(results: Iterable[Result]) -> list[Result]:
    """Those that fit and that none beats in memory and time, fastest first."""
    fitting = sorted((r for r in results if r["fits"]), key=lambda r: (step_ms(r), r["peak_gib"]))
    front: list[Result] = []
    for result in fitting:
        if not front or result["peak_gib"] < front[-1]["peak_gib"]:
            front.append(result)
    return front


def step_ms(result: Result) -> float:
    return result["roofline"]["step_ms"] if result["roofline"] else float("inf")


def _tried(
    assess: Assess,
    config: ConfigDict,
    topology: Topology,
    layouts: Iterable[Layout],
    compiles: int,
    known: Iterable[Result] = (),
) -> Iterator[Result]:
    """Results of the layouts that are possible, each once, at most `compiles` of them compiled."""
    done = {Layout.of_result(result) for result in known}
    for layout in layouts:
        if compiles <= 0:
            return
        if layout in done:
            continue
        done.add(layout)
        try:
            result = assess(layout.apply(config), topology)
        except ShardingError as error:
            logging.info("impossible: %s", error)
            continue
        compiles -= result["compile_seconds"] > 0
        fits = "fits" if result["fits"] else "does not fit"
        logging.info("%s: %s, at least %.1f ms a step", layout, fits, step_ms(result))
        yield result


def _smaller(config: ConfigDict, topology: Topology) -> Iterator[Layout]:
    """Layouts that need less memory than the config's: one change, then two or three at once."""
    base = Layout.of(config, topology)
    known = base.remat in REMAT_ORDER
    more_remat = REMAT_ORDER[REMAT_ORDER.index(base.remat) + 1 :] if known else ()
    meshes = [
        layout
        for layout in _meshes(config, topology)
        if layout.mesh[0] < base.mesh[0] or layout.mesh[3] > base.mesh[3]
    ]
    yield from (dataclasses.replace(base, remat=remat) for remat in more_remat)
    yield from (dataclasses.replace(base, microbatches=base.microbatches * k) for k in (2, 4))
    yield from meshes[:3]
    for layout in [base, *meshes]:
        for k in (1, 2, 4, 8):
            changed = dataclasses.replace(layout, microbatches=base.microbatches * k)
            yield dataclasses.replace(changed, remat=more_remat[-1] if more_remat else base.remat)


def _meshes(config: ConfigDict, topology: Topology) -> list[Layout]:
    """The config's layout on the meshes worth a try: little data parallelism (the state is split
    further), tensor parallelism up to 16, the sequence split as the config has it."""
    base, found = Layout.of(config, topology), []
    seq = base.mesh[2]
    for times, tensor in itertools.product((1, 2, 4), (1, 2, 4, 8, 16)):  # least data first
        data = times * topology.num_islands
        fsdp, rest = divmod(topology.num_devices, data * seq * tensor)
        if rest or not fsdp or config.global_batch % (data * fsdp * config.microbatches):
            continue
        preset = "fsdp" + ("_tp" if tensor > 1 else "") + ("_sp" if seq > 1 else "")
        found.append(dataclasses.replace(base, mesh=(data, fsdp, seq, tensor), preset=preset))
    return found
