"""Latent actions as controls: step by step what the models say at once."""

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from test_dynamics import SIDE, stage_of

from data_pipelines.normalise import Normaliser
from experiments import base
from lapa_jax import stages
from lapa_jax.runs.loaded import LoadedDynamics, LoadedImageTokenizer, LoadedQuantizer
from lapa_jax.stages.dynamics import STATISTICS
from lapa_jax.world.imagination import Imagination, open_imagination

B, S = 2, 5
SMALL = dict(dim=16, mlp_dim=32, heads=2, head_dim=8, decoder_depth=1)


def loaded(kind, stage):
    rng = np.random.default_rng(0)
    held = jax.tree.map(
        lambda x: rng.normal(0.0, 0.3, x.shape).astype(x.dtype), stage.model.abstract()
    )
    return kind(stage.config, stage, *held)


def quantizer(**changes) -> LoadedQuantizer:
    config = base.stage_defaults("quantizer")
    corpora = {"robot": dict(window_seconds=0.5, extra_image_keys=())}
    config.data.update(image_size=(SIDE, SIDE), corpora=ConfigDict(corpora))
    config.update(global_batch=B, compute_dtype="float32")
    config.model = base.quantizer_model(**SMALL, **changes)
    return loaded(LoadedQuantizer, stages.build(config, {}))


def first_frames(seed=0, count=B):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def stepped(imagination, frames, z):
    """All frames, and all states, the first one too."""
    state, found = imagination.start(frames), []
    states = [state]
    for k in range(z.shape[1]):
        state, frame = imagination.step(state, z[:, k])
        found.append(np.asarray(frame))
        states.append(state)
    return np.stack(found, axis=1), states


def test_a_decoder_goes_on_from_the_frame_that_it_drew():
    model = quantizer(code_length=2)
    imagination = Imagination(model)
    assert (imagination.codes, imagination.length, imagination.width) == (8, 2, 0)
    assert (imagination.window_seconds, imagination.rate) == (0.5, 2.0)
    z = np.random.default_rng(1).integers(0, 8, (B, S, 2))
    found, states = stepped(imagination, first_frames(), z)
    frame = first_frames().astype(np.float32) / 255.0
    for k in range(S):
        frame = np.clip(np.asarray(model.decode(frame, z[:, k])), 0.0, 1.0)
        np.testing.assert_allclose(found[:, k], frame, atol=1e-5)
    again = np.asarray(imagination.step(states[2], z[:, 2])[1])
    np.testing.assert_array_equal(again, found[:, 2])  # a state that was gone on from is as it was


def test_vectors_are_what_the_decoder_receives():
    model = quantizer(bottleneck=ConfigDict({"name": "none"}))
    imagination = Imagination(model)
    assert (imagination.codes, imagination.shape) == (0, (1, model.stage.model_config.quant_dim))
    z = np.random.default_rng(1).normal(size=(B, 1, *imagination.shape)).astype(np.float32)
    found, _ = stepped(imagination, first_frames(), z)
    first = first_frames().astype(np.float32) / 255.0
    drawn = model.stage.decode_latent(model.params, model.variables, first, z[:, 0])
    np.testing.assert_allclose(found[:, 0], np.clip(drawn, 0.0, 1.0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["maskgit", "next_token"])
@pytest.mark.parametrize("vectors", [False, True])
def test_a_dynamics_model_goes_on_as_it_imagines_at_once(form, vectors):
    """Over more steps than it sees frames."""
    rng = np.random.default_rng(2)
    z, assets, changes = rng.integers(0, 8, (B, S, 1)), {}, {}
    if vectors:
        z = rng.normal(3.0, 2.0, (B, S, 1, 3)).astype(np.float32)
        statistics = Normaliser.fit(z.reshape(-1, 3), "mean_std")
        assets, changes = {STATISTICS: statistics.to_json()}, dict(latent_codes=0)
    model = loaded(LoadedDynamics, stage_of(form, assets, **changes))
    imagination = Imagination(model)
    assert S > model.stage.model_config.seen and imagination.shape == z.shape[2:]
    found, _ = stepped(imagination, first_frames(), z)
    np.testing.assert_allclose(found, model.imagine(first_frames()[:, None], z), atol=1e-5)
    one, _ = stepped(imagination, first_frames()[:1], z[:1])
    np.testing.assert_allclose(one, found[:1], atol=1e-5)
    assert np.abs(np.diff(found, axis=1)).max() > 0.05


@pytest.mark.parametrize("stage", ["quantizer", pytest.param("dynamics", marks=pytest.mark.slow)])
def test_nothing_is_compiled_after_warming(stage, caplog):
    made = quantizer() if stage == "quantizer" else loaded(LoadedDynamics, stage_of())
    imagination = Imagination(made)
    imagination.warm(B)
    z = np.zeros((B, S, 1), np.int64)
    with jax.log_compiles():
        stepped(imagination, first_frames(), z)
        assert "Compiling" not in caplog.text
        imagination.start(first_frames()[:1])
        assert "Compiling" in caplog.text


def test_what_is_refused():
    imagination = Imagination(quantizer())
    state = imagination.start(first_frames())
    for z, told in (
        (np.zeros((B, 1)), r"z float64\[2, 1\] must be integers of shape \(B, 1\)"),
        (np.zeros((B, 2), int), r"z int64\[2, 2\] must be integers of shape \(B, 1\)"),
        (np.full((B, 1), 8), "codes from 8 to 8, the codebook has 8"),
        (np.zeros((B + 1, 1), int), f"z of {B + 1} frames, and the state is of {B}"),
    ):
        with pytest.raises(ValueError, match=told):
            imagination.step(state, z)
    some = first_frames()
    for frames in (some.astype(np.float32), some[0], some[:, 1:], some[:0]):
        with pytest.raises(ValueError, match=r"must be uint8 of shape \(B, 16, 16, 3\): resize"):
            imagination.start(frames)
    vectors = Imagination(quantizer(bottleneck=ConfigDict({"name": "none"})))
    bad = np.full((B, *vectors.shape), np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        vectors.step(vectors.start(first_frames()), bad)
    bad = np.full((B, 1, 1, 3), np.nan, np.float32)
    statistics = Normaliser.fit(np.arange(12.0).reshape(4, 3), "mean_std")
    stage = stage_of("maskgit", {STATISTICS: statistics.to_json()}, latent_codes=0)
    model = loaded(LoadedDynamics, stage)
    with pytest.raises(ValueError, match="not finite"):
        model.imagine(first_frames()[:, None], bad)
    for given, told in (((-1.0, None), "at least 0"), ((1.0, None), "without a key: drawing")):
        with pytest.raises(ValueError, match=f"temperature={given[0]} .*{told}"):
            model.imagine(
                first_frames()[:, None], np.nan_to_num(bad), given[1], temperature=given[0]
            )


@pytest.mark.slow
def test_a_run_is_opened_and_others_are_not(tiny_data, tmp_path, quick_compile):
    tiny.succeed(
        "train", *tiny.arguments("quantizer", tiny_data), "--workdir", tmp_path / "quantizer"
    )
    imagination = open_imagination(tmp_path / "quantizer")
    assert imagination.image_size == (tiny.SIZE, tiny.SIZE) and imagination.window_seconds > 0
    tokenizer = tiny.config("image_tokenizer", tiny_data)
    other = loaded(LoadedImageTokenizer, stages.build(tokenizer, {}))
    with pytest.raises(ValueError, match="a run of stage 'image_tokenizer'"):
        Imagination(other)
