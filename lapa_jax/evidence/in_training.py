"""Evaluation during training: what `config.evaluation` asks for, into WORKDIR/evaluation.jsonl.

The metrics of the stage on the same examples each time, with the moving average of the parameters
where the run keeps one; of an action VLA also closed-loop success. It stops training while it
runs: `lapa evaluate` in a process of its own does not, and tells more.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.loader import DataSettings, Loader
from data_pipelines.loader.mixture import Mixture
from lapa_jax import envs
from lapa_jax.envs.execution import check_rate
from lapa_jax.parallel import distributed, sharding
from lapa_jax.runs.loaded import Model
from lapa_jax.runs.program import Program
from lapa_jax.runs.sources import control_hz
from lapa_jax.runs.usable import open_loader
from lapa_jax.training import groups
from lapa_jax.training.state import TrainState


class Evaluation:
    """Built once; `run` may be called after any step, by all processes together."""

    def __init__(self, config: ConfigDict, program: Program, trained: Mixture):
        """trained: what the run is trained on. ValueError where the settings are not for it."""
        settings = config.evaluation
        self._config, self._program = config, program
        self.every_steps: int = settings.every_steps
        if settings.episodes and not program.stage.acts:
            raise ValueError(
                f"evaluation.episodes={settings.episodes} is for stage action_finetuning: a run of "
                f"stage {config.stage!r} has no actions to take"
            )
        if settings.episodes and jax.process_count() > 1:
            raise ValueError(
                f"evaluation.episodes={settings.episodes} is for one process, not for "
                f"{jax.process_count()}: set it to 0 and run `lapa evaluate` on the checkpoints"
            )
        if settings.episodes:
            spec = envs.make(settings.env).spec
            of = f"evaluation.env, {spec.name},"
            check_rate(control_hz(trained), spec.control_hz, "the policy", of)
        self._check_best()
        self._loader = self._open() if self.every_steps else None
        self._metrics = jax.jit(
            sharding.with_rules(program.stage.eval_metrics, program.mesh, program.preset),
            out_shardings=sharding.replicated(program.mesh),
        )

    def _check_best(self) -> None:
        metric, program = self._config.checkpoint.best_metric, self._program
        if not metric:
            return
        names = jax.eval_shape(
            program.stage.eval_metrics,
            program.state.params,
            program.state.variables,
            program.batch,
        )
        known = sorted(names)
        if self._config.evaluation.episodes:
            families = envs.make(self._config.evaluation.env).spec.tasks
            known += [f"success_{family}" for family in families]
        if metric not in known or not self.every_steps:
            raise ValueError(
                f"checkpoint.best_metric={metric!r} must be one of {known}, and "
                f"evaluation.every_steps={self.every_steps} must be positive"
            )

    def due(self, step: int) -> bool:
        return bool(self.every_steps) and step % self.every_steps == 0

    def run(self, state: TrainState) -> dict[str, float]:
        """Means over the examples, and `success_FAMILY` with the bounds of its 95 % interval."""
        params = state.params
        if state.ema is not None:
            trained, frozen = self._program.optimizer.split(params)
            averages = jax.tree.map(lambda e, p: e.astype(p.dtype), state.ema, trained)
            params = groups.merge(averages, frozen)
        rows = []
        for number in range(self._config.evaluation.batches):
            batch = sharding.put_batch(self._loader.batch(number), self._program.mesh)
            rows.append(jax.device_get(self._metrics(params, state.variables, batch)))
        found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return found | self._success(params, state)

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()

    def _open(self) -> Loader:
        config, stage = self._config, self._program.stage
        data, paths = DataSettings.of(config.data), config.evaluation.corpora
        if paths:
            named = {Path(path).name: path for path in paths}
            if len(named) < len(paths):
                raise ValueError(f"evaluation.corpora={paths} has a name twice")
            data = data.on(named, split=config.evaluation.split)
        host, hosts = sharding.loader_shard(self._program.mesh)
        shared = dict(host=host, num_hosts=hosts)
        return distributed.together(
            lambda: open_loader(config, data.draw_any(), stage, config.global_batch, **shared)
        )

    def _success(self, params: Any, state: TrainState) -> dict[str, float]:
        settings, found = self._config.evaluation, {}
        if not settings.episodes:
            return found
        # Training starts without what draws statistics.
        from lapa_jax.evidence.policy import evaluate_success

        env = envs.make(settings.env)
        policy = Model(self._config, self._program.stage, params, state.variables)
        for family in env.spec.tasks:
            report = evaluate_success(
                policy, env, family, episodes=settings.episodes, seed=self._config.seed
            ).report
            found[f"success_{family}"] = report["successes"] / report["episodes"]
            found[f"success_{family}_low"] = report["low"]
            found[f"success_{family}_high"] = report["high"]
        return found
