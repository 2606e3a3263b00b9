#!/usr/bin/env bash
# A codebook of vector-quantize-pytorch that eval() froze freezes the encoder before it, too.
#
# The guess: quantizer.eval() in a model that goes on training stops what train() starts, the moving
# averages of the codebook, and leaves the straight-through gradient, as freezing a normalisation
# layer does. Seen: in evaluation mode VectorQuantize, ResidualVQ and LFQ pass no gradient on. The
# decoder learns, the encoder and all before it have gradients of None, and no error says so, as the
# loss still depends on the decoder. The commitment loss is 0 as well. FSQ and SimVQ pass gradients
# on in either mode; freeze_codebook=True in training mode does what was meant.
#
# It matters where a latent action model is fine-tuned on other videos with its codes kept.
#
# vector-quantize-pytorch 1.32.0, torch 2.13.0, Python 3.11. Seen, norm of the gradient:
#   VectorQuantize, train():           encoder > 0, decoder > 0
#   VectorQuantize, eval():            encoder None, decoder > 0
#   VectorQuantize, freeze_codebook:   encoder > 0, decoder > 0; the codebook is as it was
#   ResidualVQ, eval():                encoder None, decoder > 0
#   LFQ, eval():                       encoder None, decoder > 0
#   FSQ, eval():                       encoder > 0, decoder > 0
#   SimVQ, eval():                     encoder > 0, decoder > 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  vector-quantize-pytorch==1.32.0 torch==2.13.0
cat > "$folder/ask.py" <<'PYTHON'
import torch
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize

torch.manual_seed(0)
plain = {"dim": 4, "codebook_size": 8}
CASES = [
    ("VectorQuantize, train()", VectorQuantize(**plain).train(), True),
    ("VectorQuantize, eval()", VectorQuantize(**plain).eval(), False),
    ("VectorQuantize, freeze_codebook", VectorQuantize(**plain, freeze_codebook=True), True),
    ("ResidualVQ, eval()", ResidualVQ(**plain, num_quantizers=2).eval(), False),
    ("LFQ, eval()", LFQ(codebook_size=16, dim=4).eval(), False),
    ("FSQ, eval()", FSQ([8, 5], dim=4).eval(), True),
    ("SimVQ, eval()", SimVQ(**plain).eval(), True),
]
frames = torch.randn(2, 64, 6)
for name, quantizer, passes in CASES:
    before = {key: x.clone() for key, x in quantizer.state_dict().items()}
    encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(4, 6)
    quantized = quantizer(encoder(frames))[0]
    (decoder(quantized) - frames).square().mean().backward()
    gradients = [layer.weight.grad for layer in (encoder, decoder)]
    said = ["None" if g is None else "> 0" if g.norm() > 0 else "0" for g in gradients]
    print(f"{name}: encoder {said[0]}, decoder {said[1]}")
    assert said == ["> 0" if passes else "None", "> 0"], "it has changed"
    same = all(torch.equal(x, before[key]) for key, x in quantizer.state_dict().items())
    assert same == (name != "VectorQuantize, train()")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
