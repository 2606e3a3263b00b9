#!/usr/bin/env bash
# PSNR and SSIM of a picture, by TorchMetrics, depend on the pictures beside it in the batch.
#
# The guess: of a batch the mean of the pictures' values, as other libraries give; so that the batch size
# of an evaluation does not matter. Seen: PSNR takes the logarithm of the mean squared error of the
# whole batch, so that of a good and a bad picture the bad one decides: 23 dB instead of the mean, 25.
# SSIM without data_range takes the range that the whole batch has as that of each picture: a dim
# picture beside a bright one counts as better than alone. A figure in a paper may be either.
#
# It helps to pass dim=(1, 2, 3) to PSNR, and data_range to both; and to say which mean was taken.
#
# torchmetrics 1.9.0, torch 2.13.0, Python 3.11. Seen:
#   PSNR: dim 30.5 dB, bright 20.2 dB, both 22.8 dB, both by dim=(1, 2, 3) 25.3 dB
#   SSIM of the dim one: alone 0.492, beside the bright one 0.665; with data_range 0.665 and 0.665
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  torchmetrics==1.9.0 torch==2.13.0
cat > "$folder/ask.py" <<'PYTHON'
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

torch.manual_seed(0)


def picture(brightness):
    """A smooth picture of values up to `brightness`, and the same with a tenth of that as noise."""
    coarse = torch.rand(1, 3, 8, 8) * brightness
    clean = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    return clean, (clean + 0.1 * brightness * torch.randn_like(clean)).clamp(0, 1)


(dim, dim_noisy), (bright, bright_noisy) = picture(0.3), picture(1.0)
both, both_noisy = torch.cat([dim, bright]), torch.cat([dim_noisy, bright_noisy])


def psnr(x, y, **settings):
    return float(peak_signal_noise_ratio(x, y, data_range=1.0, **settings))


def ssim(x, y, **settings):
    return float(structural_similarity_index_measure(x, y, reduction="none", **settings)[0])


alone = psnr(dim_noisy, dim), psnr(bright_noisy, bright)
pooled, mean = psnr(both_noisy, both), psnr(both_noisy, both, dim=(1, 2, 3))
print(
    f"PSNR: dim {alone[0]:.1f} dB, bright {alone[1]:.1f} dB, both {pooled:.1f} dB, "
    f"both by dim=(1, 2, 3) {mean:.1f} dB"
)
single, beside = ssim(dim_noisy, dim), ssim(both_noisy, both)
ranged = ssim(dim_noisy, dim, data_range=1.0), ssim(both_noisy, both, data_range=1.0)
print(
    f"SSIM of the dim one: alone {single:.3f}, beside the bright one {beside:.3f}; "
    f"with data_range {ranged[0]:.3f} and {ranged[1]:.3f}"
)
assert abs(mean - sum(alone) / 2) < 1e-3 and abs(ranged[0] - ranged[1]) < 1e-4
if mean - pooled < 1 or beside - single < 0.01:
    raise SystemExit("it has changed")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/ask.py"
