r"""The parts that make the cells of arms, in a world.

A part is named by what decides it, so that arms share it: one corpus of videos a world, one
quantizer for (objective, videos, seed), one label set for a quantizer, one policy pretrained for
(label set, seed), one inverse dynamics model for (labelled episodes, seed). Of one seed the
labelled episodes are nested: n of them are the first n of any larger number.

A study file makes a `World` (experiments/studies/arms.py), and cells of it:

    pipeline = Pipeline(world, workdir)
    cells = [pipeline.cell(arm, seed=0, labels=50) for arm in ("scratch", "lapa")]
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import build_index, load_index
from data_pipelines.storage import places
from experiments import base
from experiments.studies.arms import ARMS, SETTINGS, UNSEEN, WORDS, Arm, Tuned, World
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.policy import text
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.runs import run as runs
from lapa_jax.runs import unipi
from lapa_jax.runs.label import label, label_actions
from lapa_jax.runs.loaded import Model, load
from lapa_jax.studies import control_labels
from lapa_jax.studies.study import Cell, Part, check_seeds, train_part, with_corpora


@dataclasses.dataclass(frozen=True)
class Made:
    """A run, a label set or a corpus, by its name, and the parts that make it, in order."""

    name: str
    parts: tuple[Part, ...]


class Pipeline:
    """The parts of a world's cells, under a study's directory."""

    def __init__(self, world: World, workdir: Path):
        self.world, self.workdir, self._made = world, workdir, {}
        self._text = workdir / "tokenizer" / "tokenizer.model"

    def cell(
        self,
        name: str,
        *,
        seed: int,
        labels: int,
        setting: str = "in_domain",
        unseen: bool = False,
        phrasings: str = "train",
        tuned: Tuned | None = None,
        arm: Arm | None = None,
    ) -> Cell:
        """Of the arm of that name, one of ARMS or `arm`, with so many labelled episodes, whose rows
        are one a task: {family, successes, episodes, outcomes}. `unseen`: rollouts of
        `World.unseen`, and `phrasings`: what policies are told, as of `envs.words`; what is not
        usual is told by the setting's name. `tuned`: in the place of the world's, and then among
        the cell's values. ValueError for what the world does not have."""
        if arm is None:
            base.require("arm", name, ARMS)
            arm = ARMS[name]
        base.require("setting", setting, SETTINGS)
        place = SETTINGS[setting]
        other = arm.other or place.other
        for what, needed in (("other", other), ("part", place.part), ("unseen", unseen)):
            if needed and not getattr(self.world, what):
                raise ValueError(f"arm {name}, setting {setting}: World.{what} is empty")
        told = f"{setting}{UNSEEN}" if unseen else setting
        told += "" if phrasings == "train" else f"{WORDS}{phrasings}"
        values = {"arm": name, "setting": told, "seed": seed, "labels": labels}
        if tuned is not None:
            values |= {"steps": tuned.steps, "rest": tuned.rest}
        given = dict(seed=seed, labels=labels, other=other, part=place.part, tuned=tuned)
        acting, load_policy = self.policy(arm, **given)
        told_to = dict(episodes=self.world.rollouts, seed=self.world.rollout_seed)
        told_to |= dict(view=self.world.robot, phrasings=phrasings)
        scene = {**self.world.scene, **(self.world.unseen if unseen else {})}

        def success() -> list[dict[str, Any]]:
            return self._success(load_policy(), scene, told_to)

        tried = f"{tuned.steps}x{tuned.rest:g}" if tuned else ""
        last = _join("success", name, told, f"s{seed}", f"n{labels}", tried)
        asked = ConfigDict({"scene": scene, "rollouts": told_to})
        return Cell(values, self._add(last, success, acting, decides=lambda: asked).parts)

    def policy(
        self,
        arm: Arm,
        *,
        seed: int,
        labels: int,
        other: bool = False,
        part: bool = False,
        tuned: Tuned | None = None,
    ) -> tuple[Made, Callable[[], Model]]:
        """(the arm's policy, what loads it once it is made). `other`: of videos of another
        embodiment; `part`: labelled episodes are of `World.part`."""
        views = self.world.other if other else self.world.views
        labelled = self._labelled(seed, labels, part)
        if arm.draws:
            return self._drawing(arm, views, labelled, seed)
        start = self._pretrained(arm, views, labelled, seed)
        acting = self._finetuned(arm, start, labelled, seed, tuned)
        return acting, lambda: load(self.workdir / acting.name)

    # --- Data ---

    def _videos(self) -> Made:
        """Corpora of all views, with actions, which nobody reads but who learns "true" ones."""
        world, name = self.world, "videos"
        views = tuple(dict.fromkeys((*world.views, *world.other)))
        job = dict(views=views, episodes=world.videos, seed=world.video_seed, noise=world.noise)
        return self._collected(name, {**world.scene, **world.shown}, job)

    def _labelled(self, seed: int, labels: int, part: bool) -> Made:
        world, data_seed = self.world, self.world.label_seed + seed
        check_seeds({"videos": world.video_seed, f"labelled episodes of seed {seed}": data_seed})
        name = _join("labelled", "part" if part else "", f"s{seed}", f"n{labels}")
        scene = {**world.scene, **(world.part if part else {})}
        job = dict(views=(world.robot,), episodes=labels, seed=data_seed)
        return self._collected(name, scene, job)

    def _collected(self, name: str, scene: Mapping[str, Any], job: Mapping[str, Any]) -> Made:
        decided = ConfigDict({"scene": scene, "job": job})
        work = lambda: self._collect(name, scene, job)  # noqa: E731
        return self._add(name, work, decides=lambda: decided)

    def _collect(
        self, name: str, scene: Mapping[str, Any], job: Mapping[str, Any]
    ) -> dict[str, int]:
        out, size = self.workdir / "data" / name, self.world.latent_vla().data.image_size
        if not all((out / view / "dataset_info.json").exists() for view in job["views"]):
            collect(envs.make(scene), out, size=tuple(size), workers=self.world.workers, **job)
        for view in job["views"]:
            build_index(out / view, progress=False)
        index = load_index(out / job["views"][0], image_key="")
        return {"episodes": index.num_episodes, "frames": index.num_frames}

    def _paths(self, views: Sequence[str]) -> dict[str, Path]:
        return {view: self.workdir / "data" / "videos" / view for view in views}

    def _tokenizer(self) -> Made:
        """Of every instruction that the world has."""

        def work() -> None:
            said = envs.make(self.world.scene).all_instructions()
            model = text.train(said, self.world.latent_vla().model.text_vocab)
            places.make(self._text.parent)
            self._text.write_bytes(model)

        make = lambda: Part("tokenizer", work, run=self._text.parent)  # noqa: E731
        return self._part("tokenizer", make)

    # --- Latent actions ---

    def _objective(self, arm: Arm) -> str:
        return self.world.best if arm.objective == "best" else arm.objective

    def quantizer(self, arm: Arm, views: Sequence[str], seed: int) -> Made:
        """Of the arm, from videos of these views."""
        objective = self._objective(arm)
        taught = "teacher" in self.world.quantizer(objective).model.objective
        before = self._teacher(views) if taught else self._videos()

        def config() -> ConfigDict:
            found = with_corpora(self.world.quantizer(objective), self._paths(views))
            if taught:
                with found.unlocked():
                    found.model.objective.weights = str(self.workdir / before.name)
            return _seeded(found, seed)

        kind = "" if objective == "pixels" else objective
        return self._train(_join("quantizer", kind, self._other(views), f"s{seed}"), config, before)

    def _teacher(self, views: Sequence[str]) -> Made:
        """A frozen encoder for objectives that ask for one."""
        if self.world.teacher is None:
            raise ValueError("an objective needs a teacher: World.teacher is None")
        make = self.world.teacher

        def config() -> ConfigDict:
            return with_corpora(make(), self._paths(views))

        return self._train(_join("teacher", self._other(views)), config, self._videos())

    def _latents(self, arm: Arm, views: Sequence[str], seed: int) -> Made:
        """A label set of the videos: the quantizer's, or a control beside it."""
        quantizer = self.quantizer(arm, views, seed)
        name = quantizer.name.replace("quantizer", "latents")
        paths = {view: {"path": str(path)} for view, path in self._paths(views).items()}

        def work() -> dict[str, Any]:
            run = load(self.workdir / quantizer.name)
            return {view: label(run, name, corpus) for view, corpus in paths.items()}

        own = self._add(name, work, quantizer)
        if not arm.control:
            return own
        controls = _join(arm.control, name)

        def control() -> None:
            run = load(self.workdir / quantizer.name)
            control_labels.write_controls(arm.control, run, name, controls, paths, seed=seed)

        return self._add(controls, control, own)

    # --- Policies ---

    def _pretrained(self, arm: Arm, views: Sequence[str], labelled: Made, seed: int) -> Made | None:
        """What fine-tuning starts from."""
        if arm.learns == "latent":
            latents = self._latents(arm, views, seed)

            def latent() -> ConfigDict:
                config = self._policy(self.world.latent_vla(self._objective(arm)), seed)
                return with_corpora(config, self._paths(views), label_set=latents.name)

            name = latents.name.replace("latents", "latent_vla", 1)
            return self._train(name, latent, latents, self._tokenizer())
        if not arm.learns:
            return None
        said = self._said(views, labelled, seed) if arm.learns == "said" else None
        keys = {"action_set": said.name} if said else {}
        recipe = "vpt" if said else arm.recipe

        def actions() -> ConfigDict:
            """As the latent VLA, but for what it predicts."""
            config, like = (
                self._policy(self.world.action_vla(recipe), seed),
                self.world.latent_vla(),
            )
            groups = config.optimizer.groups
            config.optimizer = like.optimizer
            config.optimizer.groups = groups
            config.steps, config.global_batch = like.steps, like.global_batch
            return with_corpora(self._policy(config, seed), self._paths(views), **keys)

        if said:
            return self._train(said.name.replace("said", "vpt", 1), actions, said)
        name = _join("action_vla", _recipe(arm), self._other(views), f"s{seed}")
        return self._train(name, actions, self._videos(), self._tokenizer())

    def _said(self, views: Sequence[str], labelled: Made, seed: int) -> Made:
        """Actions of the videos, said by an inverse dynamics model of the labelled episodes."""
        inverse = self._inverse(labelled, seed)
        name = _join(inverse.name.replace("inverse", "said", 1), self._other(views))

        def work() -> dict[str, Any]:
            run = load(self.workdir / inverse.name)
            paths = self._paths(views).items()
            return {view: label_actions(run, name, {"path": str(path)}) for view, path in paths}

        return self._add(name, work, inverse, self._videos())

    def _inverse(self, labelled: Made, seed: int, window_seconds: float = 0.0) -> Made:
        def config() -> ConfigDict:
            made = self._policy(self.world.action_vla("inverse_dynamics"), seed)
            keys = {"window_seconds": window_seconds} if window_seconds else {}
            return with_corpora(made, self._robot(labelled), **keys)

        name = labelled.name.replace(
            "labelled", "inverse_window" if window_seconds else "inverse", 1
        )
        return self._train(name, config, labelled, self._tokenizer())

    def _finetuned(
        self, arm: Arm, start: Made | None, labelled: Made, seed: int, tuned: Tuned | None
    ) -> Made:
        how = tuned or self.world.tuned[arm.tuned]
        began = start.name if start else "scratch"
        known = labelled.name.removeprefix("labelled_")
        own = "matched" if arm.matched else _recipe(arm)
        tried = f"{how.steps}x{how.rest:g}" if tuned else ""
        name = _join("policy", began, own, "of", known, tried)

        def config() -> ConfigDict:
            made = self._policy(self.world.action_vla(arm.recipe), seed)
            made.steps = how.steps
            if arm.matched:
                path = self.workdir / f"matched_s{seed}.json"
                known = places.read_json(path, f"remove {self.workdir}/parts/{path.name}")
                made.steps += round(known["examples"] / made.global_batch)
            if start:
                made.init_from, made.model.tokenizer = str(self.workdir / start.name), ""
            if start and arm.learns != "latent":  # its head of actions is taken, with their tokens
                made.model.action_codec = str(self.workdir / start.name / "assets" / CODEC)
            if arm.recipe == "own":
                made.optimizer.groups.rest.lr_scale = how.rest
            return with_corpora(made, self._robot(labelled))

        before = [*([start] if start else []), labelled, self._tokenizer()]
        if not arm.matched:
            return self._train(name, config, *before)
        before.append(self._matched(labelled, seed))
        return self._part(name, lambda: train_part(name, config, self.workdir / name), *before)

    def _matched(self, labelled: Made, seed: int) -> Made:
        """How many examples of a policy have the FLOPs of training the quantizer and the latent VLA
        of `lapa`, in WORKDIR/NAME.json."""
        lapa, views, name = ARMS["lapa"], self.world.views, f"matched_s{seed}"
        policy = self._pretrained(lapa, views, labelled, seed)
        made = [self.quantizer(lapa, views, seed), policy]

        def work() -> None:
            runs_of = [load(self.workdir / one.name) for one in made]
            each = [run.stage.model_flops() for run in runs_of]
            counts = [run.config.steps * run.config.global_batch for run in runs_of]
            examples = counts[0] * each[0] / each[1] + counts[1]
            runs.write_json(self.workdir / f"{name}.json", {"examples": round(examples)})

        return self._add(name, work, policy)

    def _drawing(
        self, arm: Arm, views: Sequence[str], labelled: Made, seed: int
    ) -> tuple[Made, Callable[[], Model]]:
        """UniPi: a latent VLA, its quantizer, and an inverse dynamics model of its window."""
        latent = self._pretrained(arm, views, labelled, seed)
        quantizer = self.quantizer(arm, views, seed)
        corpora = self.world.quantizer(self._objective(arm)).data.corpora.values()
        inverse = self._inverse(labelled, seed, next(iter(corpora)).window_seconds)
        name = _join("unipi", latent.name, "of", labelled.name.removeprefix("labelled_"))

        def composed() -> Model:
            names = latent.name, quantizer.name, inverse.name
            return unipi.compose(*(load(self.workdir / name) for name in names))

        return Made(name, _parts(latent, inverse)), composed

    def _policy(self, config: ConfigDict, seed: int) -> ConfigDict:
        config.model.tokenizer = str(self._text)
        return _seeded(config, seed)

    def _robot(self, labelled: Made) -> dict[str, Path]:
        return {"robot": self.workdir / "data" / labelled.name / self.world.robot}

    def _success(
        self, policy: Model, scene: Mapping[str, Any], told: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        env, rows = envs.make(scene), []
        for task in self.world.tasks:
            outcomes = np.asarray(evaluate_success(policy, env, task, **told).rollouts.success)
            count = {"successes": int(outcomes.sum()), "episodes": len(outcomes)}
            rows.append({"family": task, **count, "outcomes": outcomes.tolist()})
        return rows

    # --- Parts ---

    def _other(self, views: Sequence[str]) -> str:
        return "" if tuple(views) == self.world.views else "other"

    def _train(self, name: str, config: Callable[[], ConfigDict], *before: Made) -> Made:
        make = lambda: train_part(name, config(), self.workdir / name)  # noqa: E731
        return self._part(name, make, *before)

    def _add(
        self,
        name: str,
        work: Callable[[], Any],
        *before: Made,
        decides: Callable[[], ConfigDict] | None = None,
    ) -> Made:
        return self._part(name, lambda: Part(name, work, decides), *before)

    def _part(self, name: str, make: Callable[[], Part], *before: Made) -> Made:
        """Of that name, after those `before`; the one that is there already, where one is.
        ValueError where that comes after others."""
        needed = _parts(*before)
        if name not in self._made:
            self._made[name] = Made(name, (*needed, make()))
        made = self._made[name]
        there, asked = ([part.name for part in parts] for parts in (made.parts[:-1], needed))
        if there != asked:
            raise ValueError(f"two parts are called {name}: one after {there}, one after {asked}")
        return made


def _parts(*made: Made) -> tuple[Part, ...]:
    """Each once, by its name."""
    return tuple({part.name: part for one in made for part in one.parts}.values())


def _recipe(arm: Arm) -> str:
    return "" if arm.recipe == "own" else arm.recipe


def _join(*names: str) -> str:
    return "_".join(filter(None, names))


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    with config.unlocked():
        config.seed = seed
    return config
