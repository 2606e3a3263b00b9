"""Every foreign format. A new one is a file here, with `read`, `write` or both, and a line in
`FORMATS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lapa_jax.interop import (
    adaworld,
    alam,
    dinov2,
    hf,
    hf_llama,
    lapa_stream,
    laq_pt,
    laq_torch,
    lary,
    moto,
    plain,
    siglip,
    staged,
    univla,
    villax,
    vit_mae,
    vqgan,
)


@dataclass(frozen=True)
class NoOptions:
    """Of formats that take no flags."""


class Way(NamedTuple):
    """In or out of a format: `call(source, options) -> Imported`, or `call(run, out, options) ->
    int`, the number of tensors, which may take the run over."""

    what: str
    call: Callable[..., Any]
    options: type = NoOptions  # a dataclass of its flags
    one_file: bool = False  # what is written, beside what was compared


class Format(NamedTuple):
    read: Way | None = None
    write: Way | None = None


FORMATS = {
    "adaworld": Format(
        Way(
            "AdaWorld's latent action model, a quantizer without codes",
            adaworld.read,
            adaworld.Options,
        )
    ),
    "alam": Format(Way("ALAM's latent action tokenizer, a quantizer", alam.read, alam.Options)),
    "dinov2": Format(Way("a teacher, from Hugging Face's safetensors", dinov2.read)),
    "hf": Format(
        Way("a policy, from lapa export --format hf", hf.read),
        Way(
            "a policy for PyTorch, a Hugging Face directory with its own model file",
            hf.write,
            hf.Options,
        ),
    ),
    "hf_llama": Format(
        Way("a LLaMA from a Hugging Face directory", hf_llama.read, hf_llama.Options),
    ),
    "lapa_stream": Format(
        Way("the original's policy, streaming msgpack", lapa_stream.read, lapa_stream.Options)
    ),
    "laq_pt": Format(
        Way("the original's quantizer", laq_pt.read, laq_pt.Options),
        Way("the original's quantizer, a state dict", laq_pt.write, one_file=True),
    ),
    "laq_torch": Format(
        Way("a quantizer, from lapa export --format laq_torch", laq_torch.read),
        Way(
            "a quantizer for PyTorch, a directory with its own model file",
            laq_torch.write,
            staged.Options,
        ),
    ),
    "lary": Format(
        write=Way(
            "a quantizer's latents of LARYBench's data, for its probes", lary.write, lary.Options
        )
    ),
    "moto": Format(Way("Moto's latent motion tokenizer, a quantizer", moto.read, moto.Options)),
    "safetensors": Format(
        Way("any run, from lapa export --format safetensors", plain.read),
        Way("any run, plain arrays with our names", plain.write, staged.Options),
    ),
    "siglip": Format(Way("a teacher, SigLIP's image encoder", siglip.read)),
    "villax": Format(Way("villa-X's latent action model, a quantizer", villax.read)),
    "vit_mae": Format(Way("a teacher, a masked autoencoder's encoder", vit_mae.read)),
    "univla": Format(
        Way(
            "UniVLA's latent action model, a quantizer that predicts features",
            univla.read,
            univla.Options,
        )
    ),
    "vqgan_pickle": Format(Way("LWM's image tokenizer", vqgan.read)),
}
