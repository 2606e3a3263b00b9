"""What is done apart from who does it, by two contrasts (Bridging the Embodiment Gap).

Shape suffixes: see base.py; V views of a clip, N = B·V clips, E embedding width.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from lapa_jax.latent.attention import l2_normalize
from lapa_jax.latent.encoder import Pairs, flat
from lapa_jax.latent.objectives.base import Objective, by_view, mean_squared_error
from lapa_jax.nn.image_changes import DRAWS, CropAndColour, changed
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class FactorisedConfig:
    """What stands for the same motion, and how much the contrasts count."""

    positives: Annotated[
        str,
        ("augmented", "views"),
        "the same motion is shown by the clip with another crop and other colours, or by its other "
        "cameras, as of a hand and of a robot (data.corpora.*.extra_image_keys)",
    ] = "augmented"
    embed_dim: Annotated[int, "[1, 65536]", "width of what is compared"] = 32
    temperature: Annotated[float, "(0, 1e6]", "divides cosine similarities"] = 0.1
    task_weight: Annotated[float, "[0, 1e6]", "of the contrast of motions in the loss"] = 0.003
    body_weight: Annotated[float, "[0, 1e6]", "of the contrast of bodies in the loss"] = 0.003


class Factorised(Objective):
    """A task latent, which is that of the pair and goes through the bottleneck, and an embodiment
    latent, which is read off the first frame alone. Each has a contrast of its own over the batch:

        task: the pair's latent is nearer to that of the same motion, shown otherwise, than to those
        of other motions (InfoNCE, both ways)
        embodiment: the frame's latent is nearer to those of other clips of its body than to those
        of others' (supervised contrast, Khosla et al. 2020); a body is a corpus, and with
        positives="views" a camera of a corpus

    Where a batch shows one body the second has nothing to compare and is 0. Labels are the codes of
    the task latent. Of the paper this keeps the two latents and the two contrasts; the decoder is
    not given the embodiment latent, as its first frame shows the body.
    """

    def __init__(self, settings, config, *, rngs):
        E = settings.embed_dim
        self.task = Dense(
            (config.code_length, config.quant_dim),
            (E,),
            (None, None, None),
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.body = Dense((config.dim,), (E,), ("embed", None), dtype=jnp.float32, rngs=rngs)
        self.settings, self.frames_of_clip = settings, config.num_frames

    @classmethod
    def views(cls, settings):
        return settings.positives == "views"

    @classmethod
    def columns(cls, settings):
        return {"corpus": jax.ShapeDtypeStruct((), jnp.int32)}

    def __call__(self, model, batch, *, train, rng=None):
        frames, settings = batch["frames"], self.settings
        B = len(frames)
        if settings.positives == "views":
            clips = by_view(frames, self.frames_of_clip)
            V = shown = clips.shape[1]
        else:  # in evaluation the changes are the same each time
            key = jax.random.key(0) if rng is None else jax.random.fold_in(rng, 1)
            clips, V, shown = jnp.stack([frames, _otherwise(frames, key)], axis=1), 2, 1
        pairs = model.pairs(flat(clips), train=train)
        latent = pairs.latent_MLQ.reshape(B, V, -1, *pairs.latent_MLQ.shape[1:])

        def of_shown(x):
            """Of the clips that are drawn: all cameras, but none that was changed."""
            x = x.reshape(B, V, -1, *x.shape[1:])[:, :shown]
            return x.reshape(-1, *x.shape[3:])

        embedded = pairs.embedded_BTHWD.reshape(B, V, *pairs.embedded_BTHWD.shape[1:])
        pairs = Pairs(
            of_shown(pairs.first_MIJC),
            of_shown(pairs.last_MIJC),
            flat(embedded[:, :shown]),
            of_shown(pairs.latent_MLQ),
        )
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, out.z_q_BLD))
        task, found = self._task(latent)
        first_NIJC = flat(clips[:, :shown, 0])
        seen_NHWD = model.encode_frame(first_NIJC).astype(jnp.float32)
        body_NE = l2_normalize(self.body(seen_NHWD.mean(axis=(1, 2))))
        whose_N = (batch["corpus"][:, None] * shown + jnp.arange(shown)).reshape(-1)
        body, same = supervised_contrast(body_NE, whose_N, settings.temperature)
        loss = mean_squared_error(recon, pairs.last_MIJC)
        loss = loss + settings.task_weight * task + settings.body_weight * body
        metrics = {
            "task_contrast": task,
            "task_retrieval": found,
            "body_contrast": body,
            "body_retrieval": same,
        }
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)

    def _task(self, latent_BVMLQ: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(InfoNCE between neighbouring views, share of motions whose nearest is their own), of the
        first pair of each clip."""
        embedded_BVE = l2_normalize(self.task(latent_BVMLQ[:, :, 0]))
        total, hits, V = 0.0, 0.0, latent_BVMLQ.shape[1]
        for v in range(V):
            one, other = embedded_BVE[:, v], embedded_BVE[:, (v + 1) % V]
            for logits in (one @ other.T, other @ one.T):
                labels = jnp.arange(len(logits))
                error = optax.softmax_cross_entropy_with_integer_labels(
                    logits / self.settings.temperature, labels
                )
                total = total + jnp.mean(error) / (2 * V)
                hits = hits + jnp.mean(jnp.argmax(logits, axis=-1) == labels) / (2 * V)
        return total, hits


def supervised_contrast(
    x_NE: jax.Array, label_N: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """(contrast of unit vectors by label, share whose nearest has their label), of those that have
    both another of their label and one of another; 0 where there are none."""
    same_NN = label_N[:, None] == label_N
    self_NN = jnp.eye(len(label_N), dtype=bool)
    alike_NN = same_NN & ~self_NN
    counted_N = alike_NN.any(axis=1) & ~same_NN.all(axis=1)
    logits_NN = jnp.where(self_NN, -1e9, x_NE @ x_NE.T / temperature)
    of_others_NN = jax.nn.log_softmax(logits_NN, axis=1)
    said_N = jnp.sum(jnp.where(alike_NN, of_others_NN, 0.0), axis=1)
    error_N = -said_N / jnp.maximum(alike_NN.sum(axis=1), 1)
    hit_N = jnp.take_along_axis(same_NN, jnp.argmax(logits_NN, axis=1)[:, None], axis=1)[:, 0]
    count = jnp.maximum(counted_N.sum(), 1)
    error = jnp.sum(jnp.where(counted_N, error_N, 0.0)) / count
    return error, jnp.sum(counted_N & hit_N) / count


def _otherwise(frames_BTIJC: jax.Array, key: jax.Array) -> jax.Array:
    """Every clip with a crop and colours of its own, all of its frames alike."""
    numbers = jax.random.uniform(key, (len(frames_BTIJC), DRAWS))
    settings = CropAndColour(colour_fraction=1.0)
    return jax.vmap(lambda n, clip: changed(settings, n, clip))(numbers, frames_BTIJC)
