"""`lapa export --format laq_torch`: a quantizer for PyTorch, compared with the one it was."""

import argparse
from pathlib import Path

import jax
import numpy as np

from lapa_jax.interop import laq_torch, safetensors_files, torch_code
from lapa_jax.interop.parity import LIMIT, Parity, clearly_different, difference, real_examples
from lapa_jax.interop.staged import exported_config, plain_stage, staged
from lapa_jax.latent import QuantizerConfig
from lapa_jax.runs.loaded import LoadedQuantizer, Model, require

PAIRS = 4  # random ones, and as many real ones


class Reference:
    """Frame pairs, and what our quantizer makes of them, in a compute dtype."""

    def __init__(self, run: Model, compute_dtype: str):
        stage = plain_stage(run, compute_dtype)
        self.config: QuantizerConfig = stage.model_config
        rng, shape = np.random.default_rng(0), (PAIRS, 2, *self.config.image_size, 3)
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
        real, self.real_inputs = real_examples(run.config.data, ("frames",), PAIRS)
        if real is not None:
            frames = np.concatenate([frames, real["frames"][:, :2]])
        self.first, self.last = frames[:, 0], frames[:, 1]
        weights = (run.params, run.variables)
        with jax.default_matmul_precision("highest"):
            found = jax.jit(stage.read)(*weights, self.first, self.last)
            self.latent, received = (np.asarray(x) for x in found[1:])
            self.z = self.latent if found.z_BL is None else np.asarray(found.z_BL)
            frames = jax.jit(stage.decode_latent)(*weights, self.first, received)
            self.decoded = {"frames": (self.z, np.asarray(frames))}
            if self.config.has_codes:
                # Codes in a row, whatever the frames give.
                z = np.arange(self.z.size).reshape(self.z.shape) % self.config.codebook_size
                frames = jax.jit(stage.decode)(*weights, self.first, z)
                self.decoded["frames_of_given_codes"] = (z, np.asarray(frames))
                found, _ = stage.model.apply(*weights, "nearness", self.latent)
                self.place, self.points = (np.asarray(x) for x in found)


def write(run: Model, out: Path, args: argparse.Namespace) -> str:
    require(run, LoadedQuantizer)
    torch_code.require_torch()
    config, dtype = exported_config(run, args.precision)
    model = run.stage.model_config
    tensors = safetensors_files.mapped(
        run.params, run.variables, laq_torch.rules(model), laq_torch.sizes(model), dtype
    )
    exact = Reference(run, "float32")
    rough = Reference(run, "bfloat16") if run.config.compute_dtype == "bfloat16" else None
    count = len(tensors)
    with staged(out, run) as (directory, parity):
        laq_torch.write(directory, model, config, tensors)
        del tensors
        run.params.clear()  # the model is in memory once: from here on it is PyTorch's
        run.variables.clear()
        check(parity, directory, exact, rough)
    return f"{count} tensors"


def check(parity: Parity, directory: Path, exact: Reference, rough: Reference | None) -> None:
    """In float32 codes (or latents) and frames must agree; how often codes in bfloat16 do is
    told."""
    model = laq_torch.load(directory)
    apart = difference(model.latent(exact.first, exact.last).numpy(), exact.latent)
    parity.stated |= {"random_inputs": PAIRS, "real_inputs": exact.real_inputs}
    if not exact.config.has_codes:
        parity.at_most("latents", apart, LIMIT)
    else:
        z = model.encode(exact.first, exact.last).numpy()
        different = clearly_different(z, exact.z, exact.place, exact.points)
        parity.at_most("codes_that_differ", different, 0)
        parity.stated |= {"latents": apart, "equal_codes": float((z == exact.z).mean())}
        if rough is not None:
            parity.stated["codes_equal_to_those_in_bfloat16"] = float((z == rough.z).mean())
    for name, (z, ours) in exact.decoded.items():
        found = model.decode(exact.first, z).numpy()
        parity.at_most(name, difference(found, ours, at_least=1.0), LIMIT)
