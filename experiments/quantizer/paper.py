r"""The paper's quantizer on its four corpora: Bridge, Open X-Embodiment, Something-Something V2 and
Language Table.

Shows: the published recipe (344 M parameters, 256 px, 8 codes, 4 a pair) with what keeps the
tabletop's codes in use: latents are normalised, quantised late, and dead codes are drawn anew from
data. legacy=True is the original to the
last quirk, for parity; it collapses.

    lapa train --config experiments/quantizer/paper.py:corpus=bridge,data=data/bridge \
        --workdir runs/laq_bridge

What is predicted may be features of DINOv2 instead of pixels, as in UniVLA (Bu et al. 2025):

    lapa import --format dinov2 --source dinov2-base/model.safetensors --out runs/dinov2_base
    lapa train --config experiments/quantizer/paper.py:corpus=bridge,objective=features \
        --config.model.objective.weights=runs/dinov2_base --workdir runs/laq_bridge_features

Known (the original's training script and its authors' answers): the sizes; Adam (0.9, 0.99) at a
constant 1e-4 without warm-up or decay, clip 0.5, 64 pairs a process, 100,005 steps; windows of 3
frames at 5 Hz on Bridge and 30 frames at 12 Hz on Something-Something V2. Not known: how many
processes there were (the batch here is of one); the windows of Open X and Language Table (here the
0.6 s of robot video); the codebook of Language Table, said to be larger than 8. Where a corpus
mixes frame rates, the window stays the same in seconds.

Cost: a step of 64 pairs takes 52 ms on an H200 with --config.model.unroll=0 (docs/performance.md);
no whole run is measured. quick=True has 60 steps of a model of width 32.
"""

from ml_collections import ConfigDict

from experiments import base, hardware

# name → window in seconds
CORPORA = {"bridge": 0.6, "openx": 0.6, "language_table": 0.6, "ssv2": 2.5}


def get_config(arg: str | None = None) -> ConfigDict:
    """`corpus`: one of CORPORA. `data`: its shards (256 px). `legacy`: the original's quirks.
    `objective`: as of base.predict; `encoder`: the teacher of features, one of base.vit.
    `hardware`: one of hardware.QUANTIZER."""
    arg = base.parse_arg(
        arg,
        corpus="bridge",
        data="data/bridge",
        legacy=False,
        objective="pixels",
        encoder="dinov2_base",
        hardware="",
    )
    base.require("corpus", arg.corpus, CORPORA)
    config = base.stage_defaults("quantizer")
    config.data.image_size = (256, 256)
    window = CORPORA[arg.corpus]
    config.data.corpora[arg.corpus] = base.corpus(arg.data, window_seconds=window)
    config.compute_dtype = "float32" if arg.legacy or arg.quick else "bfloat16"
    config.global_batch, config.steps = 64, 100_005
    base.constant(config, 1e-4)
    config.optimizer.clip_norm, config.optimizer.b2 = 0.5, 0.99
    config.checkpoint.every_steps = 5000
    config.data.sampling = "per_video" if arg.legacy else "per_frame"
    config.data.tail = "clamp" if arg.legacy else "drop"
    config.model = base.legacy_quantizer_model()
    if not arg.legacy:
        native = base.quantizer_model()
        config.model.legacy, config.model.predict = False, native.predict
        # The rate stays as it is to the end, and the latents' mean moves on: it must keep up.
        config.model.normalize_decay = 0.8
        config.model.bottleneck = native.bottleneck
        config.model.bottleneck.update(continuous_steps=2000, ramp_steps=8000)
    base.predict(config, arg.objective, arg.encoder)
    if "rotation" in arg.objective:
        config.model.quant_dim = 64  # 16 x 16 of four slots, as in RotVLA
    hardware.use(config, hardware.QUANTIZER, arg.hardware)
    if arg.quick:
        base.make_quantizer_quick(config)
        base.constant(config, 2e-3)
        config.model.quant_dim = 4 if "rotation" in arg.objective else 2
        config.model.update(spatial_depth=1, temporal_depth=1, decoder_depth=1)
    return config
