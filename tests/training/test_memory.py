"""Counted bytes are those of real states, and the figures of docs/training.md are counted."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_policy import token_heads

from experiments import base
from lapa_jax.nn import int8
from lapa_jax.nn.module import Functional
from lapa_jax.policy.vla import SIZES, VLA, VLAConfig
from lapa_jax.stages.policy import LAYOUT_KEYS
from lapa_jax.training.moments import MOMENTS
from lapa_jax.training.optimizer import OPTIMIZERS, make_optimizer
from lapa_jax.training.state import create, held_bytes, tree_bytes

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
AXES = {
    "encoder": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "blocks": {"scale": ("layers", "embed"), "kernel": ("layers", "embed", "mlp")},
}
PARAMS = {
    "encoder": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "blocks": {"scale": jnp.ones((2, 4)), "kernel": jnp.ones((2, 4, 4))},
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_counted_bytes_are_those_of_a_state(name, frozen):
    config = base.optimizer(name).to_dict()
    config["groups"] = {
        "encoder": base.group("encoder/.*"),
        "blocks": base.group("blocks/.*", frozen=frozen),
    }
    if name == "adafactor":
        config["min_factored_size"] = 4
    optimizer = make_optimizer(config, 1000, AXES)
    state = create(PARAMS, {}, optimizer, 0, ema=True)
    counted = held_bytes(jax.eval_shape(lambda: PARAMS), optimizer, ema=True)
    trained = 4 * (16 if frozen else 56)
    assert counted == {
        "parameters": 4 * 56,
        "gradients": trained,
        "optimizer": sum(x.nbytes for x in jax.tree.leaves(state.opt_state)),
        "average": sum(x.nbytes for x in jax.tree.leaves(state.ema)),
    }
    assert counted["average"] == trained
    moments = {"adamw": 2 * trained, "lion": trained}
    if name in moments:
        assert 0 <= counted["optimizer"] - moments[name] <= 8  # the step, counted twice
    assert tree_bytes(state) == sum(x.nbytes for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_the_memory_of_7b_is_what_the_docs_say():
    def policy(rank, base_dtype="param_dtype"):
        settings = base.policy_model(action_vocab=256).to_dict() | SIZES["7b"]
        settings = {key: value for key, value in settings.items() if key not in LAYOUT_KEYS}
        settings |= dict(text_vocab=32_000, image_vocab=8_448, lora_rank=rank)
        settings["base_dtype"] = base_dtype
        settings["front_end"] = {"name": "cached_tokens", "num_tokens": 256}
        config = VLAConfig(**settings, compute_dtype="bfloat16")
        return Functional(lambda rngs: VLA(config, token_heads(action=256), rngs=rngs))

    plain, adapted = policy(0), policy(16)
    modes = [("all", plain, name) for name in OPTIMIZERS]
    modes += [("all", plain, f"adamw, `{x}`") for x in MOMENTS[1:]]
    modes += [("head, backbone frozen", plain, "adamw"), ("head and LoRA", adapted, "adamw")]
    modes += [(f"the same, `{x}`", policy(16, x), "adamw") for x in int8.HELD]
    for mode, model, name in modes:
        config = base.optimizer(name.partition(",")[0])
        if "`" in name:
            config.moments = name.split("`")[1]
        if mode != "all":
            config.groups = base.head_and_rest("action", frozen=True)
        optimizer = make_optimizer(config, 1000, model.axes())
        shapes = model.abstract()[0]
        trained = sum(x.size for x in jax.tree.leaves(optimizer.split(shapes)[0]))
        held = held_bytes(shapes, optimizer, ema=True)
        total = sum(held.values())
        sizes = [*held.values(), total - held["average"], total]
        cells = [mode, name, f"{trained / 1e6:,.1f} M", *(f"{x / 2**30:.2f}" for x in sizes)]
        assert f"| {' | '.join(cells)} |" in DOCS.read_text()
