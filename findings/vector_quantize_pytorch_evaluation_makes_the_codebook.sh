#!/usr/bin/env bash
# A codebook of vector-quantize-pytorch is made of validation data where these are the first it sees.
#
# The guess: eval() and no_grad() leave a model as it is. Seen: with kmeans_init=True, which most
# recipes set against dead codes, the first batch makes the codebook whatever the mode is. Trainers
# that run a few batches of validation first (Lightning's sanity check), or a forward pass of zeros to
# count FLOPs or to export, choose all codes by them: of one batch of zeros come eight codes that are
# all zero, and training on real data then has all latents of the first step in one code.
# affine_param=True also adds two buffers to the state dict at the first batch, so that a checkpoint
# holds keys that a new model does not know.
#
# It matters for codes that were collapsed from the first step: look at `initted`, or make the first
# batch one of training.
#
# vector-quantize-pytorch 1.32.0, torch 2.13.0, Python 3.11. Seen:
#   eval() and no_grad() on zeros: changed cluster_size, initted (the codes are zeros as before)
#   codes in use in the first step of training: 1 of 8 after that, 8 of 8 without
#   affine_param, eval(): new keys batch_mean, batch_variance
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  vector-quantize-pytorch==1.32.0 torch==2.13.0
cat > "$folder/ask.py" <<'PYTHON'
import torch
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)
latents = torch.randn(4, 64, 4)


def looked_at(x: torch.Tensor, **options) -> tuple[VectorQuantize, list[str]]:
    """A new quantizer after one evaluation, and what that changed of its state."""
    quantizer = VectorQuantize(dim=4, codebook_size=8, **options).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    with torch.no_grad():
        quantizer(x)
    after = quantizer.state_dict()
    changed = [k for k in after if k not in before or not torch.equal(after[k], before[k])]
    return quantizer, sorted(key.removeprefix("_codebook.") for key in changed)


def in_use(quantizer: VectorQuantize) -> int:
    return len(quantizer.train()(latents)[1].unique())


seen, changed = looked_at(torch.zeros(1, 64, 4), kmeans_init=True)
print("eval() and no_grad() on zeros: changed", ", ".join(changed))
used = in_use(seen), in_use(VectorQuantize(dim=4, codebook_size=8, kmeans_init=True))
print(f"codes in use in the first step of training: {used[0]} of 8 after that, {used[1]} without")
assert changed == ["cluster_size", "initted"], "it has changed"
assert used == (1, 8), "it has changed"
assert looked_at(latents)[1] == []
_, new = looked_at(latents, affine_param=True)
print("affine_param, eval(): new keys", ", ".join(new))
assert new == ["batch_mean", "batch_variance"], "it has changed"
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
