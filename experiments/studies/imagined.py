r"""Can policies be ranked without a robot, by their success in what a world model imagines?

Shows: of the headline's policies the success in imagined rollouts (lapa_jax/evidence/
imagined_success.py) beside that in closed loop from the same start states; how well the first ranks
by the second over all policies, beside rankings that need no world model: by the error of actions
on held-out episodes and by the loss there; and, as the most that can be asked for, by real success
on half of the start states against the other half.

    lapa study studies/imagined --size cpu --workdir runs/headline

The policies are cells of studies/headline with the same names: in its directory, with its size and
without other arguments, they are not trained again. A dynamics model that was trained elsewhere
imagines, too, as `studies/imagined:dynamics=RUN,corpus=CORPUS` (with such arguments in a directory
of its own: studies of other arguments do not share one).

Cost beside the policies, on two cores with much other work: of a quantizer 6 minutes for its judge,
and 25 seconds a policy; of a dynamics model 8 minutes, and 75 seconds for 100 start states.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import build_index, load_index
from data_pipelines.storage import places
from experiments import base
from experiments.studies import arms, headline
from experiments.studies.pipeline import Pipeline
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.evidence.action_errors import POLICY, evaluate_actions
from lapa_jax.evidence.imagined_success import evaluate_imagined
from lapa_jax.evidence.judges import Judge, train_judge
from lapa_jax.evidence.policy import evaluate_tokens
from lapa_jax.runs.loaded import Model
from lapa_jax.studies import policy_ranking
from lapa_jax.studies.study import Cell, Part, Study, check_seeds
from lapa_jax.world.action_map import ActionMap, open_action_map
from lapa_jax.world.imagination import Imagination, open_imagination

# What imagines, by the arm whose quantizer of seed 0 it is.
IMAGINATIONS = {"pixels": "lapa", "free": "lapa_best"}
DYNAMICS = "dynamics"
HELDOUT_SEED, JUDGE_SEED, EXAMPLES = 731, 740, 1000
UNNAMED = ("unipi",)  # says no actions of its own, of which there would be an error or a loss
SIZES = {
    "quick": dict(arms="scratch+lapa", imaginations="pixels", seeds=1, others=1, budgets="8")
    | dict(labels=8, starts=2, dynamics_starts=2, heldout=10, episodes=10, judge_steps=10),
    "cpu": {},
    "gpu": dict(others=headline.OTHER_SEEDS, starts=100, episodes=2000, judge_steps=3000)
    | dict(budgets="+".join(map(str, headline.BUDGETS))),
}


def get_study(arg: str | None, workdir: Path) -> Study:
    """`arms`, `seeds`, `others`, `budgets`, `labels`: policies, as of studies/headline.
    `imaginations`: of IMAGINATIONS, joined by +. `dynamics`: a dynamics run that was trained
    elsewhere, which imagines, too, and `corpus`: with its label set and actions. `starts`: start
    states of imagined rollouts, the first of the real ones; `dynamics_starts`: of `dynamics`, which
    takes longer. `heldout`: labelled episodes that
    errors and losses are of. `episodes`, `judge_steps`: that teach a judge."""
    arg = base.parse_study_arg(
        arg,
        SIZES,
        **dict(arms="+".join(arms.ARMS), imaginations="+".join(IMAGINATIONS), dynamics=""),
        **dict(corpus="", seeds=headline.SEEDS, others=1, labels=headline.PRIMARY_LABELS),
        **dict(budgets=str(headline.PRIMARY_LABELS), starts=headline.ROLLOUTS, dynamics_starts=100),
        **dict(heldout=150, episodes=300, judge_steps=800),
    )
    names = arg.imaginations.split("+")
    for name in names:
        base.require("imaginations", name, IMAGINATIONS)
    if bool(arg.dynamics) != bool(arg.corpus):
        raise ValueError(f"dynamics={arg.dynamics} and corpus={arg.corpus}: give both, or neither")
    for name in arg.arms.split("+"):
        base.require("arms", name, arms.ARMS)
    same = ("seeds", "others", "labels", "budgets", "arms")
    given = ",".join([f"size={arg.size}", *(f"{key}={arg[key]}" for key in same)])
    told = headline.arguments(f"{given},families=reach,horizon=40")
    world = headline.get_world(told)
    for key in ("starts", "dynamics_starts"):
        if arg[key] > world.rollouts:
            raise ValueError(f"{key}={arg[key]}: policies have {world.rollouts} start states")
    names += [DYNAMICS] * bool(arg.dynamics)
    made = Imagined(arg, Pipeline(world, workdir))
    cells = [made.judge(name) for name in names]
    for one in headline.cells_of(told):
        inside = one.keys() <= {"name", "seed", "labels"}
        if inside and one["name"] in arg.arms.split("+") and one["name"] not in UNNAMED:
            cells += made.policy(names, **one)
    return Study(workdir, cells)


@dataclasses.dataclass(frozen=True, eq=False)
class Imagined:
    """The cells of the study: judges, and of each policy what is said of it, and what is so."""

    arg: ConfigDict
    pipeline: Pipeline
    _opened: dict[str, tuple[Imagination, ActionMap]] = dataclasses.field(default_factory=dict)

    @property
    def world(self) -> arms.World:
        return self.pipeline.world

    @functools.cached_property
    def env(self) -> envs.Environment:
        return envs.make(self.world.scene)

    def opened(self, name: str) -> tuple[Imagination, ActionMap]:
        """What imagines, and the map to its z; opened once."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> tuple[Imagination, ActionMap]:
        if name == DYNAMICS:
            imagination, corpus = open_imagination(self.arg.dynamics), Path(self.arg.corpus)
        else:
            made = self._quantizer(name)
            imagination = open_imagination(self.pipeline.workdir / made.name)
            corpus = self.pipeline.workdir / "data" / "videos" / self.world.robot
        return imagination, open_action_map(imagination, load_index(corpus))

    def _quantizer(self, name: str) -> Any:
        return self.pipeline.quantizer(arms.ARMS[IMAGINATIONS[name]], self.world.views, 0)

    def _judge(self, name: str) -> tuple[Part, ...]:
        path = self.pipeline.workdir / "judges" / f"{name}.npz"

        def taught() -> list[dict[str, Any]]:
            imagination, actions = self.opened(name)
            how = dict(episodes=self.arg.episodes, steps=self.arg.judge_steps, seed=JUDGE_SEED)
            judge = train_judge(self.env, imagination, actions, view=self.world.robot, **how)
            places.make(path.parent)
            judge.save(path)
            kept = ("accuracy", "modal_accuracy", "r2_mean")
            of = judge.report | {"map": {k: x for k, x in actions.report.items() if k in kept}}
            row = {key: of[key] for key in ("episodes", "done")}
            for part in ("true", "imagined", "map"):
                row |= {f"{part}_{key}": value for key, value in of[part].items()}
            return [row]

        how = dict(scene=self.world.scene, episodes=self.arg.episodes, steps=self.arg.judge_steps)
        decided = ConfigDict(how | {"imagines": self.arg.dynamics if name == DYNAMICS else name})
        part = Part(f"judge_{name}", taught, lambda: decided)
        return (*(() if name == DYNAMICS else self._quantizer(name).parts), part)

    def judge(self, name: str) -> Cell:
        return Cell({"what": "judge", "imagination": name}, self._judge(name))

    def policy(self, names: Sequence[str], name: str, seed: int, labels: int) -> list[Cell]:
        """Its real success, what is said of it without a world, and of each imagination."""
        arm = arms.ARMS[name]
        values = {"arm": name, "seed": seed, "labels": labels}
        real = self.pipeline.cell(name, seed=seed, labels=labels)
        acting, load_policy = self.pipeline.policy(arm, seed=seed, labels=labels, other=arm.other)
        which = f"{name}_s{seed}_n{labels}"
        errors = (*acting.parts, self._heldout(), self._errors(which, load_policy))
        cells = [
            Cell({"what": "success", **values}, real.parts),
            Cell({"what": "errors", **values}, errors),
        ]
        for imagined in names:
            before = {p.name: p for p in (*acting.parts, *self._judge(imagined))}
            last = self._imagined(imagined, which, load_policy)
            told = {"what": "imagined", "imagination": imagined, **values}
            cells.append(Cell(told, (*before.values(), last)))
        return cells

    def _heldout(self) -> Part:
        world, path = self.world, self.pipeline.workdir / "data" / "heldout"
        check_seeds(
            {"held-out episodes": HELDOUT_SEED, "videos": world.video_seed}
            | {
                f"labelled episodes of seed {s}": world.label_seed + s
                for s in range(headline.SEEDS)
            }
        )

        def collected() -> dict[str, int]:
            size = tuple(world.latent_vla().data.image_size)
            if not (path / world.robot / "dataset_info.json").exists():
                job = dict(views=(world.robot,), episodes=self.arg.heldout, seed=HELDOUT_SEED)
                collect(self.env, path, size=size, workers=world.workers, **job)
            build_index(path / world.robot, progress=False)
            return {"episodes": self.arg.heldout}

        decided = ConfigDict({"scene": world.scene, "episodes": self.arg.heldout})
        return Part("heldout", collected, lambda: decided)

    def _errors(self, which: str, load_policy: Callable[[], Model]) -> Part:
        def work() -> list[dict[str, Any]]:
            run, path = load_policy(), self.pipeline.workdir / "data" / "heldout"
            corpora = {"heldout": {"path": str(path / self.world.robot)}}
            tokens = evaluate_tokens(run, corpora, max_examples=EXAMPLES)
            found = evaluate_actions(run, corpora, max_examples=EXAMPLES)["heldout"]
            error = float(np.mean(found[POLICY]["l1"]))
            return [{"loss": tokens["loss"], "action_error": error}]

        return Part(f"errors_{which}", work)

    def _imagined(self, name: str, which: str, load_policy: Callable[[], Model]) -> Part:
        starts = self.arg.dynamics_starts if name == DYNAMICS else self.arg.starts

        def work() -> list[dict[str, Any]]:
            imagination, actions = self.opened(name)
            judge = Judge.load(self.env, self.pipeline.workdir / "judges" / f"{name}.npz")
            told = dict(seed=self.world.rollout_seed, view=self.world.robot)
            rows = []
            for task in self.world.tasks:
                given = (load_policy(), imagination, actions, judge, task)
                found = evaluate_imagined(*given, episodes=starts, **told)
                rows.append(
                    {
                        "family": task,
                        "successes": found.report["successes"],
                        "episodes": starts,
                        "outcomes": found.outcomes.tolist(),
                        "by_window": found.report["by_window"],
                    }
                )
            return rows

        decided = ConfigDict({"scene": self.world.scene, "starts": starts})
        return Part(f"imagined_{name}_{which}", work, lambda: decided)


# --- What came out ---


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """As of lapa_jax/studies/policy_ranking.py."""
    return policy_ranking.tables(rows)
