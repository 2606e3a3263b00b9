r"""Does a latent VLA get better where it is corrected in imagined rollouts?

Shows: closed-loop success after fine-tuning on the same labelled episodes, of latent VLAs that went
on for the same number of steps with their videos alone (`videos`), with games that they play in
what the quantizer's decoder imagines, labelled by their own z (`own`), and with games whose z a
scripted corrector chose (`corrected`; lapa_jax/studies/corrector.py); beside the one that did not
go on (`before`). Also success of the latent VLA itself, each of whose codes does its mean true
action, and how often it says the corrector's z: docs/world.md has what came out.

    lapa study studies/corrections --workdir runs/corrections

Quantizers, latent VLAs and labelled episodes are those of studies/headline, of family `reach`; its
parts may lie in the workdir. Cost beside these: a quarter of an hour a seed on two cores that did
much other work.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from experiments import base
from experiments.studies import headline
from experiments.studies.arms import ARMS as HEADLINE_ARMS
from experiments.studies.arms import World
from experiments.studies.pipeline import Made, Pipeline
from lapa_jax import envs
from lapa_jax.envs import words
from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import rollout
from lapa_jax.runs import true_actions
from lapa_jax.runs.corrections import CORPUS, Corrections
from lapa_jax.runs.loaded import LoadedPolicy, load, load_policy
from lapa_jax.studies import contrasts, corrector
from lapa_jax.studies.record import percent
from lapa_jax.studies.study import Cell, Study, with_corpora
from lapa_jax.world.imagination import Imagination, corrected

ARMS = ("before", "videos", "own", "corrected")
GAMES_OF = ("own", "corrected")
GAME_SEED = 730  # of the start states of games; those that policies are measured on have another
HELD_SEED = 731
SIZES = {
    "quick": dict(seeds=1, labels=8, rollouts=2, videos=24, games=6, held=4, more_steps=10)
    | dict(quantizer_steps=20, policy_steps=20, finetuning_steps=20),
    "cpu": {},
    "gpu": dict(seeds=5, rollouts=1000, games=3000, more_steps=1000),
}


def get_study(arg: str | None, workdir: Path) -> Study:
    """`seeds`, `labels`, `rollouts`, `videos`, `quantizer_steps`, `policy_steps`,
    `finetuning_steps`: as of studies/headline. `games`: from so many start states, of `steps`
    imagined frames at most; `held`: others, on which it is measured what z are said. `more_steps`:
    of the latent VLA, at a learning rate of `rate` at most."""
    arg = base.parse_study_arg(
        arg,
        SIZES,
        **dict(seeds=3, labels=50, rollouts=300, videos=5000, quantizer_steps=900),
        **dict(policy_steps=1400, finetuning_steps=300),
        **dict(games=1000, steps=4, held=300, more_steps=200, rate=3e-4),
    )
    known = headline.arguments(f"size={'quick' if arg.quick else 'cpu'},families=reach")
    known.update({key: value for key, value in arg.items() if key in known})
    made = Corrected(headline.get_world(known), workdir, arg)
    return Study(workdir, [made.arm(arm, seed) for seed in range(arg.seeds) for arm in ARMS])


class Corrected(Pipeline):
    """The pipeline of the headline, whose latent VLAs go on."""

    def __init__(self, world: World, workdir: Path, arg: ConfigDict):
        super().__init__(world, workdir)
        self.arg, self._lapa = arg, HEADLINE_ARMS["lapa"]
        self._env = envs.make({**world.scene, **world.shown})

    def arm(self, arm: str, seed: int) -> Cell:
        """Rows {setting, family, successes, episodes, outcomes} of both ways to act, the settings
        "actions" and "codes"; those of codes also tell what z are said."""
        labelled = self._labelled(seed, self.arg.labels, part=False)
        policy = self._pretrained(self._lapa, self.world.views, labelled, seed)
        if arm != "before":
            policy = self._gone_on(arm, policy, seed)
        acting = self._finetuned(self._lapa, policy, labelled, seed, None)

        def rows() -> list[dict[str, Any]]:
            told = dict(episodes=self.world.rollouts, seed=self.world.rollout_seed)
            told |= dict(view=self.world.robot, phrasings="train")
            tuned = self._success(load(self.workdir / acting.name), self.world.scene, told)
            of_codes = self._success_of_codes(load_policy(self.workdir / policy.name), seed)
            found = [{"setting": "actions", **row} for row in tuned]
            return [*found, {"setting": "codes", **of_codes}]

        asked = ConfigDict({"scene": self.world.scene, "rollouts": self.world.rollouts})
        asked.held, asked.steps = self.arg.held, self.arg.steps
        done = self._add(f"success_{arm}_s{seed}", rows, acting, decides=lambda: asked)
        return Cell({"arm": arm, "seed": seed}, done.parts)

    # --- Parts ---

    def _gone_on(self, arm: str, policy: Made, seed: int) -> Made:
        paths, before = self._paths(self.world.views), [policy, self._tokenizer()]
        if arm in GAMES_OF:
            before.append(self._games(policy, seed))
            paths = paths | {CORPUS: self._folder(arm, seed) / CORPUS}

        def config() -> ConfigDict:
            made = self._policy(self.world.latent_vla(), seed)
            made.init_from, made.model.tokenizer = str(self.workdir / policy.name), ""
            made.steps = self.arg.more_steps
            made.optimizer.peak_lr = self.arg.rate
            made.optimizer.warmup_steps = self.arg.more_steps // 10
            return with_corpora(made, paths, label_set=f"latents_s{seed}")

        return self._train(f"latent_vla_{arm}_s{seed}", config, *before)

    def _games(self, policy: Made, seed: int) -> Made:
        """Corpora of both kinds, from the same start states."""
        arg = self.arg

        def work() -> dict[str, Any]:
            said_by, imagination = self._loaded(policy.name, seed)
            found = {}
            for arm in GAMES_OF:
                played = self._played(said_by, imagination, seed, GAME_SEED, arg.games, arm)
                corpus = Corrections(self._folder(arm, seed), corrected(imagination, said_by))
                count = dataclasses.asdict(corpus.add(played.games({"seed": GAME_SEED})))
                found[arm] = count | self._agreement(played.said_NK, played, seed)
            return found

        decided = ConfigDict({key: arg[key] for key in ("games", "steps")})
        return self._add(f"games_s{seed}", work, policy, decides=lambda: decided)

    def _folder(self, arm: str, seed: int) -> Path:
        return self.workdir / "data" / f"games_s{seed}" / arm

    def _loaded(self, policy: str, seed: int) -> tuple[LoadedPolicy, Imagination]:
        quantizer = self.quantizer(self._lapa, self.world.views, seed).name
        return load_policy(self.workdir / policy), Imagination(load(self.workdir / quantizer))

    def _played(
        self,
        policy: LoadedPolicy,
        imagination: Imagination,
        seed: int,
        starts: int,
        count: int,
        arm: str,
    ) -> corrector.Shadowed:
        states = jax.vmap(self._env.reset)(self._env.training_keys(starts, count))
        phrasings = self._env.phrasings()
        texts = self._env.instructions(states, np.arange(count) % len(phrasings))
        return corrector.shadow(
            imagination,
            lambda frames, texts: policy.predict_latent(frames, list(texts)),
            self._env,
            states,
            texts,
            self._actions(seed),
            steps=self.arg.steps,
            window=self._window(seed),
            corrects=arm == "corrected",
            view=self.world.robot,
        )

    def _labels(self, seed: int) -> tuple[Any, LabelSet]:
        index = load_index(self._paths(self.world.views)[self.world.robot], image_key="")
        return index, LabelSet.open(index.sidecar_dir, f"latents_s{seed}", index)

    def _window(self, seed: int) -> int:
        """Steps of the environment."""
        index, labels = self._labels(seed)
        return round(labels.provenance["window_seconds"] * float(index.fps[0]))

    def _actions(self, seed: int) -> np.ndarray:
        """The mean true action of a window of each code, float64 (C, A)."""
        found = true_actions.of_codes(*self._labels(seed)).actions_LKA[0]
        # Of a short training codes may have no pair; they then rest.
        return np.nan_to_num(found) if self.arg.quick else found

    # --- What is measured ---

    def _agreement(
        self, said_NK: np.ndarray, played: corrector.Shadowed, seed: int
    ) -> dict[str, float]:
        """How often z that are said are the corrector's, and by how many degrees they are off."""
        said, right = (x[played.played_NK] for x in (said_NK, played.right_NK))
        off = corrector.degrees(self._actions(seed), said, right)
        return {"agrees": float((said == right).mean()), "degrees": float(off.mean())}

    def _success_of_codes(self, policy: LoadedPolicy, seed: int) -> dict[str, Any]:
        """Of a latent VLA each of whose codes does its mean true action, in the simulator; with its
        agreement with the corrector on games of other start states, on what is imagined and on what
        the simulator draws there."""
        env, (task,) = envs.make(self.world.scene), self.world.tasks
        states = env.evaluation_states(self.world.rollout_seed, task, self.world.rollouts)
        texts = words.of_all(env, "train", states, task, self.world.rollout_seed)
        each = self._actions(seed) / self._window(seed)
        outcomes = _acted(policy, env, states, texts, each, self.world.robot)
        row = {"family": task, "successes": int(outcomes.sum()), "episodes": len(outcomes)}
        row["outcomes"] = outcomes.tolist()
        _, imagination = self._loaded(policy.workdir.name, seed)
        count = self.arg.held
        played = self._played(policy, imagination, seed, HELD_SEED, count, "corrected")
        frames = played.true_NKHWC[:, :-1].swapaxes(0, 1)
        said = [np.asarray(policy.predict_latent(x, played.instructions))[:, 0] for x in frames]
        said = np.stack(said, axis=1)
        for what, of in (("imagined", played.said_NK), ("true", said)):
            found = self._agreement(of, played, seed)
            row |= {f"{key}_{what}": value for key, value in found.items()}
        return row


def _acted(
    policy: LoadedPolicy,
    env: Environment,
    states: Any,
    texts: list[str],
    actions_CA: np.ndarray,
    view: str,
) -> np.ndarray:
    """Success bool (N,) where the code that is said does its action, asked at every step."""
    stage, prompts = policy.stage, policy.stage.prompts(texts)

    def act(held, images, prompts, key):
        params, variables, actions = held
        z = stage.predict(params, variables, prompts, images[:, None]).values
        return actions[z[:, 0]]

    held = policy.params, policy.variables, jnp.asarray(actions_CA, jnp.float32)
    acting = jax.tree_util.Partial(act, held)
    how = dict(steps=env.spec.horizon, view=view, size=policy.image_size)
    found = rollout(env, acting, states, prompts, jax.random.key(0), **how)
    return np.asarray(found.success)


# --- What came out ---

TOLD = {"actions": "fine-tuned", "codes": "latent VLA itself"}


def tables(rows: contrasts.Rows) -> dict[str, list[list[str]]]:
    """Success of every arm, and what those have over `videos`, which went on as long with what they
    knew; what z are said on held-out games."""
    shown = [["arm", "acts", "seeds", "success", "less `videos`", "p"]]
    for setting, told in TOLD.items():
        for arm in ARMS:
            one, other = ({"arm": x, "setting": setting} for x in (arm, "videos"))
            seeds = contrasts.seeds_of(rows, one)
            if not seeds:
                shown.append([f"`{arm}`", told, "0", "–", "–", "–"])
                continue
            cells = [f"`{arm}`", told, str(len(seeds)), percent(contrasts.rate(rows, one))]
            gap = ["", ""]
            if arm != "videos":
                gap = ["–", "–"]
            if arm != "videos" and contrasts.seeds_of(rows, one, other):
                found = contrasts.paired(rows, one, other)
                gap = [percent(found.difference, "points"), f"{found.p:.2g}"]
            shown.append([*cells, *gap])
    return {"success": shown, "said": _said(rows)}


def _said(rows: contrasts.Rows) -> list[list[str]]:
    """Means over seeds, and the least and most of a seed."""
    columns = {
        f"{key}_{what}": f"{told}, {frames}"
        for what, frames in (("imagined", "imagined frames"), ("true", "true frames"))
        for key, told in (("agrees", "the corrector's z"), ("degrees", "off by"))
    }
    shown = [["arm", *columns.values()]]
    for arm in ARMS:
        cells = []
        for key in columns:
            found = [row[key] for row in rows if row["arm"] == arm and key in row]
            scale, unit = (100, " %") if key.startswith("agrees") else (1, "°")
            values = [scale * x for x in found]
            least, most = (min(values), max(values)) if values else (0.0, 0.0)
            mean = f"{np.mean(values):.1f}{unit} ({least:.1f} to {most:.1f})" if values else "–"
            cells.append(mean)
        shown.append([f"`{arm}`", *cells])
    return shown
