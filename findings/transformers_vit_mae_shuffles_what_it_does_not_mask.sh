#!/usr/bin/env bash
# ViTMAEModel with mask_ratio 0 gives the patches of an image in another order at every call, in
# evaluation mode too.
#
# The guess: a masked autoencoder that masks nothing is a plain encoder. Token 1 + k is patch k, and
# two calls give the same.
#
# The patches are put in the order of fresh noise before as many as mask_ratio says are dropped, and
# nothing puts back what was kept. Each token is right, with its own position embedded, but its place
# among the others is drawn anew; the class token is not moved. With noise=0, 1, 2, ... in the call
# they come row by row. ids_restore of the output tells the order, and is easily overlooked.
#
# It matters where features of it are read by place: of a pair of frames (Moto's tokenizer), as dense
# features, with positions of one's own added.
#
# transformers 5.24.0, torch 2.13.0, CPU. Seen: two calls differ by up to 2.6; matched
# to their nearest, tokens by less than 1e-5; with noise in order not at all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 \
  transformers==5.24.0
cat > "$folder/ask.py" <<'PYTHON'
import torch
from transformers import ViTMAEConfig, ViTMAEModel

torch.manual_seed(0)
sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
model = ViTMAEModel(ViTMAEConfig(image_size=12, patch_size=4, mask_ratio=0.0, **sizes)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
image, order = torch.randn(1, 3, 12, 12), torch.arange(9.0)[None]
with torch.no_grad():
    one, other = (model(image).last_hidden_state[0] for _ in range(2))
    ordered = [model(image, noise=order).last_hidden_state for _ in range(2)]
apart = (one - other).abs().max().item()
matched = torch.cdist(one[1:], other[1:]).min(dim=1).values.max().item()
print(f"apart {apart:.2g}, matched {matched:.2g}")
if apart < 0.1 or matched > 1e-5 or not torch.equal(*ordered) or not one[0].allclose(other[0]):
    raise SystemExit("it has changed: tokens of two calls were the same but for their order")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
