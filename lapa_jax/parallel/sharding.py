"""One rule table: logical axis names of arrays -> mesh axes.

Parameters and activations carry logical names; a preset maps them to the mesh axes
('data', 'fsdp', 'seq', 'tensor'). An unknown name, or a dimension that its mesh axes do not divide,
is an error that names both. A mesh axis shards at most one dimension of an array: the first that
maps to it (so scores named ("batch", "heads", "length", "length") split only the query length).
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "seq", "tensor")
BATCH_AXES = ("data", "fsdp")
LOGICAL_AXES = (
    "layers",  # stacked layers of a scan
    "embed",  # model width
    "mlp",  # hidden width of a feed-forward block
    "heads",  # attention heads (queries)
    "head_dim",
    "kv",  # attention heads of keys and values
    "vocab",
    "patch",  # pixels of a patch, flattened
    "code",  # entries or width of a codebook
    "batch",
    "length",  # sequence positions
)


class ShardingError(ValueError):
    """A logical name, a shape, a mesh and a preset that do not fit together."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """Mesh axes of each logical name; a name that is absent is not split. `used`: those of the
    parameters inside a step, which gathers them first; None: as they are stored."""

    params: Mapping[str, tuple[str, ...]]
    activations: Mapping[str, tuple[str, ...]]
    used: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        for table in (self.params, self.activations, self.used or {}):
            unknown = [n for n in table if n not in LOGICAL_AXES]
            unknown += [a for axes in table.values() for a in axes if a not in MESH_AXES]
            if unknown:
                raise ShardingError(f"preset names unknown axes {unknown}")


_BATCH = {"batch": BATCH_AXES}
_TENSOR = {name: ("tensor",) for name in ("mlp", "heads", "kv", "vocab")}
_LENGTH = {"length": ("seq",)}

PRESETS: dict[str, Preset] = {
    # Parameters on every device; only the batch is split.
    "dp": Preset(params={}, activations=_BATCH),
    # Parameters and optimizer state split by width, gathered layer by layer.
    "fsdp": Preset(params={"embed": ("fsdp",)}, activations=_BATCH),
    # ... and heads, hidden and vocabulary dimensions split inside a layer.
    "fsdp_tp": Preset(params={"embed": ("fsdp",), **_TENSOR}, activations={**_BATCH, **_TENSOR}),
    # ... and sequence positions split; parameters use the seq devices as more fsdp.
    "fsdp_sp": Preset(params={"embed": ("fsdp", "seq")}, activations={**_BATCH, **_LENGTH}),
    "fsdp_tp_sp": Preset(
        params={"embed": ("fsdp", "seq"), **_TENSOR},
        activations={**_BATCH, **_TENSOR, **_LENGTH},
    ),
    # State split as by fsdp and fsdp_tp, but gathered once a step: ZeRO-2, arXiv:1910.02054
    "zero": Preset(params={"embed": ("fsdp",)}, activations=_BATCH, used={}),
    "zero_tp": Preset(
        params={"embed": ("fsdp",), **_TENSOR}, activations={**_BATCH, **_TENSOR}, used=_TENSOR
    ),
}


def get_preset(name: str) -> Preset:
    """The preset of this name."""
    if name not in PRESETS:
        raise ShardingError(f"mesh.preset={name!r} is unknown; known: {sorted(PRESETS)}")
    return PRESETS[name]


def check_preset(mesh: Mesh, preset: str) -> None:
    """Refuses a mesh axis that the preset would leave to repeat the same work."""
    rules = get_preset(preset)
    used = set(BATCH_AXES)
    for table in (rules.params, rules.activations):
        used.update(axis for axes in table.values() for axis in axes)
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            raise ShardingError(
                f"mesh.{axis}={size}, but mesh.preset={preset!r} splits nothing over {axis!r}: "
                f"set mesh.{axis}=1 or choose another preset of {sorted(PRESETS)}"
            )


# --- Names to partition specs ---


def partition_spec(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh,
    table: Mapping[str, tuple[str, ...]],
    what: str,
) -> PartitionSpec:
    """The spec of one array; mesh axes of size 1 are left out. `what` names it in errors."""
    if len(names) != len(shape):
        raise ShardingError(
            f"{what}: {len(names)} logical axes {names} for shape {tuple(shape)} of rank "
            f"{len(shape)}"
        )
    spec: list[Any] = []
    taken: set[str] = set()
    for dim, (name, size) in enumerate(zip(names, shape, strict=True)):
        if name is not None and name not in LOGICAL_AXES:
            raise ShardingError(
                f"{what}: dimension {dim} has the unknown logical axis {name!r}; known: "
                f"{', '.join(LOGICAL_AXES)} (lapa_jax/parallel/sharding.py)"
            )
        axes = tuple(
            axis
            for axis in table.get(name, ())
            if mesh.shape.get(axis, 1) > 1 and axis not in taken
        )
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            sizes = ", ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            raise ShardingError(
                f"{what}: dimension {dim} ({name!r}) of shape {tuple(shape)} has size {size}, "
                f"which {sizes} does not divide: change the size, the mesh or mesh.preset"
            )
        taken.update(axes)
        spec.append(None if not axes else axes[0] if len(axes) == 1 else axes)
    return PartitionSpec(*spec)


def tree_shardings(axes_tree: Any, shape_tree: Any, mesh: Mesh, preset: str) -> Any:
    """Shardings of a parameter tree. `axes_tree` holds a tuple of logical names per leaf."""
    return _tree_shardings(axes_tree, shape_tree, mesh, preset, get_preset(preset).params)


def _tree_shardings(
    axes_tree: Any, shape_tree: Any, mesh: Mesh, preset: str, table: Mapping[str, tuple[str, ...]]
) -> Any:
    check_preset(mesh, preset)
    names_of = {
        jax.tree_util.keystr(path): names
        for path, names in jax.tree_util.tree_flatten_with_path(
            axes_tree, is_leaf=lambda x: isinstance(x, tuple)
        )[0]
    }
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shape_tree)
    paths = {jax.tree_util.keystr(path) for path, _ in leaves}
    if paths != set(names_of):
        raise ShardingError(
            f"logical axes and parameters differ: without axes {sorted(paths - set(names_of))}, "
            f"without a parameter {sorted(set(names_of) - paths)}"
        )
    shardings = []
    for path, leaf in leaves:
        key = jax.tree_util.keystr(path)
        spec = partition_spec(names_of[key], leaf.shape, mesh, table, f"parameter {key}")
        shardings.append(NamedSharding(mesh, spec))
    return jax.tree_util.tree_unflatten(treedef, shardings)


def gather(
    params: Any, axes_tree: Any, mesh: Mesh, preset: str, dtype: Any, *, apart: bool = False
) -> Any:
    """The parameters as the layers of a step use them.

    A preset with `used` gathers every array that it splits otherwise in storage, once, and scatters
    its gradient, once. Matrices travel in `dtype`, in which layers multiply by them anyway; the few
    that a model uses in more are rounded to it. Other presets leave it to the compiler, which
    gathers where an array is used: in the backward pass once more. `apart`: layers of a stack one
    by one, for steps that compute them so: else each would be copied out of what was gathered.
    """
    if get_preset(preset).used is None:
        return params

    def one(x: jax.Array, names: tuple, stored: NamedSharding, used: NamedSharding) -> jax.Array:
        if not (apart and names[:1] == ("layers",)) or stored == used:
            return _gather(x, stored, used, dtype)
        stored, used = (NamedSharding(mesh, PartitionSpec(*s.spec[1:])) for s in (stored, used))
        return jnp.stack([_gather(layer, stored, used, dtype) for layer in x])

    stored = tree_shardings(axes_tree, params, mesh, preset)
    used = _tree_shardings(axes_tree, params, mesh, preset, get_preset(preset).used)
    return jax.tree.map(one, params, axes_tree, stored, used)


def _gather(x: jax.Array, stored: NamedSharding, used: NamedSharding, dtype: Any) -> jax.Array:
    if stored == used:
        return x
    moved = dtype if x.ndim >= 2 else x.dtype

    @jax.custom_vjp
    def gathered(x: jax.Array) -> jax.Array:
        # Narrow where it lies, so that the narrow array travels.
        here = jax.lax.with_sharding_constraint(x.astype(moved), stored)
        return jax.lax.with_sharding_constraint(here, used)

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(gradient, stored).astype(x.dtype),)

    gathered.defvjp(lambda x: (gathered(x), None), backward)
    return gathered(x)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, the same on all -> global arrays."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        whole = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


# --- Activations: rules in force while a function is traced ---

_RULES: contextvars.ContextVar[tuple[Mesh, str] | None] = contextvars.ContextVar(
    "mesh_rules", default=None
)


@contextlib.contextmanager
def use_mesh_rules(mesh: Mesh, preset: str) -> Iterator[None]:
    """Puts `constrain` in force. Enter it inside the function to be jitted: see `with_rules`."""
    check_preset(mesh, preset)
    token = _RULES.set((mesh, preset))
    try:
        yield
    finally:
        _RULES.reset(token)


def with_rules(function: Callable, mesh: Mesh, preset: str) -> Callable:
    """`function` with the rules in force whenever it is traced.

    jit does not know the rules, so a function traced without them would be reused with them; a
    wrapped function has its own cache.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with use_mesh_rules(mesh, preset):
            return function(*args, **kwargs)

    return wrapped


def current_rules() -> tuple[Mesh, str] | None:
    """Mesh and preset in force, or None: for attention kernels that need shard_map."""
    return _RULES.get()


GPU = ("gpu", "cuda")  # platforms of live devices, of those described to a compiler ahead of time


def placement() -> tuple[str, int]:
    """(platform, size of the seq axis) of the mesh in force, else of the default backend."""
    rules = _RULES.get()
    if rules is None:
        return jax.default_backend(), 1
    return rules[0].devices.flat[0].platform, rules[0].shape["seq"]


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to split `x` by its logical names; returns `x` itself without rules."""
    rules = _RULES.get()
    if rules is None:
        return x
    mesh, preset = rules
    table = get_preset(preset).activations
    spec = partition_spec(names, x.shape, mesh, table, f"activation {names}")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


# --- Batches ---


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (dimension 0) over ('data', 'fsdp'), everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def abstract_batch(
    spec: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch by shape, with the sharding that `put_batch` gives it."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for key, x in spec.items():
        if x.shape[0] % shards:
            raise ShardingError(
                f"batch[{key!r}] of shape {x.shape} cannot be split over mesh.data="
                f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}: make global_batch a "
                f"multiple of {shards}"
            )
    sharding = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for k, x in spec.items()}


def row_groups(process_of_device: np.ndarray) -> dict[int, tuple[int, int]]:
    """(group, groups) of each process, given the process of each device of a mesh.

    Processes that hold the same rows (tensor or seq axes span them) share a group: they must be fed
    the same rows. Groups are contiguous and equal, or the mesh is refused.
    """
    shards = process_of_device.shape[0] * process_of_device.shape[1]
    by_shard = process_of_device.reshape(shards, -1)
    rows: dict[int, set[int]] = {}
    for shard, processes in enumerate(by_shard):
        for process in processes.tolist():
            rows.setdefault(process, set()).add(shard)
    blocks = sorted({tuple(sorted(held)) for held in rows.values()})
    if [s for block in blocks for s in block] != list(range(shards)) or len(
        {len(block) for block in blocks}
    ) > 1:
        raise ShardingError(
            f"processes hold the batch shards {rows}: they must hold equal contiguous blocks. "
            f"Change the sizes mesh.data, mesh.fsdp, mesh.seq, mesh.tensor"
        )
    return {p: (blocks.index(tuple(sorted(held))), len(blocks)) for p, held in rows.items()}


def loader_shard(mesh: Mesh) -> tuple[int, int]:
    """(host, num_hosts) to give to the data loader of this process."""
    process_of_device = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
    return row_groups(process_of_device)[jax.process_index()]


def put_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host rows of every process -> global arrays split over ('data', 'fsdp')."""
    sharding = batch_sharding(mesh)
    _, groups = loader_shard(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = {}
    for key, value in host_batch.items():
        value = np.asarray(value)
        if value.dtype.kind not in "biufV" or value.dtype.itemsize == 8 and value.dtype.kind != "V":
            raise ShardingError(
                f"batch[{key!r}] has dtype {value.dtype}: devices take numbers of at most 32 bits; "
                f"drop or cast it where the stage prepares its batch"
            )
        if value.ndim == 0 or (value.shape[0] * groups) % shards:
            raise ShardingError(
                f"batch[{key!r}] of shape {value.shape} on each of {groups} loader hosts cannot be "
                f"split over mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}: make "
                f"global_batch a multiple of {shards}"
            )
        shape = (value.shape[0] * groups, *value.shape[1:])
        batch[key] = jax.make_array_from_process_local_data(sharding, value, shape)
    return batch
