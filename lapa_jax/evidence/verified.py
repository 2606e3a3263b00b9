"""What `lapa evaluate --verifier` takes: a verifier of a policy's chunks; what is told of it."""

import dataclasses
from typing import Annotated, Any

import numpy as np

from data_pipelines import keys
from data_pipelines.index import load_index
from lapa_jax.diagnostics.statistics import bootstrap_ratio
from lapa_jax.envs.checked import Checked
from lapa_jax.envs.env import EnvSpec
from lapa_jax.envs.execution import Execution
from lapa_jax.evidence.rollouts import reader_of
from lapa_jax.runs.loaded import Model, load_quantizer
from lapa_jax.world.action_map import open_action_map
from lapa_jax.world.imagination import open_imagination
from lapa_jax.world.verifier import Calibration, Verifier, calibrate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """Of a policy's chunks, by what a world model imagines."""

    verifier: Annotated[
        str,
        "",
        "run that imagines what a chunk leads to, of stage quantizer or dynamics: where another "
        "frame is seen, the rest of the chunk is dropped (docs/world.md)",
    ] = ""
    verifier_corpus: Annotated[
        str,
        "",
        "directory of shards (indexed) with actions, of episodes that no training drew from, by "
        "which it is calibrated",
    ] = ""
    verifier_quantizer: Annotated[
        str, "", "of a dynamics run: the quantizer of its label set, whose encoder compares"
    ] = ""
    false_alarms: Annotated[
        float, "(0, 1)", "share of true windows of that corpus that it would take for others"
    ] = 0.05

    def __post_init__(self) -> None:
        keys.check(Verification, vars(self), "")
        if bool(self.verifier) != bool(self.verifier_corpus):
            raise ValueError("--verifier and --verifier_corpus act together: give both")
        if self.verifier_quantizer and not self.verifier:
            raise ValueError("--verifier_quantizer is of --verifier: give both")


WINDOWS = 5000  # of the policy's corpus, from which the map from actions to z is learnt


def open_verifier(policy: Model, options: Verification) -> Verifier:
    """The verifier that the options name, for a policy of actions in chunks. Raises ValueError as
    `open_calibration`, and for a share that the windows are too few for."""
    return open_calibration(policy, options).at(options.false_alarms)


def open_calibration(policy: Model, options: Verification) -> Calibration:
    """What a verifier is made of: z of actions are learnt from the first corpus of the policy's
    training, distances measured on --verifier_corpus. Raises ValueError for a policy that says one
    action at a time or sees frames of another size, and as `open_imagination`, `reader_of`,
    `open_action_map` and `calibrate`."""
    if not policy.stage.acts or policy.stage.head.horizon == 1:
        said = "one action at a time" if policy.stage.acts else "no actions"
        raise ValueError(
            f"--verifier: {policy.workdir} says {said}: it takes chunks (data.action_horizon)"
        )
    imagination = open_imagination(options.verifier)
    if tuple(policy.config.data.image_size) != imagination.image_size:
        raise ValueError(
            f"--verifier {options.verifier}: it imagines frames of {imagination.image_size}, the "
            f"policy sees {tuple(policy.config.data.image_size)}"
        )
    named = options.verifier_quantizer
    quantizer = load_quantizer(named) if named else None
    reader = reader_of(imagination, quantizer, "--verifier_quantizer")
    corpus = next(iter(policy.config.data.corpora.values()))
    learnt = load_index(
        corpus.path,
        split=corpus.split,
        image_key=corpus.image_key,
        sidecar_dir=corpus.sidecar_dir or None,
    )
    held_out = load_index(options.verifier_corpus)
    actions = open_action_map(imagination, learnt, quantizer=reader, most=WINDOWS)
    return calibrate(imagination, actions, reader, held_out, others=(policy,))


def check_verifier(verifier: Verifier, spec: EnvSpec, how: Execution) -> None:
    """ValueError where a verifier does not fit an environment, or how chunks are acted on."""
    seconds, actions = verifier.imagination.window_seconds, verifier.actions
    if actions.dim != spec.action_dim:
        raise ValueError(
            f"--verifier was calibrated on actions of {actions.dim} dimensions, {spec.name} takes "
            f"{spec.action_dim}"
        )
    if seconds and round(seconds * spec.control_hz) != actions.steps:
        raise ValueError(
            f"--verifier imagines {seconds:g} s ahead, {seconds * spec.control_hz:g} steps of "
            f"{spec.name}, and its corpora have {actions.steps} in a window"
        )
    if how.execute % actions.steps or how.execute <= actions.steps:
        raise ValueError(
            f"--execute {how.execute}: the verifier looks every {actions.steps} steps, so it must "
            f"be a multiple of that, and more: {2 * actions.steps}, {3 * actions.steps}, ..."
        )


def calls_report(calls: np.ndarray, length: np.ndarray) -> dict[str, Any]:
    """Of episodes (N,): how often the policy was asked until each one's end, and how many actions
    were acted on a call, with 95 % by resampling episodes."""
    found, every = {}, np.arange(len(calls))
    ones = np.ones(len(calls))
    for name, above, below in (
        ("calls_per_episode", calls, ones),
        ("executed_length", length, calls),
    ):
        asked = below > 0
        if not asked.any():
            found |= {name: None, f"{name}_interval": None}
            continue
        mean = bootstrap_ratio(above[asked], below[asked], every[asked], seed=0)
        found |= {name: mean.estimate, f"{name}_interval": [mean.low, mean.high]}
    return found


def looks_report(found: Checked) -> dict[str, Any]:
    """How often somebody looked, and at how many looks the rest of a chunk was dropped."""
    looks, drops = int(found.looks.sum()), int(found.drops.sum())
    return {"looks": looks, "drops": drops, "dropped": drops / looks if looks else None}


def verifier_report(verifier: Verifier) -> dict[str, Any]:
    """What it is, and its calibration."""
    model, of_actions = verifier.imagination.model, verifier.actions.report
    known = ("accuracy", "modal_accuracy", "r2_mean")
    return {
        "workdir": str(model.workdir),
        "step": model.step,
        "actions_to_z": {name: of_actions[name] for name in known if name in of_actions},
        **verifier.report,
    }
