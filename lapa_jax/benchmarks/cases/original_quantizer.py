"""A training step of the released quantizer by the original's PyTorch code, as its trainer does it.

    git clone https://github.com/LatentActionPretraining/LAPA
    --case FILE@LAPA/laq@PYTHON        # with torch, einops and beartype

Beside training.py with config=quantizer.paper:legacy=True. Work: its pairs. The device that its
code names is replaced by the CPU, and OpenMP's threads sleep while they wait: else they wait at
full speed, which beside other work makes its CPU time three times as long.
"""

import importlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path


def prepare(global_batch: int = 1) -> Callable[[], None]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    # The package itself imports its trainer, with all that a training of several GPUs needs.
    package = types.ModuleType("laq_model")
    package.__path__ = [str(next(p for x in sys.path if (p := Path(x, "laq_model")).is_dir()))]
    sys.modules["laq_model"] = package
    code = importlib.import_module("laq_model.latent_action_quantization")
    optimizers = importlib.import_module("laq_model.optimizer")
    bottleneck = code.NSVQ
    code.NSVQ = lambda **given: bottleneck(**{**given, "device": torch.device("cpu")})

    torch.manual_seed(0)
    model = code.LatentActionQuantization(
        **dict(dim=1024, quant_dim=32, codebook_size=8, code_seq_len=4),
        **dict(image_size=256, patch_size=32, spatial_depth=8, temporal_depth=8),
        **dict(dim_head=64, heads=16),
    ).train()
    optimizer = optimizers.get_optimizer(set(model.parameters()), lr=1e-4, wd=0.0)
    frames = torch.rand(global_batch, 3, 2, 256, 256)

    def step() -> None:
        loss, _ = model(frames, step=1)
        loss.backward()
        loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    step.work = global_batch
    return step
