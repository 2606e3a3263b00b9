"""`lapa bench policy`: training steps, and prefill and decoding token by token, on one device.

Rows are 28 text, 256 image and 4 latent tokens, already ids, all of one segment.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import base
from lapa_jax.benchmarks import measure
from lapa_jax.nn import flops
from lapa_jax.nn.module import Functional
from lapa_jax.policy import decoding, heads
from lapa_jax.policy.heads.tokens import cross_entropy
from lapa_jax.policy.modality import IMAGE, LATENT, TEXT
from lapa_jax.policy.vla import SIZES, VLA, VLAConfig
from lapa_jax.stages.policy import LAYOUT_KEYS

TEXT_TOKENS, IMAGE_TOKENS, TARGETS = 28, 256, 4
VOCAB = 8  # of the latent tokens
ROW = TEXT_TOKENS + IMAGE_TOKENS + TARGETS
# Of these, the vocabularies are small: with LWM's, most of their weights would be tables.
SMALL = {
    "demo": {},
    "debug": SIZES["debug"],
    "20m": dict(dim=512, depth=6, heads=8, head_dim=64, mlp_dim=1408),
}
# Rows of a step and its microbatches. On CPUs two rows at a time stay in the cache.
TRAIN = {"debug": (16, 8), "20m": (16, 8)}
DECODE = ("debug", "demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    parser.add_argument("--part", choices=["train", "decode", "both"], default="both")
    parser.add_argument("--tokens", type=int, default=32, help="to decode after the first")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What `workload` reads."""
    sizes = [*SMALL, *(name for name in SIZES if name not in SMALL)]
    parser.add_argument("--size", choices=sizes, action="append", default=[])
    parser.add_argument("--batch", type=int, default=0, help="rows of a training step")
    parser.add_argument("--microbatches", type=int, default=0, help="parts of a training step")
    parser.add_argument("--unroll", type=int, default=0, help="layers per scan step; 0: all")
    parser.add_argument("--attention", default="auto", help="model.attention")
    parser.add_argument("--remat", default="", help="model.remat (default: the size's own)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every size, of training and of decoding."""
    result: dict[str, Any] = {}
    if args.part != "decode":
        peak = measure.matmul_peak(args.dtype)
        result |= {"matmul_peak_tflops": round(peak / 1e12, 4)}
        result["train"] = [_train(size, args, peak) for size in args.size or TRAIN]
    if args.part != "train":
        bandwidth = measure.memory_bandwidth()
        result |= {"memory_gb_per_second": round(bandwidth / 1e9, 2)}
        result["decode"] = [_decode(size, args, bandwidth) for size in args.size or DECODE]
    return result


def policy_config(size: str, args: argparse.Namespace) -> VLAConfig:
    """`demo`: the tabletop's policy; others by their size. Large ones as they train on one device:
    scanned, with remat, parameters in the compute dtype."""
    settings = base.lwm_policy_model(latent_vocab=VOCAB).to_dict()
    if size in SMALL:
        settings = base.policy_model(latent_vocab=VOCAB).to_dict()
        settings["front_end"] = base.front_end("cached_tokens").to_dict()
        settings |= {"image_vocab": 1024, "unroll": args.unroll} | SMALL[size]
    else:
        settings |= {"param_dtype": args.dtype, "legacy": False} | SIZES[size]
    settings = {key: x for key, x in settings.items() if key not in LAYOUT_KEYS}
    settings |= {"attention": args.attention, "remat": args.remat or settings["remat"]}
    return VLAConfig(**settings, compute_dtype=args.dtype)


def predicted() -> dict[str, heads.Head]:
    """The head of latent tokens."""
    model = {"targets": heads.token_settings(latent=VOCAB)}
    return heads.build(ConfigDict({"model": model, "code_length": TARGETS}), {})


def rows(config: VLAConfig, number: int) -> dict[str, jax.Array]:
    """Random tokens of whole rows, with the slots that predict the targets."""
    modality = np.repeat([TEXT, IMAGE, LATENT], [TEXT_TOKENS, IMAGE_TOKENS, TARGETS])
    sizes = np.array([config.text_vocab, config.image_vocab, VOCAB])
    tokens = np.random.default_rng(0).integers(0, sizes[modality], (number, ROW))
    slots = np.arange(ROW - TARGETS - 1, ROW - 1)
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "modality": jnp.asarray(np.tile(modality, (number, 1)), jnp.int8),
        "segments": jnp.ones((number, ROW), jnp.int32),
        "slots": jnp.asarray(np.tile(slots, (number, 1)), jnp.int32),
        "targets": jnp.asarray(tokens[:, -TARGETS:], jnp.int32),
    }


def workload(size: str, args: argparse.Namespace) -> tuple[VLAConfig, dict[str, Any]]:
    """(config, what `measure.Training` takes)."""
    config = policy_config(size, args)
    batch, microbatches = TRAIN.get(size, (8, 1))
    model = Functional(lambda rngs: VLA(config, predicted(), rngs=rngs))

    def loss(params, variables, batch, rng):
        given = (batch["tokens"], batch["modality"], batch["segments"], None)
        slots = {"latent": batch["slots"]}
        logits, variables = model.apply(params, variables, "outputs", *given, slots=slots)
        return cross_entropy(logits["latent"], batch["targets"])[0], {}, variables

    return config, {
        "model": model,
        "loss": loss,
        "tx": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b2=0.95)),
        "batch": rows(config, args.batch or batch),
        "microbatches": args.microbatches or microbatches,
    }


def _train(size: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Forward, backward, clip, AdamW."""
    config, given = workload(size, args)
    batch, microbatches = len(given["batch"]["tokens"]), given["microbatches"]
    train = measure.Training(**given)
    times = train.seconds(args.steps)
    row = measure.timing_row(times, train.flops, peak)
    alone = measure.product_rate(_products(config, batch // microbatches), args.dtype)
    return {
        "size": size,
        "parameters": train.parameters,
        "rows": batch,
        "microbatches": microbatches,
        **row,
        "tokens_per_second": round(1e3 * batch * ROW / row["ms_per_step"], 1),
        "its_products_alone": round(alone / peak, 4),
        "peak_memory_gib": measure.peak_memory_gib(),
    }


def _products(config: VLAConfig, number: int) -> list[tuple[int, int, int]]:
    """The dense products of a layer, forward and for both gradients."""
    n, inner = number * ROW, config.heads * config.head_dim
    forward = [(n, config.dim, inner)] * 3 + [(n, inner, config.dim)]
    forward += [(n, config.dim, config.mlp_dim)] * 2 + [(n, config.mlp_dim, config.dim)]
    return [s for m, k, n in forward for s in ((m, k, n), (m, n, k), (k, m, n))]


def _decode(size: str, args: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """One prompt, greedy, the fastest of the timed calls. The time of a token is what more of them
    take."""
    config = policy_config(size, args)
    model = Functional(lambda rngs: VLA(config, predicted(), rngs=rngs, stacked=False))
    params, variables = jax.jit(model.init)(jax.random.key(0))
    prompt = {key: rows(config, 1)[key][:, :-TARGETS] for key in ("tokens", "modality", "segments")}

    def decode(number):
        return decoding.decode(model, params, variables, prompt, None, "latent", number)

    def fastest(number):
        return min(measure.seconds(lambda: decode(number), args.steps))

    prefill = fastest(1)
    token = (fastest(1 + args.tokens) - prefill) / args.tokens
    weights = [params["backbone"], params["norm"], params["heads"]["latent"]]
    size_bytes = sum(x.nbytes for x in jax.tree.leaves(weights))
    bound = size_bytes / bandwidth
    length = ROW - TARGETS
    return {
        "size": size,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "prompt_tokens": length,
        "prefill_ms": round(1e3 * prefill, 3),
        "prefill_tflops": round(flops.counted(lambda: decode(1)) / prefill / 1e12, 4),
        "ms_per_token": round(1e3 * token, 3),
        "weight_mib": round(size_bytes / 2**20, 2),
        "bound_ms_per_token": round(1e3 * bound, 3),
        "fraction_of_bound": round(bound / token, 4),
    }
