"""FLOPs of traced programs, and those that a model's step counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import base
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.nn.attention import attention, plain_attention
from lapa_jax.nn.flops import counted
from lapa_jax.nn.vit import ViTConfig
from lapa_jax.policy.text import train
from lapa_jax.stages.policy import TOKENIZER


def test_flops_of_products_and_convolutions():
    x, w = jnp.zeros((3, 5, 8)), jnp.zeros((8, 7))
    assert counted(lambda x, w: x @ w, x, w) == 2 * 3 * 5 * 8 * 7
    batched = jnp.einsum("bij,bkj->bik", x, x).shape
    assert counted(lambda x: jnp.einsum("bij,bkj->bik", x, x), x) == 2 * np.prod(batched) * 8

    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

    def convolve(image, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=names)

    assert counted(convolve, image, kernel) == 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3)


def test_flops_of_loops_and_of_what_is_recomputed():
    x, w = jnp.zeros((4, 8)), jnp.zeros((6, 8, 8))
    one = 2 * 4 * 8 * 8

    def layers(x, w, remat):
        def layer(x, w):
            return jnp.tanh(jnp.tanh(x @ w) @ w), None

        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0].sum()

    assert counted(lambda x, w: layers(x, w, False), x, w) == 6 * 2 * one
    grad = jax.grad(layers, argnums=(0, 1))
    assert counted(lambda x, w: grad(x, w, False), x, w) == 3 * 6 * 2 * one
    assert counted(lambda x, w: grad(x, w, True), x, w) == 4 * 6 * 2 * one
    branches = [lambda x: x @ w[0], lambda x: x @ w[0] @ w[1]]
    assert counted(lambda i, x: jax.lax.switch(i, branches, x), 0, x) == 2 * one


def test_attention_is_counted_as_plain_products():
    """... though it be chosen by name or length, in blocks or kernels."""
    q = jax.ShapeDtypeStruct((2, 512, 4, 16), jnp.float32)

    def flops():  # a new function each time: jax keeps what it traced
        return counted(lambda q: attention(q, q, q, scale=1.0, implementation="splash"), q)

    with pytest.raises(ValueError, match="it needs a TPU"):
        flops()
    with plain_attention():
        assert flops() == 2 * 2 * (2 * 4 * 512 * 512 * 16)


# --- Of a stage: against what the shapes say ---


def stage_of(experiment, **overrides):
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    config = configs.load(f"{tiny.ROOT}/experiments/{experiment}", flags)
    tokenizer = train([f"push block {i} to the wall" for i in range(20)], 384)
    return stages.build(config, {TOKENIZER: tokenizer})


def block(dim, inner, mlp_dim, keys, matrices=3):
    """Multiply-adds of a token in a layer of attention and feed-forward."""
    return 4 * dim * inner + 2 * keys * inner + matrices * dim * mlp_dim


@pytest.mark.slow
def test_of_a_policy_exactly():
    """Three forward passes of the whole row, attention in full; the head at the targets alone."""
    stage = stage_of("latent_vla/tabletop.py")
    model, length = stage.model_config, stage.row_length
    forward = model.depth * length * block(128, 4 * 32, 256, length)
    forward += stage.num_images * 64 * 64 * 3 * model.dim  # patches
    forward += stage.head.num_slots * model.dim * stage.head.vocab
    assert stage.model_flops() == 3 * 2 * forward


@pytest.mark.slow
@pytest.mark.parametrize("head", ["chunk", "flow"])
def test_of_heads_of_chunks_exactly(head):
    """Slots of a chunk are tokens of the row; an expert's see the row's keys, too."""
    config = configs.load(f"{tiny.ROOT}/experiments/action_vla/metaworld.py:head={head},state=True")
    stage = stages.build(config, stand_in_assets(config))
    model, length, own, n = stage.model_config, stage.row_length, stage.head, stage.head.horizon
    forward = model.depth * length * block(128, 4 * 32, 256, length)
    forward += 64 * 64 * 3 * model.dim  # patches
    forward += stage.state.dim * model.dim + model.dim**2
    if head == "chunk":
        forward += n * model.dim * own.num_outputs
    else:
        layers = own.depth * block(own.settings.dim, 4 * 32, own.settings.mlp_dim, length + n)
        forward += n * (layers + 2 * own.settings.dim * own.num_outputs + 3 * own.settings.dim**2)
    assert stage.model_flops() == 3 * 2 * forward


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"model__remat": "full", "model__unroll": 1},
        {"model__attention": "ring", "microbatches": 4},
        {"data__augment": "crop"},
        {"global_batch": 8},
    ],
)
def test_what_does_not_count(change):
    plain = stage_of("latent_vla/tabletop.py").model_flops()
    if "data__augment" in change:
        stage = stage_of("latent_vla/tabletop.py")
        with stage.config.unlocked():
            stage.config.data.augment = base.augment("crop_and_colour")
    else:
        stage = stage_of("latent_vla/tabletop.py", **change)
    assert stage.model_flops() == plain


@pytest.mark.slow
def test_of_a_quantizer_within_the_position_convolutions():
    """From the shapes, to a fiftieth: products with few terms run as sums and do not count."""
    stage = stage_of("quantizer/tabletop.py")
    model = stage.model_config
    dim, inner, cells = model.dim, model.heads * model.head_dim, math.prod(model.grid)
    forward = 2 * cells * 3 * model.patch_size**2 * dim  # patches of two frames
    spatial, temporal = (block(dim, inner, model.mlp_dim, keys) for keys in (cells, 1.5))
    forward += 2 * cells * (spatial + temporal + 2 * 13.5 * dim)  # taps of the convolutions
    decoder = block(dim, inner, model.mlp_dim, cells) + 9 * dim
    cross = 2 * dim * inner + 2 * (model.code_length + 2) * inner
    forward += model.decoder_depth * cells * (decoder + cross)
    forward += cells * dim * 3 * model.patch_size**2  # pixels
    forward += 2 * (cells * dim * dim + 3 * cells * dim)  # latents of both frames
    assert 0.97 < stage.model_flops() / (3 * 2 * forward) < 1.0


@pytest.mark.slow
def test_of_a_frozen_teacher_once():
    pixels = stage_of("quantizer/tabletop.py").model_flops()
    features = stage_of("quantizer/tabletop.py:objective=features")
    teacher = ViTConfig()
    tokens = 1 + math.prod(teacher.grid)
    forward = teacher.depth * tokens * block(64, 64, 256, tokens, matrices=2)
    forward += (tokens - 1) * 3 * teacher.patch_size**2 * teacher.dim
    head = (tokens - 1) * features.model_config.dim * teacher.dim
    added = 2 * (2 * forward + 3 * head)  # of both frames; of one
    assert features.model_flops() - pixels == pytest.approx(added, rel=1e-3)
