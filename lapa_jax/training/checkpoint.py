"""Checkpoints: DIRECTORY/<step>/{params, ema, variables, state, meta}, self-contained and checked.

The only file that imports Orbax: its v0 CheckpointManager, which is complete (v1 is still under
`experimental`, and the two read each other's JSON items no more). Orbax commits a step by an atomic
rename, but restores flipped bytes and other dtypes in silence: `meta` holds a checksum, dtype and
shape of every array, and nothing is returned that does not match them.

Under several processes all of them make every call here, on one file system, and agree on its
outcome: each reads by itself what its devices hold, tells whether it could, and all take the same
step. Process 0 alone renames and removes.
"""

import dataclasses
import errno
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from data_pipelines.storage import places
from lapa_jax.parallel.trees import unflatten
from lapa_jax.training import checksum, sound
from lapa_jax.training.manifest import (
    ITEMS,
    ArrayPaths,
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointSaveError,
    Records,
    check_same,
    decode_meta,
    encode_meta,
    is_key,
    join_items,
    paths_of,
    split_items,
    storable,
    stored_path,
)
from lapa_jax.training.sound import list_steps
from lapa_jax.training.state import TrainState

# A chunk is compressed as a whole, and a data file written when it is full: what is encoded and not
# yet written is held in memory.
CHUNK_BYTES, DATA_FILE_BYTES = 64 * 2**20, 256 * 2**20
BATCH_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What inference needs; `params` and `variables` are nested dicts of arrays."""

    step: int
    params: dict
    variables: dict
    meta: dict
    records: dict[str, dict]  # of all parameters that there are, read or not


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask for itself whether to stop: `distributed.stop_signal` counts."""

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Which steps stay: the newest, those of a period, and the best."""

    newest: int
    period_steps: int | None
    best: Callable[[], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        best, count = self.best(), len(checkpoints)
        return [
            i >= count - self.newest
            or bool(self.period_steps and one.step % self.period_steps == 0)
            or one.step == best
            for i, one in enumerate(checkpoints)
        ]


class Checkpoints:
    """Saves and restores the steps of one run; the directory has one writer, which may be a run of
    several processes."""

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 3,
        keep_period_steps: int | None = None,
        best: Callable[[], int | None] = lambda: None,
        largest_bytes: int | None = None,
    ):
        """`keep`: the newest; besides, those that `keep_period_steps` divides and the one that
        `best` tells. `largest_bytes`: of any array that will be saved. With it, little more than
        that is in memory of what is being written; without, as much as the disk lags behind."""
        if keep < 1:
            raise ValueError(f"keep={keep} checkpoints: at least 1")
        self.directory = places.absolute(directory)
        self.damaged: list[tuple[int, str]] = []  # (step, reason) met by restore
        self._pending: int | None = None  # the step being saved
        self._failed: list[int] = []  # steps whose saving raised
        self._manager = _Manager(
            self.directory,
            item_handlers=None if largest_bytes is None else _thrifty_handlers(largest_bytes),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Kept(keep, keep_period_steps, best),
                # What a killed run left half written; this directory has one writer.
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- Saving ---

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Returns when `state` may be donated; writing goes on in the background.

        `meta` is JSON, with bytes allowed under meta["assets"] (tokenizer, action bins). An error
        while writing is raised by the next save, wait, check or close.
        """
        self.wait()
        if step != int(state.step):
            raise ValueError(f"step={step}, but the state is after step {int(state.step)}")
        newest = self.latest_step()
        if newest is not None and newest >= step:
            raise ValueError(f"cannot save step {step}: {self.directory} already holds {newest}")
        originals = split_items(state)
        items = {
            name: {path: storable(f"{name}/{path}", x) for path, x in arrays.items()}
            for name, arrays in originals.items()
        }
        document = encode_meta(step, meta, originals, items)
        chunks = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
        args = {
            name: ocp.args.PyTreeSave(
                unflatten(arrays),
                save_args=unflatten(dict.fromkeys(arrays, chunks)),
                ocdbt_target_data_file_size=DATA_FILE_BYTES,
            )
            for name, arrays in items.items()
        }
        if self._failed:
            self._manager.reload()  # it counts the failed step, and would keep old ones for it
        self._pending = step
        try:
            saved = self._manager.save(
                step, args=ocp.args.Composite(meta=ocp.args.JsonSave(document), **args)
            )
        except Exception as error:
            raise self._save_error(error) from error
        if not saved:
            self._pending = None
            raise CheckpointSaveError(f"step {step} was not saved to {self.directory}")

    def check(self) -> None:
        """Raises the error of a background save, if there is one. Costs nothing."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._save_error(error) from error

    def wait(self) -> None:
        """Blocks until the step being saved is on disk, or raises why it is not."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error
        self._pending = None

    def close(self) -> None:
        """Waits, releases the writer threads, and removes what failed saves have left."""
        told, error = list(self._failed), None
        for finish in (self.wait, self._manager.close):
            try:
                finish()
            except Exception as e:
                logging.error("closing %s: %s", self.directory, e)
                error = error or e
        # Only now: threads of a failed save may write on for a while after the error.
        for step in self._failed if jax.process_index() == 0 else ():
            for leftover in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                try:
                    shutil.rmtree(leftover)
                except OSError as e:
                    logging.warning("%s stays: %s", leftover, e)
        if error is not None and not told:
            raise error

    def _save_error(self, error: Exception) -> CheckpointSaveError:
        step, self._pending = self._pending, None
        if step is not None:
            self._failed.append(step)
        reason = "the disk is full" if _is_disk_full(error) else type(error).__name__
        return CheckpointSaveError(
            f"saving {'a step' if step is None else f'step {step}'} to {self.directory} failed: "
            f"{reason} ({error}). Complete steps there: {list_steps(self.directory)}. Free space "
            f"or repair the disk, then restart: the run continues from the newest of them"
        )

    # --- Restoring ---

    def steps(self) -> list[int]:
        """Complete steps, oldest first."""
        return list_steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest step; None only where nothing was ever saved."""
        return latest_step(self.directory)

    def restore(
        self, abstract_state: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict]:
        """State and meta of the newest step whose checksums verify, or of exactly `step`.

        `abstract_state`: arrays or ShapeDtypeStructs, whose shardings (any mesh) the result has.
        Damaged steps newer than the one used are renamed aside, so that training can save them
        again. Names, shapes or dtypes that differ are an error, never a reason to fall back.
        """
        wanted = split_items(abstract_state)

        def read(step: int) -> _Step:
            meta, records = _read_meta(self.directory, step)
            check_same(records, wanted, f"{self.directory}/{step}")
            return _read_items(self.directory, step, meta, records, wanted)

        found, self.damaged = sound.newest_sound(self.directory, step, read, _verify)
        for number, _ in self.damaged:
            sound.quarantine(self.directory, number)
        if self.damaged:
            self._manager.reload()
        return join_items(abstract_state, found.items), found.meta


def latest_step(directory: Path) -> int | None:
    """The newest complete step; None only where nothing was ever saved."""
    saved = list_steps(directory)
    if saved:
        return saved[-1]
    damaged = sorted(path.name for path in directory.glob("*.damaged*"))
    if damaged:
        raise CheckpointDamagedError(
            f"{directory} holds only damaged steps {damaged}: repair or move them away; "
            f"a run does not start from zero over them"
        )
    return None


def load_meta(directory: str | Path, step: int | None = None) -> dict:
    """Meta of a step (default: the newest), with assets as bytes; reads no arrays."""
    return load_params(directory, step, shardings={}).meta


def load_params(
    directory: str | Path,
    step: int | None = None,
    *,
    ema: bool = False,
    shardings: Mapping[str, Any] | jax.sharding.Sharding | None = None,
) -> LoadedModel:
    """Parameters and variables for inference, checked, without the tree being known beforehand.

    NumPy arrays; with one sharding everything is on its devices; with a sharding per parameter
    (nested as they are) those parameters and nothing else are read. Nothing is held twice, and the
    log lists what was taken from where and what was left. ema=True takes the averaged parameters;
    frozen ones have no average and are taken as they are. Changes nothing on disk; a damaged newest
    step is passed over loudly.
    """
    directory = places.absolute(directory)
    everywhere = shardings if isinstance(shardings, jax.sharding.Sharding) else None
    placed = None if shardings is None or everywhere else paths_of(shardings)

    def read(step: int) -> _Step:
        meta, records = _read_meta(directory, step)
        sources = _parameters(records, ema, f"{directory}/{step}")
        of_path = {path: (item, r) for item, rs in sources.items() for path, r in rs.items()}
        if placed is not None:
            unknown = sorted(placed.keys() - of_path.keys())
            if unknown:
                raise CheckpointMismatchError(f"{directory}/{step} has no parameters {unknown}")
        elif "variables" in records:
            sources["variables"] = records["variables"]
        wanted: dict[str, ArrayPaths] = {}
        for item, rs in sources.items():
            for path, record in rs.items():  # in this order on all processes
                if placed is None or path in placed:
                    where = everywhere if placed is None else placed[path]
                    wanted.setdefault(item, {})[path] = where and _abstract(record, where)
        return _read_items(directory, step, meta, records, wanted)

    found, _ = sound.newest_sound(directory, step, read, _verify)
    if found.items:
        _tell_parts(f"{directory}/{found.step}", found)
    items = found.items
    averaged = items.pop("ema", {})
    sources = _parameters(found.records, ema, "")
    return LoadedModel(
        step=found.step,
        params=unflatten(items.pop("params", {}) | averaged),
        variables=unflatten(items.get("variables", {})),
        meta=found.meta,
        records={path: r for rs in sources.values() for path, r in rs.items()},
    )


def _parameters(records: Records, ema: bool, where: str) -> Records:
    """Records of the parameters, by the item that they are taken from."""
    source = "ema" if ema else "params"
    if source not in records:
        raise CheckpointMismatchError(
            f"{where} holds no {source}: it has {sorted(records)}"
            + ("; the run had optimizer.ema_decay=0" if ema else "")
        )
    sources = {source: records[source]}
    if ema:
        others = {p: r for p, r in records["params"].items() if p not in records["ema"]}
        sources |= {"params": others} if others else {}
    return sources


def _tell_parts(where: str, read: "_Step") -> None:
    """Logs which arrays of a step were read, and which were left."""
    taken = {item: len(arrays) for item, arrays in read.items.items() if arrays}
    left = {item: len(rs) - taken.get(item, 0) for item, rs in read.records.items()}
    told = [", ".join(f"{n} of {item}" for item, n in x.items() if n) for x in (taken, left)]
    logging.info("%s: arrays read: %s; left: %s", where, *(x or "none" for x in told))


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


# --- Reading ---


@dataclasses.dataclass(frozen=True)
class _Step:
    """What was read of a step, and what it should be."""

    step: int
    meta: dict
    items: dict[str, ArrayPaths]
    records: Records


def _read_meta(directory: Path, step: int) -> tuple[dict, Records]:
    handler = ocp.JsonCheckpointHandler()
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
        meta, records = decode_meta(reader.restore(directory / str(step) / "meta"))
    if meta["step"] != step:
        raise CheckpointDamagedError(f"the directory {step} holds step {meta['step']}")
    return meta, records


def _read_items(
    directory: Path,
    step: int,
    meta: dict,
    records: Records,
    wanted: Mapping[str, ArrayPaths],
) -> _Step:
    """Arrays placed as `wanted` says (None: NumPy); what this process holds of them."""
    found: dict[str, ArrayPaths] = {name: {} for name in wanted}
    batches = [
        (name, {path: wanted[name][path] for path in paths})
        for name in wanted
        for paths in _batches({path: records[name][path] for path in wanted[name]})
    ]
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
        for name, arrays in batches:
            new = {path for path in arrays if records[name][path].get("zeros")}
            found[name] |= {p: _zeros(records[name][p], arrays.pop(p)) for p in new}
            stored = {stored_path(records[name][path]): path for path in arrays}
            tree = reader.restore(
                directory / str(step) / name,
                args=ocp.args.PyTreeRestore(
                    item=unflatten(dict.fromkeys(stored, 0)),
                    restore_args=unflatten({p: _restore_args(arrays[stored[p]]) for p in stored}),
                    partial_restore=True,
                ),
            )
            # Else copies to the device add up, whose memory nothing counts.
            read = paths_of(jax.block_until_ready(tree))
            found[name] |= {path: read[p] for p, path in stored.items()}
    return _Step(step, meta, found, records)


def _verify(read: _Step) -> None:
    """Compares arrays with their records, and makes keys of what were keys."""
    checksums = checksum.of_items(read.items)
    for name, arrays in read.items.items():
        for path, x in arrays.items():
            record = read.records[name][path]
            if record.get("zeros"):
                continue
            where = f"{name}/{path}"
            if checksums[name][path] != record["checksum"]:
                raise CheckpointDamagedError(f"checksum of {where} differs")
            if record.get("key_impl"):
                x = arrays[path] = jax.random.wrap_key_data(x, impl=record["key_impl"])
            if str(x.dtype) != record["dtype"] or x.shape != tuple(record["shape"]):
                raise CheckpointDamagedError(
                    f"{where} reads as {x.dtype}{list(x.shape)}, "
                    f"saved as {record['dtype']}{record['shape']}"
                )


def _zeros(record: Mapping[str, Any], wanted: Any) -> Any:
    """An array that the format of the step did not have."""
    x = np.zeros(record["shape"], record["dtype"])
    if wanted is None:
        return x
    return jax.make_array_from_callback(x.shape, wanted.sharding, lambda index: x[index])


def _alone() -> ocp.options.MultiprocessingOptions:
    """For a reader that waits for no other process: one that cannot read must not stop all."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _batches(records: Mapping[str, dict]) -> Iterator[list[str]]:
    """Paths in batches of BATCH_BYTES, or of one array that is larger: what is read at once is in
    memory twice."""
    batch, held = [], 0
    for path, record in records.items():
        size = 0 if record.get("key_impl") else np.dtype(record["dtype"]).itemsize
        size *= math.prod(record["shape"])
        if batch and held + size > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch, held = [*batch, path], held + size
    if batch:
        yield batch


def _thrifty_handlers(largest_bytes: int) -> dict[str, ocp.CheckpointHandler]:
    limit = largest_bytes // 10**9 + 1  # Orbax refuses arrays that do not stay below it
    arrays = ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit)
    return {"meta": ocp.JsonCheckpointHandler()} | dict.fromkeys([*ITEMS, "state"], arrays)


def _abstract(record: Mapping[str, Any], sharding: Any) -> jax.ShapeDtypeStruct:
    shape, dtype = tuple(record["shape"]), np.dtype(record["dtype"])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _restore_args(x: Any) -> ocp.RestoreArgs:
    if x is None:  # as NumPy
        return ocp.RestoreArgs(restore_type=np.ndarray)
    shape = jax.eval_shape(jax.random.key_data, x).shape if is_key(x) else x.shape
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(x, "sharding", None) or here
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape)
