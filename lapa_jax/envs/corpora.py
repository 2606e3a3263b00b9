"""The corpora of all views while they are made, from parts that are finished in all of them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from data_pipelines.convert import executors, staging
from data_pipelines.convert.conversion import SHARD_BYTES
from data_pipelines.rlds import writer
from lapa_jax.envs.demonstrations import Block, Plan


class Corpora:
    """Locked while entered, with a staging area each. What a stopped run of the same settings has
    finished is there."""

    def __init__(self, plan: Plan, out: Path, settings: dict[str, Any]):
        name = plan.env.spec.name
        self._outputs = {
            view: writer.Output(
                out / view, f"{name}_{view.replace('+', '_')}", plan.spec, plan.split
            )
            for view in plan.corpora
        }
        self._settings = settings

    def __enter__(self) -> Corpora:
        with contextlib.ExitStack() as stack:
            for output in self._outputs.values():
                stack.callback(writer.lock_output(output.directory).release)
            self._stages = self._open()
            self._locks = stack.pop_all()
        first, *others = self._stages.values()
        whole = [part for part in first.results if all(part in one.results for one in others)]
        self._results = {part: first.results[part] for part in whole}
        self.finished = frozenset(whole)  # by a run before
        self.episodes = sum(len(result["frames"]) for result in self.results)
        return self

    def _open(self) -> dict[str, staging.Staging]:
        """Of the views whose corpora are not there."""
        folders = {
            view: staging.folder(output.directory, output.split)
            for view, output in self._outputs.items()
        }
        published = [view for view, output in self._outputs.items() if output.is_finished()]
        # A stop may have come between two publications, when all plans were made.
        planned = any((folder / "plan.json").exists() for folder in folders.values())
        going_on = planned and len(published) < len(folders)
        left = [view for view in folders if not (going_on and view in published)]
        for view in left:
            self._outputs[view].check(resuming=folders[view].exists())
        found = {}
        for view in sorted(left, key=lambda view: not folders[view].exists()):
            output = self._outputs[view]  # those first that may be of other settings
            found[view] = staging.Staging(output.directory, output.split, self._settings)
        return {view: found[view] for view in left}

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    @property
    def directories(self) -> dict[str, Path]:
        return {view: output.directory for view, output in self._outputs.items()}

    @property
    def planned(self) -> bool:
        """All parts are there."""
        return any(stage.plan is not None for stage in self._stages.values())

    @property
    def results(self) -> list[dict]:
        """Of all parts that are there, in their order."""
        return [result for _, result in sorted(self._results.items())]

    def block(self, part: int, numbers: range, wanted: int) -> Block:
        paths = tuple(stage.part_path(part) for stage in self._stages.values())
        return Block(paths[0], part, numbers, wanted, paths)

    def add(self, result: dict) -> None:
        """A part is finished, in all views."""
        self._results[result["part"]] = result
        self.episodes += len(result["frames"])
        for stage, records in zip(self._stages.values(), result["records"], strict=True):
            stage.results[result["part"]] = result | {"records": records}

    def publish(self, where: executors.Local) -> None:
        """Parts become shards. Each corpus appears whole; a stop in between is gone on from."""
        for stage in self._stages.values():
            if stage.plan is None:
                records = [(part, one["records"]) for part, one in sorted(stage.results.items())]
                stage.write_plan(staging.plan_by_size(records, SHARD_BYTES))
        for view, stage in self._stages.items():
            with executors.run(staging.join, stage.join_jobs(), where) as results:
                for result in results:
                    stage.joined(result["shard"])
            stage.publish(self._outputs[view])

    def remove(self) -> None:
        """All that was made."""
        for stage in self._stages.values():
            shutil.rmtree(stage.folder)
