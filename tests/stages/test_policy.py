"""The policy stages: packing changes nothing, the original's rows train, bad input is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from lapa_jax import stages
from lapa_jax.policy.text import train
from lapa_jax.stages.policy import TOKENIZER

TEXTS = [f"move the {c} square to place {i}" for c in ("red", "green") for i in range(4)]
IDS = ConfigDict({"name": "cached_tokens", "num_tokens": 16})


def stage_of(front_end: ConfigDict | None = None, **changes):
    config = tiny.config("latent_pretraining", "data", **changes)
    if front_end is not None:
        with config.unlocked():
            config.model.front_end = front_end
    return stages.build(config, {TOKENIZER: train(TEXTS, 320)})


def batch(size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    texts = [TEXTS[i % 8] + " and then stop" * (i % 3) for i in range(size)]
    return {
        "frames": rng.integers(0, 256, (size, 1, 64, 64, 3), dtype=np.uint8),
        "instruction": np.array(texts, object),
        "latent_action": rng.integers(0, 8, (size, 1)).astype(np.int32),
    }


def grads_of(stage, params, prepared):
    def loss(params):
        value, metrics, _ = stage.loss(params, {}, prepared, jax.random.key(0))
        return value, metrics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def check_spec(stage, prepared):
    """What `prepare` gives is what `batch_spec` says."""
    given = {name: (x.shape, x.dtype) for name, x in prepared.items()}
    assert given == {name: (x.shape, x.dtype) for name, x in stage.batch_spec().items()}


@pytest.mark.slow
def test_packed_rows_have_the_loss_of_single_ones():
    single = stage_of(model__text_length=40)
    packed = stage_of(model__text_length=40, model__examples_per_row=4, model__sequence_length=170)
    params, _ = single.init(jax.random.key(0))
    results = []
    for stage in (single, packed):
        prepared = stage.prepare(batch())
        check_spec(stage, prepared)
        results.append(grads_of(stage, params, prepared))
    assert packed.row_length < 4 * single.row_length  # otherwise packing would gain nothing
    ((loss, metrics), grads), ((packed_loss, packed_metrics), packed_grads) = results
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(packed_metrics[name], metrics[name], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), packed_grads, grads
    )


@pytest.mark.slow
def test_the_originals_rows_and_loss():
    """Cached image ids, the original's tags, 0.99 of the latent loss and 0.01 of the text's."""
    stage = stage_of(
        IDS,
        model__image_vocab=8448,
        model__legacy=True,
        model__text_length=128,
        model__sequence_length=200,
    )
    assert stage.row_length == 200 > stage.layout.example_length
    columns = batch() | {"image_tokens": np.full((8, 1, 16), 8191, np.int32)}
    prepared = stage.prepare(columns)
    check_spec(stage, prepared)
    assert "images" not in prepared
    params, _ = stage.init(jax.random.key(0))
    loss, metrics, _ = stage.loss(params, {}, prepared, jax.random.key(0))
    expected = 0.99 * metrics["latent_loss"] + 0.01 * metrics["text_loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for ids in (np.full((8, 1, 16), 8448), np.full((8, 1, 16), -1)):
        with pytest.raises(ValueError, match="model.image_vocab=8448"):
            stage.prepare(columns | {"image_tokens": ids})


@pytest.mark.slow
def test_prompts_and_prediction():
    stage = stage_of()
    params, variables = stage.init(jax.random.key(0))
    columns = batch(2)
    prompts = stage.prompts(list(columns["instruction"]))
    z, ids, logits, _ = stage.predict(params, variables, prompts, columns["frames"])
    np.testing.assert_array_equal(z, ids)
    assert z.shape == (2, 1) and logits.shape == (2, 1, 8)
    np.testing.assert_array_equal(z, jnp.argmax(logits, -1))
    drawn = [
        stage.predict(
            params, variables, prompts, columns["frames"], temperature=9.0, key=jax.random.key(i)
        ).values
        for i in range(12)
    ]
    assert len(np.unique(drawn)) > 1


@pytest.mark.slow
def test_a_history_is_more_images():
    """Two frames an example, two examples a row: each target sees the frames of its own."""
    stage = stage_of(
        data__num_frames=2, model__examples_per_row=2, model__text_length=40, global_batch=4
    )
    columns = batch(4)
    columns["frames"] = np.random.default_rng(1).integers(0, 256, (4, 2, 64, 64, 3), np.uint8)
    prepared = stage.prepare(columns)
    check_spec(stage, prepared)
    assert prepared["images"].shape == (2, 4, 64, 64, 3)
    params, _ = stage.init(jax.random.key(0))
    run = jax.jit(
        lambda rows: stage.model.apply(
            params,
            {},
            "outputs",
            *(rows[name] for name in ("tokens", "modality", "segments", "images")),
            slots={"latent": rows["latent_slots"]},
        )[0]["latent"]
    )
    before = run(prepared)
    for image in range(4):  # of the first row: two of each example
        images = prepared["images"].copy()
        images[0, image] = 255 - images[0, image]
        changed = np.abs(run(prepared | {"images": images}) - before).max(axis=-1) > 1e-6
        assert changed.tolist() == [[image < 2, image >= 2], [False, False]]


@pytest.mark.slow
def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_frames=2 with data.history_seconds=0.0 would show"):
        stage_of(data__num_frames=2, data__history_seconds=0.0)
    with pytest.raises(ValueError, match="global_batch=8 must be a multiple .*examples_per_row=3"):
        stage_of(model__examples_per_row=3).batch_spec()
    with pytest.raises(ValueError, match="model.text_vocab=300 is too small: 3.. ids are in use"):
        stage_of(model__text_vocab=300)
    with pytest.raises(ValueError, match="codes of length 2; config.code_length=1"):
        stage_of().prepare(batch() | {"latent_action": np.zeros((8, 2), np.int32)})
    with pytest.raises(ValueError, match="run from 0 to 9; model.targets.latent.vocab=8"):
        stage_of().prepare(batch() | {"latent_action": np.array([[0], [9]] * 4, np.int32)})
