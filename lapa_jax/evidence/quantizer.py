"""What a quantizer's latent actions are worth, on the pairs of a corpus or of two paired views."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from data_pipelines.progress import Progress
from data_pipelines.rlds import schema
from lapa_jax.diagnostics.controls import fit_motion_codes
from lapa_jax.diagnostics.embodiment import code_agreement, cross_view_probe, linear_cka, retrieval
from lapa_jax.diagnostics.sample import Chains, Sample
from lapa_jax.evidence import measures, verdict
from lapa_jax.runs import examples
from lapa_jax.runs.loaded import LoadedQuantizer, Model, require

CAMERA_MOTION = schema.CAMERA_MOTION.removeprefix("steps/")


@dataclasses.dataclass(frozen=True)
class QuantizerEvaluation:
    report: dict[str, Any]
    sample: Sample


def evaluate_quantizer(
    run: Model,
    corpus: Mapping[str, Any],
    *,
    max_pairs: int,
    deep: bool = False,
    held_out: bool = False,
) -> QuantizerEvaluation:
    """All that evidence/measures.py has, with episode-bootstrap 95 % intervals; without `deep` what
    takes seconds. Of a bottleneck that stays continuous all but code usage, with its latent in the
    place of z.

    Takes at most `max_pairs` pairs, evenly spread over the corpus; `held_out`: over its episodes
    that the training did not draw from. `seen_in_training` is the share of the pairs whose episodes
    it did draw from, and `verdict` what the thresholds of evidence/verdict.py say.
    """
    require(run, LoadedQuantizer)
    source = examples.Pairs(run.config, corpus, held_out=held_out)
    every = max(1, -(-len(source.rows) // max_pairs))
    rows = source.rows[::every]

    model = run.stage.model_config
    features = model.predicts == "features"
    native = run.config.model.architecture == "native"

    @jax.jit
    def reconstruct(params, variables, first, last, other):
        read = run.stage.read(params, variables, first, last)
        recon = run.stage.decode_latent(params, variables, first, read.received_BLQ)
        exchanged = run.stage.decode_latent(params, variables, first, read.received_BLQ[other])
        before, goal = (run.stage.target(params, variables, x) for x in (first, last))

        def missed(drawn):
            return jnp.mean(jnp.square(drawn - goal), (1, 2, 3))

        errors = jnp.stack([missed(recon), missed(before)], axis=1)
        codes = () if read.z_BL is None else (read.z_BL,)
        kept = errors if features else recon
        return kept, missed(exchanged), read.latent_BLQ, read.received_BLQ, *codes

    kept, rng = [], np.random.default_rng(0)
    with Progress(f"read {Path(source.index.directory).name}", len(rows), unit="pair") as bar:
        bar.waits()
        for batch in source.batches(rows):
            other = np.arange(len(batch.frames))
            other[: batch.size] = rng.permutation(batch.size)
            outputs = reconstruct(run.params, run.variables, batch.first, batch.last, other)
            arrays = (batch.first, batch.last, *outputs)
            first, last, *outputs = (np.asarray(x)[: batch.size][batch.good] for x in arrays)
            kept.append((first, last, batch.rows[batch.good], *outputs))
            bar.update(batch.size)
    first, last, rows, drawn, exchanged, latents, received, *codes = (
        np.concatenate(x) for x in zip(*kept, strict=True)
    )
    actions = source.actions(rows)
    of_camera = source.index.action_key == CAMERA_MOTION  # read in the place of actions
    sample = Sample(
        first=first,
        last=last,
        recon=None if features else drawn,
        errors=drawn if features else None,
        z=codes[0] if codes else None,
        actions=actions,
        camera_motion=actions if of_camera else None,
        latents=latents,
        episode=source.index.episode_of_rows(rows[:, 0]),
        exchanged_mse=exchanged,
        received=received,
        codebook_size=model.codebook_size,
        decode=_asked(run, run.stage.decode_latent),
        target=_asked(run, run.stage.target) if features else None,
        read=_asked(run, lambda *given: tuple(run.stage.read(*given))),
        compose=_asked(run, run.stage.compose) if native else None,
        chains=_chains(source, max_pairs // 4) if deep else None,
    )
    if sample.z is None:
        logging.warning(
            "%s has no codes: nothing is told of their use",
            model.continuous,
        )
    if deep and not measures.enough_episodes(sample):
        logging.warning(
            "%d episodes: what z holds is not measured, which takes %d to test on others",
            sample.episodes,
            measures.MIN_EPISODES,
        )
    seen = examples.drawn_in_training(run.config, source.index)[sample.episode]
    report = {
        "pairs": len(rows),
        "episodes": sample.episodes,
        "seen_in_training": float(seen.mean()),
        "window_seconds": source.window_seconds,
        **measures.measure(sample, deep=deep),
    }
    return QuantizerEvaluation(report | {"verdict": verdict.verdict(report)}, sample)


def _asked(run: Model, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the run's stage, compiled, as a function of what it takes beside parameters."""
    return jax.tree_util.Partial(jax.jit(method), run.params, run.variables)


def _chains(source: examples.Pairs, count: int) -> Chains | None:
    """At most `count` chains of the corpus; None where no episode is long enough for one."""
    rows, at = source.chains(count)
    if not len(rows):
        logging.warning("no episode is two windows long: nothing is told of chains of pairs")
        return None
    kept = []
    with Progress("read chains", len(rows), unit="chain") as bar:
        for batch in source.batches(rows):
            good = batch.frames[: batch.size][batch.good]
            kept.append((good, batch.rows[batch.good]))
            bar.update(batch.size)
    frames, rows = (np.concatenate(x) for x in zip(*kept, strict=True))
    episode = source.index.episode_of_rows(rows[:, 0])
    return Chains(frames, at, episode, source.moved(rows))


def same_actions(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether both may be the actions of the same episodes: views of one have its actions, or, of
    another robot, actions of another width, or none."""
    if one is None or other is None or one.shape[1] != other.shape[1]:
        return True
    return one.shape == other.shape and np.allclose(one, other, equal_nan=True)


def evaluate_paired_views(one: Sample, other: Sample) -> dict[str, Any]:
    """Whether the same motion in two views is the same latent action: corpora that hold the same
    episodes, as `lapa data collect --views A,B` writes them. Controls: codes by k-means of the
    change of the frames, fitted in the first view."""
    if len(one.episode) != len(other.episode) or (one.episode != other.episode).any():
        raise ValueError(
            f"the views are not paired: {len(one.episode)} and {len(other.episode)} pairs of "
            f"{len(np.unique(one.episode))} and {len(np.unique(other.episode))} episodes"
        )
    if not same_actions(one.actions, other.actions):
        raise ValueError("the views are not paired: their actions are not those of one episode")
    episode, size = one.episode, one.codebook_size
    latents = one.flat_latents, other.flat_latents
    report: dict[str, Any] = {
        "windows": len(episode),
        "retrieval_at_1": retrieval(*latents, episode, seed=0),
        "cka": linear_cka(*latents),
    }
    if one.z is not None:
        report["codes"] = code_agreement(one.z, other.z, episode, size, seed=0)
        motion = fit_motion_codes(one.first, one.last, episode, size, seed=0)
        codes = (motion(view.first, view.last) for view in (one, other))
        report["motion_kmeans"] = code_agreement(*codes, episode, size, seed=0)
    if one.actions is not None:
        report["probe"] = cross_view_probe(
            one.latent_action, other.latent_action, one.actions, episode, seed=0
        )
    return report
