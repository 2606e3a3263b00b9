"""`lapa bench policy`: training steps, and prefill and decoding token by token, on one device.

Rows are 28 text, 256 image and 4 latent tokens, already ids, all of one segment.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.latent_vla import paper, tabletop
from lapa_jax import stages
from lapa_jax.aot import assess, hlo, topology
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.benchmarks import measure
from lapa_jax.nn import flops
from lapa_jax.policy import decoding
from lapa_jax.policy.front_end import front_end_settings
from lapa_jax.policy.modality import IMAGE, LATENT, TEXT, WEIGHTS, WITH_IDS
from lapa_jax.policy.vla import SIZES, VLAConfig
from lapa_jax.stages.policy import PolicyStage

TEXT_TOKENS, IMAGE_TOKENS, TARGETS = 28, 256, 4
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
    parser.add_argument("--topology", help="count the bytes of decoding there; nothing is run")
    parser.add_argument("--weights", choices=WEIGHTS, default="trained", help="that decode")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What `policy_config` reads."""
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
    if args.topology:
        return {"compiled": [_compiled(size, args) for size in args.size or DECODE]}
    if args.part != "decode":
        peak = measure.matmul_peak(args.dtype)
        result |= {"matmul_peak_tflops": round(peak / 1e12, 4)}
        result["train"] = [_train(size, args, peak) for size in args.size or TRAIN]
    if args.part != "train":
        bandwidth = measure.memory_bandwidth()
        result |= {"memory_gb_per_second": round(bandwidth / 1e9, 2)}
        result["decode"] = [_decode(size, args, bandwidth) for size in args.size or DECODE]
    return result


def policy_config(size: str, args: argparse.Namespace) -> ConfigDict:
    """`demo`: the tabletop's policy; others by their size. Large ones as they train on one device:
    scanned, with remat, parameters in the compute dtype."""
    if size in SMALL:
        config = tabletop.get_config()
        config.model.front_end = front_end_settings("cached_tokens")
        config.model.update(image_vocab=1024, unroll=args.unroll, **SMALL[size])
    else:
        config = paper.get_config("legacy=False")
        config.model.update(param_dtype=args.dtype, **SIZES[size])
    config.model.update(text_length=TEXT_TOKENS, sequence_length=ROW, attention=args.attention)
    config.model.remat = args.remat or config.model.remat
    config.compute_dtype, config.code_length = args.dtype, TARGETS
    batch, microbatches = TRAIN.get(size, (8, 1))
    config.global_batch = args.batch or batch
    config.microbatches = args.microbatches or microbatches
    return config


def rows(stage: PolicyStage, number: int) -> dict[str, np.ndarray]:
    """Random tokens of whole rows, with the slots that predict the targets."""
    modality = np.repeat([TEXT, IMAGE, LATENT], [TEXT_TOKENS, IMAGE_TOKENS, TARGETS])
    sizes = np.array([stage.vocabularies[name] for name in WITH_IDS])
    tokens = np.random.default_rng(0).integers(0, sizes[modality], (number, ROW), np.int32)
    slots = np.arange(ROW - TARGETS - 1, ROW - 1, dtype=np.int32)
    return {
        "tokens": tokens,
        "modality": np.tile(modality.astype(np.int8), (number, 1)),
        "segments": np.ones((number, ROW), np.int32),
        "latent_slots": np.tile(slots, (number, 1)),
        "latent_targets": tokens[:, -TARGETS:],
    }


def _train(size: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Forward, backward, clip, AdamW."""
    config = policy_config(size, args)
    batch, microbatches = config.global_batch, config.microbatches
    train = measure.Training(config, lambda stage: rows(stage, batch))
    row = train.row(args.steps, peak)
    shapes = _products(train.stage.model_config, batch // microbatches)
    alone = measure.product_rate(shapes, args.dtype)
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


def decoder(size: str, args: argparse.Namespace) -> tuple[PolicyStage, dict[str, np.ndarray]]:
    """(the stage that decodes with `args.weights`, one prompt)."""
    config = policy_config(size, args)
    stage = stages.build(config, stand_in_assets(config)).apart(args.weights)
    given = rows(stage, 1)
    return stage, {key: given[key][:, :-TARGETS] for key in ("tokens", "modality", "segments")}


def _compiled(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """GB that the compiled prefill and a token read and write in device memory, and an action of
    seven tokens, which is one of the first and six of the second."""
    machine = topology.parse(args.topology)
    where = jax.sharding.SingleDeviceSharding(machine.devices()[0])
    stage, prompt = decoder(size, args)
    params, variables = stage.model.abstract()

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def call(method: str) -> Callable:
        return lambda params, variables, *given: stage.model.apply(
            params, variables, method, *given, head="latent", **more[method]
        )[0]

    def gigabytes(method: str, *given: Any) -> float:
        traced = jax.jit(call(method)).trace(*placed((params, variables, *given)))
        text = traced.lower().compile(assess.options(machine.chip)).as_text()
        return hlo.Module(text).hbm_bytes() / 1e9

    more: dict[str, dict[str, int]] = {"prefill": {"num_tokens": 7}, "step": {}}
    rows = prompt["tokens"], prompt["modality"], prompt["segments"], None
    _, cache = jax.eval_shape(call("prefill"), params, variables, *rows)
    ids, slot = np.zeros((1, 1), np.int32), np.zeros((), np.int32)
    first, token = gigabytes("prefill", *rows), gigabytes("step", ids, slot, cache)
    return {
        "size": size,
        "weights": args.weights,
        "topology": machine.name,
        "weights_gb": round(_read(params) / 1e9, 3),
        "prefill_gb": round(first, 3),
        "token_gb": round(token, 3),
        "action_gb": round(first + 6 * token, 3),
    }


def _read(params: Any) -> int:
    """Bytes of the weights that every token reads."""
    weights = [params["backbone"], params["norm"], params["heads"]["latent"]]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights))


def _decode(size: str, args: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """One prompt, greedy, the fastest of the timed calls. The time of a token is what more of them
    take."""
    stage, prompt = decoder(size, args)
    model, (params, variables) = stage.model, jax.jit(stage.model.init)(jax.random.key(0))

    def decode(number):
        return decoding.decode(model, params, variables, prompt, None, "latent", number)

    def fastest(number):
        return min(measure.seconds(lambda: decode(number), args.steps))

    prefill = fastest(1)
    token = (fastest(1 + args.tokens) - prefill) / args.tokens
    size_bytes = _read(params)
    bound = size_bytes / bandwidth
    return {
        "size": size,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "weights": args.weights,
        "prompt_tokens": ROW - TARGETS,
        "prefill_ms": round(1e3 * prefill, 3),
        "prefill_tflops": round(flops.counted(lambda: decode(1)) / prefill / 1e12, 4),
        "ms_per_token": round(1e3 * token, 3),
        "weight_mib": round(size_bytes / 2**20, 2),
        "bound_ms_per_token": round(1e3 * bound, 3),
        "fraction_of_bound": round(bound / token, 4),
    }
