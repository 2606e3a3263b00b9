"""Label sets that no quantizer learnt, in the place of one that did.

What a policy gains from a quantizer's latent actions is what it gains beyond these: "shuffled", the
labels of a finished set at other frames of the corpus; "random", codes drawn evenly; "kmeans", the
nearest of K mean changes between the two frames (diagnostics/controls.py). "oracle" tells of the
true motion what as many codes can: the nearest of K mean motions between the two frames.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines import sidecar
from data_pipelines.index.labels import LabelSet, LabelSetWriter
from lapa_jax.diagnostics.controls import MotionCodes, fit_motion_codes
from lapa_jax.diagnostics.threads import one_thread
from lapa_jax.runs.examples import Pairs
from lapa_jax.runs.loaded import Model
from lapa_jax.version import __version__

KINDS = ("shuffled", "random", "kmeans", "oracle")
FITTED = 4000  # pairs at most that k-means is fitted to


def write_controls(
    kind: str,
    run: Model,
    label_set: str,
    name: str,
    corpora: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
) -> None:
    """Writes the set `name` beside the set `label_set`, which `run` made of each of the corpora
    (keys as under data.corpora): at the same frames, of the same code length and codebook.

    k-means is fitted in the first corpus, so that a code means the same in all. Raises ValueError
    for sets of vectors, which can be shuffled alone, for k-means of several codes, and for "oracle"
    in a corpus without actions.
    """
    if kind not in KINDS:
        raise ValueError(f"control={kind!r} must be one of {KINDS}")
    motion = told = None
    for corpus in corpora.values():
        pairs = Pairs(run.config, dict(corpus))
        made = LabelSet.open(pairs.index.sidecar_dir, label_set, pairs.index)
        labels = made.labels(np.arange(pairs.index.num_frames))
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        if kind == "shuffled":
            labels[made.valid] = rng.permutation(labels[made.valid])
        elif made.codebook_size is None:
            raise ValueError(f"{made.folder} holds vectors: of these only 'shuffled' can be made")
        elif kind == "random":
            labels[made.valid] = rng.integers(0, made.codebook_size, labels[made.valid].shape)
        elif made.code_length > 1:
            raise ValueError(f"{made.folder} has {made.code_length} codes a frame, k-means has 1")
        elif kind == "oracle":
            motions = pairs.actions(pairs.rows)
            if motions is None:
                raise ValueError(f"{pairs.index.directory} has no actions, which 'oracle' is of")
            told = told or _means(motions, made.codebook_size, seed)
            known = made.valid[pairs.rows[:, 0]]
            labels[pairs.rows[known, 0]] = told(motions[known])
        else:
            motion = motion or _fitted(pairs, made.codebook_size, seed)
            labels[made.valid] = -1  # where the frames cannot be decoded, too
            for batch in pairs.batches(pairs.rows):
                codes = motion(batch.first, batch.last)[: batch.size]
                labels[batch.rows[batch.good, 0]] = codes[batch.good]
        origin = [kind, seed, made.provenance["quantizer_hash"]]
        provenance = {
            key: made.provenance[key]
            for key in ("window_seconds", "tail", "code_length", "codebook_size", "width")
            if key in made.provenance
        }
        provenance |= {
            "quantizer_hash": sidecar.value_hash(origin),
            "control": kind,
            "seed": seed,
            "label_set": label_set,
            "code_version": __version__,
        }
        index = pairs.index
        with LabelSetWriter(index.sidecar_dir, name, index, provenance=provenance) as writer:
            for shard in writer.claim(writer.missing_shards()):
                rows = index.rows_of_shard(shard)
                writer.write_shard(shard, labels[rows.start : rows.stop])
            writer.finish()


def _means(
    motions: np.ndarray, codebook_size: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """From motions (N, A) to the nearest of K means of these, int64 (N, 1), all dimensions in units
    of their standard deviation."""
    from sklearn.cluster import KMeans

    scale = motions.std(axis=0)
    scale[scale == 0] = 1.0
    rows = np.random.default_rng(seed).permutation(len(motions))[:FITTED]
    with one_thread():
        found = KMeans(codebook_size, n_init=4, random_state=seed).fit(motions[rows] / scale)
    return lambda given: found.predict(given / scale)[:, None]


def _fitted(pairs: Pairs, codebook_size: int, seed: int) -> MotionCodes:
    rows = pairs.rows[:: max(1, -(-len(pairs.rows) // FITTED))]
    batches = list(pairs.batches(rows))
    first, last = (
        np.concatenate([getattr(batch, name)[: batch.size][batch.good] for batch in batches])
        for name in ("first", "last")
    )
    episode = pairs.index.episode_of_rows(
        np.concatenate([batch.rows[batch.good, 0] for batch in batches])
    )
    return fit_motion_codes(first, last, episode, codebook_size, seed=seed)
