"""`lapa train`: THE training loop, for any stage. Reads top to bottom.

The state of a run is its checkpoint (TrainState) and the step; the batch of a step is a pure
function of (seed, step), so a run that was killed continues to bitwise the same result.

Every process of a run executes all of it; only files of the workdir are written by process 0 alone.
"""

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines import loader as loaders
from data_pipelines.checks import statistics
from data_pipelines.loader.mixture import Mixture
from data_pipelines.storage import places
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.evidence.in_training import Evaluation
from lapa_jax.nn import surgery
from lapa_jax.nn.module import flatten
from lapa_jax.parallel import distributed, sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.runs import loaded, start
from lapa_jax.runs import program as programs
from lapa_jax.runs import run as runs
from lapa_jax.training import guard as guards
from lapa_jax.training import heartbeat, memory, profiling
from lapa_jax.training import state as states
from lapa_jax.training.checkpoint import Checkpoints
from lapa_jax.training.goodput import Goodput
from lapa_jax.training.metrics import (
    EVALUATION_FILE,
    Alarms,
    LateMetrics,
    MetricWriter,
    Progress,
    read_metrics,
)
from lapa_jax.training.steps import Best, SavePolicy
from lapa_jax.training.throughput import HINTS, Throughput, starving
from lapa_jax.version import __version__

EXIT_RESTART = 75  # stopped by a signal after saving: the same command continues


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa train",
        description="Train a stage. The same command on the same --workdir continues a run.",
    )
    parser.add_argument("--workdir", required=True, help="directory of the run")
    parser.add_argument(
        "--profile", default="", help="FIRST:END, as 100:105: trace these steps (docs/training.md)"
    )
    distributed.add_flags(parser)
    args, config = configs.parse(parser, argv)
    span = profiling.parse(args.profile)
    distributed.initialize_from(args)
    programs.keep_compiled(places.directory(args.workdir))
    with distributed.leaving_on_error():
        return 0 if train(config, args.workdir, span) else EXIT_RESTART


def train(config: ConfigDict, workdir: str | Path, profile: tuple[int, int] | None = None) -> bool:
    """Trains to `config.steps`; False if a signal stopped it before (after saving).

    `profile`: the first step to trace and the one after the last.
    """
    workdir = places.directory(workdir)
    if places.is_remote(workdir):
        where = places.scratch(workdir)
        logging.info("%s is a URL: TensorBoard files and traces go to %s", workdir, where)
    while (done := _train(config, workdir, profile)) is None:
        logging.warning("%s goes back to its newest checkpoint", workdir)
    return done


def _train(config: ConfigDict, workdir: Path, profile: tuple[int, int] | None) -> bool | None:
    """None: the guard wants to go back."""
    distributed.on_first(lambda: runs.claim(workdir, config))
    first = distributed.is_first()
    goodput = Goodput(workdir, first=first)

    # --- Data and stage -------------------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    host, num_hosts = sharding.loader_shard(mesh)
    stage_class = stages.get(config.stage)
    loader = distributed.together(
        lambda: loaders.Loader(
            config.data,
            fields=stage_class.fields_of(config),
            global_batch=config.global_batch,
            seed=config.seed,
            host=host,
            num_hosts=num_hosts,
            prepare=lambda batch: stage.prepare(batch),
        )
    )
    pretrained = start.find(config.init_from) if config.init_from else None
    assets = _assets(workdir, config, stage_class, loader.mixture, pretrained)
    stage = stage_class(config, assets)

    # --- The step: state and batch by shape, optimizer, shardings --------------------------------
    programs.warn_if_inexact(mesh.devices.flat[0].platform)
    program = programs.build(config, stage, mesh)

    # --- State: restore, or initialise (from another run's parameters where the config asks) ----
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep=config.checkpoint.keep,
        keep_period_steps=config.checkpoint.keep_every_steps or None,
        best=lambda: best.step,
    )
    if checkpoints.latest_step() is not None:
        state, meta = checkpoints.restore(program.state)
        loaders.check_fingerprint(meta["data"], loader.fingerprint(int(state.step)))
        logging.info("%s continues at step %d of %d", workdir, int(state.step), config.steps)
        origins = {key: meta["provenance"].get(key) for key in ("init_from", "frozen_from")}
    else:
        _check_frozen(program, pretrained)
        state = program.init(jax.random.key(config.seed))
        origins = {"init_from": None}
        if pretrained is not None:
            state, report, origins["init_from"] = _start_from(pretrained, state, program)
            distributed.on_first(lambda: runs.write_json(workdir / "init_from.json", report))
        state, origins["frozen_from"] = _adopt_frozen(state, program)
    begin = int(state.step)
    provenance = _provenance(loader.mixture) | origins
    _log_size(state, program)

    # --- Loop -----------------------------------------------------------------------------------
    saving = SavePolicy(
        config.checkpoint.every_steps, config.checkpoint.every_minutes, config.log_every_steps
    )
    evaluation = Evaluation(config, program)
    evaluated, guarded = distributed.from_first(
        lambda: (read_metrics(workdir, EVALUATION_FILE), guards.read(workdir))
    )
    best = Best(
        config.checkpoint.best_metric,
        config.checkpoint.best_is,
        [row for row in evaluated if row["step"] <= begin],
    )
    guard = guards.Guard(guards.GuardConfig(**config.guard), workdir, begin, guarded, first=first)
    profiler = profiling.Profiler(workdir, profile)
    writer = None
    if first:
        everything = configs.to_dict(config)
        writer = MetricWriter(workdir, begin, config=everything, **config.logging)
    progress = Progress(config.steps, begin, name=config.stage)
    throughput = Throughput(program.work)
    alarms = Alarms(stage.alarms | HINTS)
    late = LateMetrics()  # scalars are fetched one step late, so that the device never waits

    def settle(due: list[tuple[int, dict[str, Any]]]) -> None:
        for step, metrics in due:
            if not guard.goes_back:  # else it follows from a step that will not have been
                guard.check(step, metrics)
            if guard.goes_back:
                return
            heartbeat.beat(step)
            if first and (step % config.log_every_steps == 0 or step == config.steps):
                speed = throughput.report()
                writer.write(step, metrics | speed)
                alarms.check(step, metrics | starving(speed))
                progress.update(step, float(metrics["loss"]), speed["examples_per_second"])
                goodput.write(step)

    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoints)
        if first:
            stack.enter_context(writer)
        stack.enter_context(loader)
        stack.callback(evaluation.close)
        stack.callback(progress.close)
        stopped = stack.enter_context(distributed.stop_signal())
        stack.enter_context(profiler.on_signal())
        batches = stack.enter_context(contextlib.closing(loader.iterate(begin)))
        stack.enter_context(distributed.leaving_on_error())  # before anything above is closed

        def fetch() -> dict[str, jax.Array]:
            with throughput.waiting_for_data(), goodput.phase("data"):
                return sharding.put_batch(next(batches), mesh)

        goodput.begin(begin)
        batch = fetch() if begin < config.steps else None
        for step in range(begin + 1, config.steps + 1):
            profiler.before(step, state)
            if step in guard.left_out:
                state, due = program.leave_out(state), late.flush()
            else:
                with goodput.phase("compile" if step == begin + 1 else "step"):
                    state, metrics = program.step(state, batch)
                due = late.push(step, metrics)
            if step < config.steps:
                batch = fetch()  # goes to the devices while they compute this step
            settle(due)  # of the step before, which is counted already
            throughput.step()

            last, interrupted = step == config.steps, stopped()
            evaluates = evaluation.due(step)
            saves = saving.due(step) or last or interrupted
            if saves or evaluates:
                settle(late.flush())  # no state is saved that is not finite
            if guard.goes_back:
                return None
            if evaluates:
                with throughput.paused(), goodput.phase("evaluation"):
                    found = evaluation.run(state)
                if first:
                    writer.write_evaluation(step, found)
                saves |= best.better(step, found)
            if saves:
                meta = {
                    "config": configs.to_dict(config),
                    "data": loader.fingerprint(step),
                    "assets": assets,
                    "provenance": provenance,
                }
                with throughput.paused(), goodput.phase("checkpoint"):
                    if first:
                        writer.sync()  # a run that restarts from here does not write them again
                    checkpoints.save(step, state, meta)
                goodput.write(step, now=True)
            if interrupted and not last:
                logging.warning("stopped by a signal; step %d is being saved", step)
                return False
    if loader.bad_examples:
        logging.warning("undecodable examples that were replaced: %s", loader.bad_examples)
    return True


def _assets(
    workdir: Path,
    config: ConfigDict,
    stage_class: type[stages.Stage],
    mixture: Mixture,
    pretrained: start.Source | None,
) -> dict[str, bytes]:
    """The run's small files: made once, from the data or the run it starts from, then kept."""
    directory = workdir / "assets"
    done = directory / "complete"

    def make() -> None:
        if done.exists():
            return
        places.make(directory)
        made = stage_class.make_assets(
            config,
            inherited=pretrained.assets if pretrained else {},
            instructions=sorted({t for c in mixture.corpora for t in c.index.instructions}),
            action_edges=lambda bins: statistics.quantile_edges(_actions(mixture), bins),
            action_clusters=lambda count: statistics.action_clusters(_actions(mixture), count),
        )
        for name, data in made.items():
            (directory / name).write_bytes(data)
        done.touch()

    def read() -> dict[str, bytes]:
        if not done.exists():
            raise FileNotFoundError(
                f"{done} is not here, though process 0 has made it: --workdir must be on a file "
                f"system that all hosts share"
            )
        return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p != done}

    distributed.on_first(make)
    return distributed.together(read)


def _actions(mixture: Mixture) -> np.ndarray:
    """All actions of a mixture that are known, float32 (N, action_dim)."""
    found = []
    for corpus in mixture.corpora:
        rows = statistics.valid_action_rows(corpus.index)
        found.append(corpus.index.actions[rows[corpus.actions.mask(rows)[:, 0]]])
    return np.concatenate(found)


def _start_from(
    pretrained: start.Source, state: states.TrainState, program: programs.Program
) -> tuple[states.TrainState, dict[str, list[str]], str]:
    """Takes over another run's parameters, read to where they belong; says which were taken,
    dropped and newly initialised, and the hash of the other's parameters."""
    shardings = program.shardings
    where = flatten(shardings.params)
    plan = surgery.plan_swap(pretrained.params, program.state.params)
    logging.info("init_from %s: %s", pretrained.workdir, plan)
    taken, params_hash = pretrained.read({path: where[path] for path in plan.taken})
    key = jax.random.key(state.seed)
    params = surgery.head_swap(plan, taken, program.stage.model, key, where)
    ema = None if state.ema is None else states.first_average(params, program.optimizer)
    opt_state = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)(params)
    state = state.replace(params=params, ema=ema, opt_state=opt_state)
    return state, dataclasses.asdict(plan), params_hash


def _check_frozen(program: programs.Program, pretrained: start.Source | None) -> None:
    """Refuses to freeze parameters that nothing has trained."""
    taken = ()
    if pretrained is not None:
        taken = surgery.plan_swap(pretrained.params, program.state.params).taken
    random = sorted(program.optimizer.frozen - set(taken))
    if random:
        raise ValueError(
            f"optimizer.groups freezes {random[:8]} ({len(random)} in all), which are newly "
            f"initialised and would stay random: set init_from to a run that has them, or let "
            f"them train"
        )


def _adopt_frozen(
    state: states.TrainState, program: programs.Program
) -> tuple[states.TrainState, str | None]:
    """Fills weights that stay as another run trained them, and gives the hash of its parameters.

    Only a fresh run needs them: from then on they are in its checkpoints.
    """
    stage = program.stage
    source = stage.frozen_from()
    if source is None:
        return state, None
    key, workdir = source
    try:
        run = loaded.load(workdir)
        variables = stage.adopt(state.variables, run.config, run.params)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{key}={workdir!r}: {error}") from error
    logging.info("%s %s: step %d, parameters %s", key, workdir, run.step, run.params_hash)
    variables = sharding.place(variables, program.shardings.variables)
    return state.replace(variables=variables), run.params_hash


def _provenance(mixture: Mixture) -> dict[str, Any]:
    return {
        "code_version": __version__,
        "corpora": {c.name: c.index.hash for c in mixture.corpora},
        "label_sets": {c.name: c.labels.provenance for c in mixture.corpora if c.labels},
        "image_token_sets": {c.name: c.tokens[0].provenance for c in mixture.corpora if c.tokens},
    }


def _log_size(state: states.TrainState, program: programs.Program) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    held = memory.held_bytes(state.params, program.optimizer, ema=state.ema is not None)
    gib = ", ".join(f"{name} {size / 2**30:.3g} GiB" for name, size in held.items())
    mesh = dict(program.mesh.shape)
    logging.info("%.2f M parameters, mesh %s, preset %s", count / 1e6, mesh, program.preset)
    logging.info("over all devices: %s\n%s", gib, program.optimizer.table(state.params))
