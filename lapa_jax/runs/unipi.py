"""UniPi (Du et al. 2023), small: what a robot is to do is drawn, and the action read off it.

A policy of latent actions says z of the frame and the instruction, the quantizer that z is of draws
the frame a window later, and an inverse dynamics model of the same window says which action leads
there. No video diffusion: one frame is drawn, by the quantizer's decoder. Nothing is trained here;
what is made of the three runs acts where an action policy does.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from lapa_jax.policy.heads import Head
from lapa_jax.policy.state import StateInput
from lapa_jax.runs.examples import trained_window
from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer, Model
from lapa_jax.stages.policy import PolicyStage
from lapa_jax.stages.quantizer import QuantizerStage


def check_quantizer(policy: Model, quantizer: LoadedQuantizer) -> None:
    """Raises ValueError unless the quantizer decodes what the policy predicts."""
    decoded, head = policy.stage.head.describe(), policy.stage.head
    if head.acts:
        raise ValueError("--quantizer decodes latent actions, and this policy predicts actions")
    own = quantizer.stage.model_config
    if own.predicts != "pixels":
        raise ValueError(f"--quantizer predicts {own.predicts}: it draws no frames")
    pairs = [("image_size", tuple(quantizer.image_size), tuple(policy.config.data.image_size))]
    pairs += [("code_length", quantizer.code_length, policy.config.code_length)]
    if own.has_codes:
        pairs += [("codebook_size", quantizer.codebook_size, decoded.get("codebook_size"))]
    else:
        pairs += [("quant_dim", own.quant_dim, decoded.get("dim"))]
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise ValueError(f"--quantizer: its {what} is {theirs}, the policy's is {ours}")
    hashes = {labels["quantizer_hash"] for labels in _label_sets(policy)}
    if not hashes:
        logging.warning("the run records no label sets: whether --quantizer is theirs is not known")
    if hashes - {quantizer.params_hash}:
        raise ValueError(
            f"--quantizer: its hash is {quantizer.params_hash}, but the policy learnt labels "
            f"of {sorted(hashes)}"
        )


def check_inverse(
    inverse: LoadedPolicy, image_size: tuple[int, int], windows: Collection[float]
) -> None:
    """Raises ValueError unless it says the action between two frames of `image_size` that are as
    far apart, in seconds, as z leads: `windows`, one or a contradiction."""
    where = f"--inverse_dynamics {inverse.workdir}"
    if not inverse.stage.inverse_dynamics:
        raise ValueError(f"{where}: it has model.inverse_dynamics=False and sees no later frame")
    size, cameras = tuple(inverse.config.data.image_size), inverse.stage.num_cameras
    if size != image_size or cameras > 1:
        raise ValueError(
            f"{where}: it sees {cameras} cameras of {size}; one frame of {image_size} is drawn"
        )
    ahead, own = {round(w, 6) for w in windows}, round(trained_window(inverse.config), 6)
    if ahead != {own}:
        raise ValueError(
            f"{where} was trained on frames {own} s apart "
            f"(data.corpora.<name>.window_seconds), but z leads {sorted(ahead)} s ahead"
        )


def compose(policy: LoadedPolicy, quantizer: LoadedQuantizer, inverse: LoadedPolicy) -> Model:
    """What `evidence.policy.evaluate_success` takes. Raises ValueError where one of the three is of
    another kind, another window, or another size of images than the others."""
    check_quantizer(policy, quantizer)
    if policy.stage.num_images > 1 or not policy.stage.from_pixels:
        raise ValueError(
            f"{policy.workdir}: predicted frames are for a policy that takes one image, as pixels"
        )
    size = tuple(quantizer.image_size)
    frame = jax.eval_shape(
        lambda held, x: quantizer.stage.decode_latent(
            *held, x, quantizer.stage.read(*held, x, x).received_BLQ
        ),
        (quantizer.params, quantizer.variables),
        jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8),
    )
    if frame.shape != (1, *size, 3):
        raise ValueError(
            f"--quantizer {quantizer.workdir}: its decoder gives {list(frame.shape[1:])} numbers, "
            "not a picture: no action can be read off it"
        )
    said = {labels["window_seconds"] for labels in _label_sets(policy)}
    check_inverse(inverse, size, said or {trained_window(quantizer.config)})
    runs = {"policy": policy, "quantizer": quantizer, "inverse": inverse}
    return Model(
        config=inverse.config,
        stage=DrawsAndReads(policy.stage, quantizer.stage, inverse.stage),
        params={name: run.params for name, run in runs.items()},
        variables={name: run.variables for name, run in runs.items()},
        workdir=policy.workdir,
        step=policy.step,
        provenance=inverse.provenance,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DrawsAndReads:
    """The three stages, as far as a policy's is asked to act; `params` and `variables` are by their
    names."""

    policy: PolicyStage
    quantizer: QuantizerStage
    inverse: PolicyStage
    acts = True
    inverse_dynamics = False
    num_images = 1

    @property
    def head(self) -> Head:
        """That says actions."""
        return self.inverse.head

    @property
    def draws(self) -> bool:
        return self.policy.draws or self.inverse.draws

    @property
    def state(self) -> StateInput | None:
        return self.policy.state

    def check_sampling(self, temperature: float, top_k: int) -> None:
        self.policy.check_sampling(temperature, top_k)

    def prompts(
        self, instructions: Sequence[str], *, own: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        return self.policy.prompts(instructions, own=own)

    def act(
        self,
        params: Mapping[str, Any],
        variables: Mapping[str, Any],
        prompts: Mapping[str, jax.Array],
        images: jax.Array,
        **options: Any,
    ) -> jax.Array:
        """Actions float32 (B, action_dim) of frames uint8 (B, 1, H, W, 3); options as of
        `PolicyStage.predict`, for z."""
        first, key = images[:, 0], {name: x for name, x in options.items() if name == "key"}
        later = self.draw(params, variables, prompts, first, **options)
        pair = jnp.stack([first, later], axis=1)
        held = params["inverse"], variables["inverse"]
        # Constants of which XLA would otherwise compute what it can while it compiles: for seconds.
        asked = jax.lax.optimization_barrier(self.inverse.prompts([""] * len(first)))
        return self.inverse.act(*held, asked, pair, **(key if self.inverse.draws else {}))

    def draw(
        self,
        params: Mapping[str, Any],
        variables: Mapping[str, Any],
        prompts: Mapping[str, jax.Array],
        first: jax.Array,
        **options: Any,
    ) -> jax.Array:
        """The later frames uint8 (B, H, W, 3): what the decoder gives, in the range of pictures."""
        if not (self.policy.draws or options.get("temperature")):
            options.pop("key", None)
        held = params["policy"], variables["policy"]
        z = self.policy.predict(*held, prompts, first[:, None], **options).values
        has_codes = self.quantizer.model_config.has_codes
        decode = self.quantizer.decode if has_codes else self.quantizer.decode_latent
        drawn = decode(params["quantizer"], variables["quantizer"], first, z)
        return jnp.round(jnp.clip(drawn, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _label_sets(policy: Model) -> list[Mapping[str, Any]]:
    return list(policy.provenance.get("label_sets", {}).values())
