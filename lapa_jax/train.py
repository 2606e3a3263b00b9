"""`lapa train`: THE training loop, for any stage. Reads top to bottom.

The state of a run is its checkpoint (TrainState) and the step; the batch of a step is a pure
function of (seed, step), so a run that was killed continues to bitwise the same result.

Every process of a run executes all of it; only files of the workdir are written by process 0 alone.
"""

import argparse
import contextlib
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax.evidence.in_training import Evaluation
from lapa_jax.parallel import distributed
from lapa_jax.runs import program as programs
from lapa_jax.runs import start
from lapa_jax.training.saves import Keeper
from lapa_jax.training.session import EXIT_RESTART, Clock, Session, parse_profile, tell_end


def parse(argv: list[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """The flags and the config of a command; exits with usage where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="lapa train",
        description="Train a stage. The same command on the same --workdir continues a run.",
    )
    parser.add_argument("--workdir", required=True, help="directory of the run")
    parser.add_argument(
        "--profile", default="", help="FIRST:END, as 100:105: trace these steps (docs/training.md)"
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on to another config.steps though the learning rate so far was for the old",
    )
    distributed.add_flags(parser)
    return configs.parse(parser, argv)


def main(argv: list[str]) -> int:
    args, config = parse(argv)
    span = parse_profile(args.profile)
    done = False
    with distributed.stopped_at_once():
        start.initialize(args)
        programs.keep_compiled(args.workdir)
        with distributed.leaving_on_error():
            done = train(config, args.workdir, span, extend=args.extend)
    with distributed.leaving_on_error():
        tell_end(args.workdir, config, done)
        return 0 if done else EXIT_RESTART


def train(
    config: ConfigDict,
    workdir: str | Path,
    profile: tuple[int, int] | None = None,
    *,
    extend: bool = False,
) -> bool:
    """Trains to `config.steps`; False if a signal stopped it before (after saving, where there was
    a step to save).

    `profile`: the first step to trace and the one after the last. `extend`: to other `steps` than
    those of a run that goes on, though its learning rate so far depended on them. Raises
    LockedError where another process trains there.
    """
    config = configs.today(config)
    done = None
    with start.attempt(workdir) as attempt:
        with distributed.stopped_at_once():
            while (done := _train(config, workdir, attempt, profile, extend)) is None:
                logging.warning("%s goes back to its newest checkpoint", workdir)
        attempt.end("finished" if done else "stopped")
    return bool(done)


def _train(
    config: ConfigDict,
    workdir: str | Path,
    attempt: start.Attempt,
    profile: tuple[int, int] | None,
    extend: bool,
) -> bool | None:
    """None: the guard wants to go back."""
    # --- Data and stage; the step, with state and batch by shape --------------------------------
    clock = Clock(workdir, first=distributed.is_first())
    run = start.open_run(config, workdir, extend=extend)
    with distributed.uninterrupted():
        programs.warn_if_inexact(run.mesh.devices.flat[0].platform)
        program = programs.build(config, run.stage, run.mesh)

        # --- State: restore, or initialise (from another run where the config asks) -------------
        plain = configs.to_dict(config)
        keeper = Keeper(run.workdir, plain)
        evaluation = Evaluation(config, program, run.loader.mixture)
        state, provenance = start.first_state(run, program, keeper.checkpoints)
        begin = int(state.step)
        keeper.begin(begin, assets=run.assets, provenance=provenance)
        guard = keeper.guard
        session = Session(
            run.workdir,
            plain,
            begin,
            clock=clock,
            guard=guard,
            work=program.work,
            alarms=run.stage.alarms,
            profile=profile,
        )

    # --- Loop -----------------------------------------------------------------------------------
    with contextlib.ExitStack() as stack:
        for part in (keeper.checkpoints, run.loader, contextlib.closing(evaluation), session):
            stack.enter_context(part)
        stopped = stack.enter_context(distributed.stop_signal())
        batches = stack.enter_context(contextlib.closing(run.loader.iterate(begin)))
        stack.enter_context(distributed.leaving_on_error())  # before anything above is closed

        def fetch() -> dict[str, jax.Array]:
            with clock.phase("data"):
                return program.put(next(batches))

        batch = fetch() if begin < config.steps else None
        for step in range(begin + 1, config.steps + 1):
            session.profiler.before(step, state)
            if step in guard.left_out:
                state, due = program.leave_out(state), session.late.flush()
            else:
                with clock.phase("compile" if step == begin + 1 else "step"):
                    state, metrics = program.step(state, batch)
                due = session.late.push(step, metrics)
            if step < config.steps:
                batch = fetch()  # goes to the devices while they compute this step
            session.tell(due)  # of the step before, which is counted already
            clock.step()

            last, interrupted = step == config.steps, stopped()
            evaluates = evaluation.due(step)
            saves = keeper.due(step) or last or interrupted
            if saves or evaluates:
                session.tell(session.late.flush())  # no state is saved that is not finite
            if guard.goes_back:
                return None
            if evaluates:
                with clock.phase("evaluation"):
                    found = evaluation.run(state)
                session.tell_evaluation(step, found)
                saves |= keeper.best.better(step, found)
            if saves:
                with clock.phase("checkpoint"):
                    distributed.together(attempt.confirm)
                    session.sync()
                    keeper.save(step, state, run.loader.fingerprint(step))
                clock.write(step, now=True)
            if interrupted and not last:
                logging.warning("stopped by a signal; step %d is being saved", step)
                return False
    if run.loader.bad_examples:
        logging.warning("undecodable examples that were replaced: %s", run.loader.bad_examples)
    return True
