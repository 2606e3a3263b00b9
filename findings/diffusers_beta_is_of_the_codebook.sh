#!/usr/bin/env bash
# beta of the vector quantizer of diffusers weighs the codebook, where VQ-VAE has it weigh the encoder.
#
# The guess: as in VQ-VAE (van den Oord et al. 2017, equation 3) the encoder is held to its code by
# beta = 0.25, and codes move to encodings by 1. Seen: the other way round. By default (legacy=True)
# encodings are pulled by 1 and codes by 0.25; and a VQModel cannot say otherwise. So an encoder of
# one's own with these layers, or a port that takes beta for the paper's, commits four times as
# hard and its codebook follows four times as slowly than said; a larger beta, the usual cure
# for encodings that run away, does not touch them.
#
# It helps to give VectorQuantizer legacy=False, and in a VQModel to set model.quantize.legacy.
#
# diffusers 0.42.1, torch 2.13.0 on a CPU, Python 3.11. Gradients, as parts of those of the mean square
# of encoding less code. Seen:
#   legacy:     beta 0.25: encoder 1.00, codebook 0.25; beta 4: encoder 1.00, codebook 4.00
#   not legacy: beta 0.25: encoder 0.25, codebook 1.00; beta 4: encoder 4.00, codebook 1.00
#   VQModel:    beta 0.25, legacy True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  diffusers==0.42.1 torch==2.13.0
cat > "$folder/ask.py" <<'PYTHON'
import torch
from diffusers import VQModel
from diffusers.models.autoencoders.vae import VectorQuantizer


def parts(beta, legacy):
    """Gradients of encodings and codes, each as a part of that of the plain mean square."""
    torch.manual_seed(0)
    layer = VectorQuantizer(8, 4, beta=beta, legacy=legacy)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes = layer.embedding.weight
    _, loss, (_, _, index) = layer(z)
    found = torch.autograd.grad(loss, (z, codes))
    chosen = codes[index].view(2, 3, 3, 4).permute(0, 3, 1, 2)
    plain = torch.autograd.grad(((z - chosen) ** 2).mean(), (z, codes))
    return [float((a * b).sum() / (b * b).sum()) for a, b in zip(found, plain)]


found = {}
for name, legacy in (("legacy", True), ("not legacy", False)):
    found[name] = [parts(beta, legacy) for beta in (0.25, 4)]
    told = ("encoder {:.2f}, codebook {:.2f}".format(*x) for x in found[name])
    print("{:<11} beta 0.25: {}; beta 4: {}".format(name + ":", *told))
layer = VQModel(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).quantize
print(f"VQModel:    beta {layer.beta}, legacy {layer.legacy}")
expected = torch.tensor([[[1, 0.25], [1, 4]], [[0.25, 1], [4, 1]]])
if not torch.tensor(list(found.values())).allclose(expected) or not layer.legacy:
    raise SystemExit("it has changed")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" 2> "$folder/said" || { cat "$folder/said"; exit 1; }
