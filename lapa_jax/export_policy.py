"""`lapa export --format hf`: a policy for PyTorch, compared with the policy that it was."""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax import config as configs
from lapa_jax import runs, stages
from lapa_jax.export_files import exported_config, staged
from lapa_jax.interop import torch_policy
from lapa_jax.parity import LIMIT, Parity, difference
from lapa_jax.stages.policy import PolicyStage
from lapa_jax.tokens.layout import LEGACY_END_OF_FRAME
from lapa_jax.tokens.modality import MODALITIES

INSTRUCTIONS = ("pick up the red block and put it to the left of the bowl", "go", "")
ROWS, ROW_LENGTH = 4, 24  # of random tokens


class Reference:
    """Inputs, and what our policy makes of them, in a compute dtype."""

    def __init__(self, run: runs.Run, param_dtype: str, compute_dtype: str):
        config = configs.from_dict(configs.to_dict(run.config))
        config.compute_dtype, config.model.param_dtype = compute_dtype, param_dtype
        config.model.attention, config.model.remat = "xla", "none"
        stage = stages.build(config, run.assets)
        params = jax.tree.map(lambda x: jnp.asarray(x, param_dtype), run.params)
        rng = np.random.default_rng(0)
        present = [i for i, name in enumerate(MODALITIES) if stage.model_config.vocab(name)]
        self.modality = rng.choice(present, (ROWS, ROW_LENGTH))
        vocab = np.array([stage.model_config.vocab(name) for name in MODALITIES])
        self.tokens = rng.integers(0, vocab[self.modality])
        rows = [jnp.asarray(x, jnp.int32) for x in (self.tokens, self.modality)]
        heads = {MODALITIES[i]: None for i in present}
        run_rows = jax.jit(
            lambda params, *rows: stage.model.apply(
                params, run.variables, "logits", *rows, jnp.ones_like(rows[0]), slots=heads
            )[0]
        )
        self.logits = {k: np.asarray(x) for k, x in run_rows(params, *rows).items()}
        self.instructions = [text for text in INSTRUCTIONS if _fits(stage, text)]
        B, N = len(self.instructions), stage.num_images
        ids = None
        if stage.from_pixels:
            shape = (B, N, *run.config.data.image_size, 3)
            self.images = images = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            codes = min(stage.model_config.image_vocab, LEGACY_END_OF_FRAME)
            shape = (B, N, stage.layout.tokens_per_image)
            self.images, images = rng.integers(0, codes, shape, dtype=np.int32), None
            ids = self.images
        predict = jax.jit(stage.predict)
        prompts = stage.prompts(self.instructions, ids)
        found, chosen_by = predict(params, run.variables, prompts, images)
        self.ids, self.chosen_by = np.asarray(found), np.asarray(chosen_by)
        self.head = stage.head
        self.actions = stage.actions.decode(self.ids) if stage.head == "action" else None


def _fits(stage: PolicyStage, instruction: str) -> bool:
    layout = stage.layout
    ids = None
    if not stage.from_pixels:
        ids = np.zeros((layout.num_images, layout.tokens_per_image), np.int32)
    try:
        layout.prompt(instruction, ids)
    except ValueError:  # too long
        return False
    return True


def write(run: runs.Run, out: Path, args: argparse.Namespace) -> str:
    if not isinstance(run.stage, PolicyStage):
        raise ValueError(f"{run.workdir} is a run of stage {run.config.stage!r}, not a policy")
    stage = run.stage
    config, dtype = exported_config(run, args.precision)
    theirs = torch_policy.hf_config(
        stage.model_config,
        stage.layout,
        head=stage.head,
        limits=stage.limits,
        image_size=run.config.data.image_size,
        dtype=dtype,
    )
    tensors = torch_policy.tensors(stage.model_config, run.params, run.variables, dtype)
    count = len(tensors)
    exact = Reference(run, dtype.name, "float32")
    in_bfloat16 = "bfloat16" in (run.config.compute_dtype, dtype.name)
    rough = Reference(run, dtype.name, "bfloat16") if in_bfloat16 else None
    with staged(out, run) as (directory, parity):
        torch_policy.write(directory, theirs, config, run.assets, tensors)
        del tensors
        run.params.clear()  # the model is in memory once: from here on it is PyTorch's
        check(parity, directory, exact, rough)
    return f"{count} tensors"


def check(parity: Parity, directory: Path, exact: Reference, rough: Reference | None) -> None:
    """In float32 everything must agree; in bfloat16 how often the likeliest token does is told."""
    model = torch_policy.load(directory, "float32")
    rounding = model.config.lapa["rope_rounding"]
    model.config.lapa["rope_rounding"] = "float32"  # as ours where it computes in float32
    for name, found in _logits(model, exact).items():
        parity.at_most(f"{name}_logits", difference(found, exact.logits[name]), LIMIT)
    predict = getattr(model, f"predict_{exact.head}")
    ids = model._predict(exact.head, exact.images, exact.instructions)
    parity.at_most("tokens_that_differ", _not_tied(ids, exact), 0)
    same = (ids == exact.ids).all(axis=1)
    parity.stated |= {
        "instructions": exact.instructions,
        "examples_with_equal_tokens": float(same.mean()),
    }
    if exact.actions is not None:
        found = predict(exact.images, exact.instructions)
        worst = np.abs(found - exact.actions)[same].max(initial=0.0)
        parity.at_most("actions", worst / np.abs(exact.actions).max(), 1e-6)
    if rough is None:
        return
    import torch

    model.config.lapa["rope_rounding"] = rounding
    model.to(torch.bfloat16)
    for name, found in _logits(model, rough).items():
        ours = rough.logits[name]
        parity.stated[f"bfloat16_{name}"] = {
            "argmax_agreement": float((found.argmax(-1) == ours.argmax(-1)).mean()),
            "logits_difference": difference(found, ours),
        }


def _logits(model: Any, reference: Reference) -> dict[str, np.ndarray]:
    found = model.logits(reference.tokens, reference.modality)
    return {name: x.float().numpy() for name, x in found.items()}


def _not_tied(ids: np.ndarray, exact: Reference) -> int:
    """Examples whose first different token was clearly less likely; what follows one depends on
    it."""
    wrong = 0
    for found, ours, logits in zip(ids, exact.ids, exact.chosen_by, strict=True):
        different = np.flatnonzero(found != ours)
        if len(different):
            at = different[0]
            margin = logits[at, ours[at]] - logits[at, found[at]]
            largest = np.abs(logits[at][np.isfinite(logits[at])]).max()
            wrong += bool(not margin <= LIMIT * largest)
    return wrong
