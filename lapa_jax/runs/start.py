"""The start of a training: the run's data, stage and small files, and where its first parameters
come from. Nothing is written to its directory before all of that is there.
"""

import argparse
import base64
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import loader as loaders
from data_pipelines.loader.mixture import Mixture
from data_pipelines.storage import places
from lapa_jax import config as configs
from lapa_jax import settings, stages
from lapa_jax.nn import int8, lora, surgery
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.parallel import distributed, sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.runs import run as runs
from lapa_jax.runs.attempt import LOCK_FILE, Attempt, note_failure
from lapa_jax.runs.loaded import Model, averages, digest, load, newest_meta, open_checkpoints
from lapa_jax.runs.program import Program
from lapa_jax.runs.sources import OfCorpora, control_hz
from lapa_jax.runs.usable import usable
from lapa_jax.stages.stage import frozen_source, with_borrowed
from lapa_jax.training import checkpoint
from lapa_jax.training import state as states
from lapa_jax.training.optimizer import make_schedule
from lapa_jax.version import __version__

SEE_SECONDS = 20  # in which a file that another machine wrote must be there


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that is about to train: its directory may be this config's, its data are open."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    loader: loaders.Loader
    stage: stages.Stage
    assets: dict[str, bytes]
    source: "Source | None"  # what config.init_from names
    continues: bool  # it has steps already
    extend: bool  # to other `steps`, where that changes the schedule


def initialize(args: argparse.Namespace) -> None:
    """`distributed.initialize_from`; an error or a stop is noted in the run's directory."""
    try:
        distributed.initialize_from(args)
    except (Exception, KeyboardInterrupt) as error:
        note_failure(args.workdir, error)
        raise


def attempt(workdir: str | Path) -> Attempt:
    """One attempt at a run, on every process. Raises LockedError where another one trains there."""
    return distributed.together(lambda: Attempt(workdir, first=distributed.is_first()))


def open_run(config: ConfigDict, workdir: str | Path, *, extend: bool = False) -> Opened:
    """Opens the data, and makes the run's small files or takes them from its newest checkpoint.
    Writes nothing: what fails here leaves the directory as it was.

    Raises ValueError where the directory is another config's run, and where processes of one run
    have other configs, code or data.
    """
    distributed.together(lambda: settings.check(config))
    told = {"code version": __version__, "--extend": extend}
    distributed.agree("command and code", configs.flatten(configs.to_dict(config)) | told)
    workdir = places.directory(workdir)
    distributed.together(lambda: _check_shared(workdir))
    if places.is_remote(workdir):
        where = places.scratch(workdir)
        logging.info("%s is a URL: TensorBoard files and traces go to %s", workdir, where)
    with distributed.uninterrupted():
        saved = newest_meta(workdir)
        source = find(config.init_from) if config.init_from else None
    if saved is not None:
        runs.check_step(workdir / "checkpoints" / str(saved["step"]), saved, config)
    mesh = make_mesh(config.mesh)
    host, num_hosts = sharding.loader_shard(mesh)
    stage_class = stages.get(config.stage)
    fields = stage_class.fields_of(config)
    mixture = distributed.together(lambda: loaders.open_mixture(config.data, fields))
    if source is not None:
        _check_source(config, source)
    inherited = source.assets if source else {}

    def made(mixture: Mixture) -> dict[str, bytes]:
        return _sent_by_first(
            lambda: stage_class.make_assets(config, OfCorpora(mixture, inherited))
        )

    if saved is not None:
        assets = saved["assets"]
        distributed.on_first(lambda: runs.check_assets(workdir, assets))
    else:
        assets = made(mixture)
    with distributed.uninterrupted():
        stage = stages.build(config, assets)
    used = distributed.together(lambda: usable(mixture, stage))
    if saved is None and used is not mixture:  # what is left out takes no part in them
        assets = made(used)
        with distributed.uninterrupted():
            stage = stages.build(config, assets)
    loader = distributed.together(
        lambda: loaders.Loader(
            config.data,
            fields=fields,
            global_batch=config.global_batch,
            seed=config.seed,
            host=host,
            num_hosts=num_hosts,
            prepare=stage.prepare,
            mixture=used,
        )
    )
    distributed.agree("data, in their copies", loader.fingerprint(0))
    return Opened(config, workdir, mesh, loader, stage, assets, source, saved is not None, extend)


def _check_shared(workdir: Path) -> None:
    """Raises FileNotFoundError on a process that does not see the directory of process 0, which
    holds its lock: no checkpoint would ever be whole, and saving would wait for ever."""
    for _ in range(SEE_SECONDS):
        if distributed.is_first() or (workdir / LOCK_FILE).exists():
            return
        time.sleep(1.0)
    raise FileNotFoundError(
        f"{workdir} on this machine is not the directory that process 0 writes to ({LOCK_FILE} is "
        f"not there): --workdir must be on a file system that all processes share, or in a bucket"
    )


def stage_for(config: ConfigDict, mixture: Mixture, workdir: str | None = None) -> stages.Stage:
    """The stage of the run in `workdir`, or the one that a new run of this config would have."""
    saved = newest_meta(places.directory(workdir)) if workdir else None
    if saved is not None:
        return stages.build(config, saved["assets"])
    inherited = find(config.init_from).assets if config.init_from else {}
    made = stages.get(config.stage).make_assets(config, OfCorpora(mixture, inherited))
    return stages.build(config, made)


def _sent_by_first(make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """The files that process 0 makes, in every process."""
    text = distributed.from_first(
        lambda: {name: base64.b64encode(data).decode() for name, data in make().items()}
    )
    return {name: base64.b64decode(data) for name, data in text.items()}


def first_state(
    run: Opened, program: Program, checkpoints: checkpoint.Checkpoints
) -> tuple[states.TrainState, dict[str, Any]]:
    """(the state to train on from, provenance): of the run's newest checkpoint; else freshly drawn,
    with the parameters of `init_from` and frozen weights taken over from where the config says.
    With its state a run has all that it needs: only now its directory is claimed."""
    mixture = run.loader.mixture
    provenance = {
        "code_version": __version__,
        "corpora": {c.name: c.index.hash for c in mixture.corpora},
        "label_sets": {c.name: c.labels.provenance for c in mixture.corpora if c.labels},
        "image_token_sets": {c.name: c.tokens[0].provenance for c in mixture.corpora if c.tokens},
    }
    if run.stage.acts:
        provenance["control_hz"] = control_hz(mixture)
    report = None
    if run.continues:
        state, meta = checkpoints.restore(program.state)
        step = int(state.step)
        runs.check_step(checkpoints.directory / str(step), meta, run.config, run.assets)
        _check_steps(run, meta["config"], step)
        loaders.check_fingerprint(meta["data"], run.loader.fingerprint(step))
        logging.info("%s continues at step %d of %d", run.workdir, step, run.config.steps)
        provenance |= {key: meta["provenance"].get(key) for key in ("init_from", "frozen_from")}
        began = provenance["init_from"]
        if run.source is not None and began not in (None, run.source.params_hash):
            logging.warning(
                "init_from %s holds other parameters (%s) than this run began with (%s): it was "
                "trained on, or replaced. The run goes on from its own; to begin with the new "
                "ones, take another --workdir",
                *(run.source.workdir, run.source.params_hash, began),
            )
    else:
        _check_frozen(program, run.source)
        key = jax.random.key(run.config.seed)
        provenance["init_from"] = None
        if run.source is None:
            state = program.init(key)
        else:
            state, report, provenance["init_from"] = _start_from(run.source, key, program)
        state, provenance["frozen_from"] = _adopt_frozen(state, program)
    origin = {key: provenance[key] for key in ("init_from", "frozen_from")}
    distributed.agree("parameters (by hash) to start from", origin)
    _log_size(state, program)
    distributed.on_first(lambda: runs.write(run.workdir, run.config, run.assets, report))
    return state, provenance


def _check_steps(run: Opened, there: dict[str, Any], step: int) -> None:
    """Refuses other `steps` than the checkpoint `there` was saved with, unless the learning rate of
    its steps is that of a run of so many, or the user knows that it is not."""
    before, steps = there["steps"], run.config.steps
    if steps == before:
        return
    if steps < step:
        raise ValueError(f"{run.workdir} has done {step} steps; config.steps={steps} is less")
    settings, done = run.config.optimizer.to_dict(), jnp.arange(step + 1)
    rates = [np.asarray(make_schedule(settings, n)(done) + 0.0 * done) for n in (before, steps)]
    if not np.array_equal(rates[0][:step], rates[1][:step]) and not run.extend:
        raise ValueError(
            f"{run.workdir} has done {step} steps of {before}; config.steps={steps} gives another "
            f"learning rate, by optimizer.schedule={run.config.optimizer.schedule!r}: of the last "
            f"of them {rates[1][step - 1]:.3g} instead of {rates[0][step - 1]:.3g}. `lapa train "
            f"--extend` goes on with the new one, at {rates[1][step]:.3g}, which is no run of "
            f"{steps} steps from the start"
        )
    logging.info(
        "%s goes on to %d steps instead of %d, with a learning rate of %.3g at first",
        *(run.workdir, steps, before, rates[1][step]),
    )


def _check_source(config: ConfigDict, source: "Source") -> None:
    """Refuses to start from a run of another kind of stage."""
    kind = stages.get(config.stage)
    if stages.get(source.stage) is not kind:
        right = [name for name, one in stages.STAGES.items() if one is kind]
        raise ValueError(
            f"init_from={config.init_from!r} is a run of stage {source.stage!r}; a run of stage "
            f"{config.stage!r} starts from one of {' or '.join(map(repr, right))}"
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained run to start from, of whose arrays nothing has been read yet."""

    workdir: Path
    stage: str
    assets: dict[str, bytes]
    params: dict[str, Any]  # abstract; as `Model.params`
    params_hash: str  # of all parameters
    merged: Model | None  # with LoRA or int8: read whole, since its kernels must be computed

    def read(self, shardings: dict[str, Any]) -> dict[str, jax.Array]:
        """{path: parameter} of the paths in `shardings`, each read to where it says and nowhere
        else. Every process must call it."""
        if self.merged is not None:
            flat = flatten(self.merged.params)
            return sharding.place({path: flat[path] for path in shardings}, shardings)
        directory, meta = open_checkpoints(self.workdir)
        loaded = checkpoint.load_params(
            directory, ema=averages(meta), shardings=unflatten(shardings)
        )
        return flatten(loaded.params)


def find(workdir: str | Path) -> Source:
    """The run in a directory, to start from: every parameter may then be read to other devices.

    Raises FileNotFoundError when the directory holds no checkpoint.
    """
    directory, meta = open_checkpoints(workdir)
    records = checkpoint.load_params(directory, ema=averages(meta), shardings={}).records
    params = unflatten(
        {
            path: jax.ShapeDtypeStruct(tuple(r["shape"]), np.dtype(r["dtype"]))
            for path, r in records.items()
        }
    )
    merged = load(workdir) if lora.is_adapted(params) or int8.scales(params) else None
    return Source(
        workdir=places.directory(workdir),
        stage=meta["config"]["stage"],
        assets=meta["assets"],
        params=params if merged is None else jax.eval_shape(lambda: merged.params),
        params_hash=digest(records) if merged is None else merged.params_hash,
        merged=merged,
    )


def _plan(source: Source, program: Program) -> surgery.SwapReport:
    held = program.stage.model.held
    return surgery.plan_swap(source.params, program.state.params, held=held)


def _start_from(
    source: Source, key: jax.Array, program: Program
) -> tuple[states.TrainState, dict[str, list[str]], str]:
    """The first state with another run's parameters, read to where they belong; which were taken,
    dropped and newly initialised; the hash of the other's parameters."""
    shardings, wanted = program.shardings, flatten(program.state.params)
    where = flatten(shardings.params)
    plan = _plan(source, program)
    logging.info("init_from %s: %s", source.workdir, plan)
    as_they_are = [path for path in plan.taken if path not in plan.held]
    taken = source.read({path: where[path] for path in as_they_are})
    errors = {}
    for path in plan.held:  # one at a time: in more bits they may not fit
        found = source.read({path: where[path]})
        held, errors[path] = surgery.hold(path, found.pop(path), wanted, where)
        taken |= held
    if errors:
        worst = max(errors, key=errors.get)
        logging.info(
            "%d parameters are held as %s: off by %.2g of their RMS on average, %.2g at most (%s)",
            *(len(errors), program.stage.config.model.base_dtype),
            *(sum(errors.values()) / len(errors), errors[worst], worst),
        )
    params = surgery.head_swap(plan, taken, program.stage.model, key, where)
    ema = None
    if program.state.ema is not None:
        ema = states.first_average(params, program.optimizer)
    opt_state = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)(params)
    state = program.beside(key).replace(params=params, ema=ema, opt_state=opt_state)
    report = dataclasses.asdict(plan)
    if not plan.held:
        del report["held"]  # as of runs that were before it
    return state, report, source.params_hash


def _check_frozen(program: Program, source: Source | None) -> None:
    """Refuses to freeze parameters that nothing has trained."""
    taken = set()
    if source is not None:
        plan = _plan(source, program)
        taken = {*plan.taken, *(path + int8.SCALE for path in plan.held)}
    random = sorted(program.optimizer.frozen - taken)
    if random:
        raise ValueError(
            f"optimizer.groups freezes {random[:8]} ({len(random)} in all), which are newly "
            f"initialised and would stay random: set init_from to a run that has them, or let "
            f"them train"
        )


def _adopt_frozen(
    state: states.TrainState, program: Program
) -> tuple[states.TrainState, str | None]:
    """Fills weights that stay as other runs trained them, and gives the hash of a run's parameters,
    of several joined by "+".

    Only a fresh run needs them: from then on they are in its checkpoints.
    """
    variables, hashes = state.variables, []
    for borrowed in program.stage.borrowed:
        key, workdir = frozen_source(borrowed)
        try:
            run = load(workdir)
            given = run.config, run.params, run.variables
            variables = with_borrowed(borrowed, variables, *given)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{key}={workdir!r}: {error}") from error
        logging.info("%s %s: step %d, parameters %s", key, workdir, run.step, run.params_hash)
        hashes.append(run.params_hash)
    if not hashes:
        return state, None
    variables = sharding.place(variables, program.shardings.variables)
    return state.replace(variables=variables), "+".join(hashes)


def _log_size(state: states.TrainState, program: Program) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    held = states.held_bytes(state.params, program.optimizer, ema=state.ema is not None)
    gib = ", ".join(f"{name} {size / 2**30:.3g} GiB" for name, size in held.items())
    mesh = dict(program.mesh.shape)
    logging.info("%.2f M parameters, mesh %s, preset %s", count / 1e6, mesh, program.preset)
    logging.info("over all devices: %s\n%s", gib, program.optimizer.table(state.params))
