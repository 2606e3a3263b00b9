#!/usr/bin/env bash
# The same LLaMA weights in bfloat16 are two models, by the way they came to be bfloat16.
#
# The guess: model.bfloat16() (or .to(torch.bfloat16)) of a loaded model is what
# from_pretrained(..., dtype=torch.bfloat16) gives. Weights are. But the frequencies of the rotary
# position embedding are a buffer: loading in bfloat16 leaves them float32, a cast rounds them, too,
# to 8 bits, which is off by up to 0.4 %, and they are then multiplied by positions: at position 1,000
# an angle is off by more than a radian. Tokens far apart, as words are from the first of hundreds of
# tokens of images, have distances that nobody trained. Nothing says so, and short prompts look right.
#
# It helps to load in the type wanted; and casting to bfloat16 and back to float32 does not undo it.
#
# transformers 5.24.0, torch 2.13.0 on a CPU, Python 3.11. Heads of 128, base 10,000: the largest
# error of an angle over all frequencies. Seen:
#   loaded in bfloat16: frequencies float32, at position 100 off by 0.000 rad, at 1000 by 0.000 rad
#   cast to bfloat16: frequencies bfloat16, at position 100 off by 0.122 rad, at 1000 by 1.223 rad
#   cast and cast back: frequencies float32, at position 100 off by 0.122 rad, at 1000 by 1.223 rad
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 \
  transformers==5.24.0
cat > "$folder/ask.py" <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=64, hidden_size=256, intermediate_size=128, num_hidden_layers=1)
made = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
made.save_pretrained(sys.argv[1])
exact = 10_000.0 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)


def load(dtype):
    return LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=dtype)


models = {
    "loaded in bfloat16": load(torch.bfloat16),
    "cast to bfloat16": load(torch.float32).bfloat16(),
    "cast and cast back": load(torch.float32).bfloat16().float(),
}
weights = [models[name].lm_head.weight.float() for name in models]
found = {}
for name, model in models.items():
    kept = model.model.rotary_emb.inv_freq
    off = [float((p * (kept.double() - exact)).abs().max()) for p in (100, 1000)]
    found[name] = (str(kept.dtype)[6:], *(round(x, 3) for x in off))
    print("{}: frequencies {}, at position 100 off by {:.3f} rad, at 1000 by {:.3f} rad".format(
        name, *found[name]))
if not all(torch.equal(w, weights[0]) for w in weights):
    raise SystemExit("the weights differ")
if not found["loaded in bfloat16"][2] < 0.01 < 1.0 < found["cast to bfloat16"][2]:
    raise SystemExit("it has changed")
if found["cast and cast back"][1:] != found["cast to bfloat16"][1:]:
    raise SystemExit("it has changed")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder/saved" \
  2> "$folder/said" || { cat "$folder/said"; exit 1; }
