"""Words of the instruction, and codes of a first stage, beside frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_of, quantizer_config
from ml_collections import ConfigDict

from experiments import base
from lapa_jax.latent import Quantizer
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.objectives.two_stage import split
from lapa_jax.nn.module import Functional, flatten
from lapa_jax.stages.stage import with_borrowed

pytestmark = pytest.mark.usefixtures("quick_compile")


def settings(**changes):
    return base.objective("two_stage").to_dict() | {"text_length": 4} | changes


def build(**changes):
    config = quantizer_config(
        objective=settings(**changes), dim=16, mlp_dim=16, heads=1, normalize_decay=0.9
    )
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    params, variables = jax.jit(model.init)(jax.random.key(0))
    # What begins at zero shows nothing.
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params)
    return config, model, params, variables


def test_words_are_those_of_their_own_example():
    config, model, params, variables = build()
    frames = batch_of(config, jax.random.key(2), 4)["frames"]
    words = np.array([[5, 6, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0], [5, 6, 8, 9]], np.int32)

    @jax.jit
    def drawn(words, tables):
        there = jax.tree.map(jnp.copy, params)
        there["objective"]["words"] |= tables
        out, _ = model.apply(there, variables, "__call__", frames, words=words, train=False)
        return out["recon"]

    tables = {name: params["objective"]["words"][name] for name in ("table", "place")}
    found = drawn(words, tables)
    # An example's frame does not depend on its neighbours' words, nor on what stands past its own.
    other = words.copy()
    other[3] = [1, 2, 3, 0]
    changed = drawn(other, tables)
    np.testing.assert_allclose(changed[:3], found[:3], atol=1e-6)
    assert np.abs(changed[3] - found[3]).max() > 1e-3
    moved = tables | {
        "table": tables["table"].at[0].add(3.0), "place": tables["place"].at[2:].add(3.0)
    }  # fmt: skip
    np.testing.assert_allclose(drawn(words, moved)[:3], found[:3], atol=1e-6)
    # Without words it is what a run that reads frames alone gives.
    first, last = frames[2:3, 0], frames[2:3, 1]

    @jax.jit
    def alone(first, last):
        z = model.apply(params, variables, "quantize", first, last)[0]
        return model.apply(params, variables, "decode", first, z)[0]

    np.testing.assert_allclose(alone(first, last)[0], found[2], atol=1e-5)


def test_the_first_codebook_is_taken_frozen_and_heard():
    config, model, params, variables = build(stage=2, weights="runs/stage1", untold=0.0)
    objective, chosen = objective_config(config.objective)
    assert objective.columns(chosen) == {} and objective.fields(chosen) == ()
    before = flatten(variables)
    taken = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    there = ConfigDict({"stage": "quantizer", "model": {"objective": {"name": "pixels"}}})
    (borrowed,) = objective.borrowed(chosen)
    assert borrowed.key == "model.objective.weights" and borrowed.run == "runs/stage1"
    with pytest.raises(ValueError, match="name='two_stage', which is 'pixels' there; .*stage=1"):
        with_borrowed(borrowed, variables, there, {"bottleneck": {"codebook": taken}})
    there.model.objective = settings(stage=2)
    with pytest.raises(ValueError, match="^model.objective.stage=1, which is 2 there$"):
        with_borrowed(borrowed, variables, there, {"bottleneck": {"codebook": taken}})
    there.model.objective = settings()
    variables = with_borrowed(borrowed, variables, there, {"bottleneck": {"codebook": taken}})
    path = "objective/first/bottleneck/codebook"
    np.testing.assert_array_equal(flatten(variables)[path], taken)
    assert {p for p, x in flatten(variables).items() if x is not before[p]} == {path}
    with pytest.raises(ValueError, match="trained nothing called 'bottleneck'"):
        with_borrowed(borrowed, variables, there, {})

    frames = batch_of(config, jax.random.key(2), 8)["frames"]

    @jax.jit
    def gradient(variables):
        def loss(params):
            out, new = model.apply(
                params, variables, "__call__", frames, train=True, rng=jax.random.key(0)
            )
            return out["loss"], (out["metrics"], new)

        return jax.grad(loss, has_aux=True)(params)

    grads, (metrics, new) = gradient(variables)
    np.testing.assert_array_equal(flatten(new)[path], taken)
    own = flatten(grads)["objective/first/code_projection/out/kernel"]
    assert np.abs(own).max() > 0 and metrics["first_error"] > 0
    mean = flatten(new)["objective/first/normalize/mean"]
    assert np.abs(mean).max() > 0, "their latents have statistics of their own"


def test_words_and_what_is_refused():
    objective, chosen = objective_config(settings())
    assert objective.fields(chosen) == ("instruction",)
    texts = ["Push the RED block!", "", "push  the red, block", "one two three four five"]
    assert split(texts[0]) == split(texts[2]) == ["push", "the", "red", "block"]
    words = objective.prepare(chosen, {"instruction": np.array(texts[:3], object)})["words"]
    assert words.dtype == np.int32 and (words[0] == words[2]).all() and (words[0] > 0).all()
    assert (words[1] == 0).all() and words.max() < chosen.text_vocab
    which, why, remedy = objective.unusable(chosen, texts)
    assert which.tolist() == [False, False, False, True] and "Raise model.objective" in remedy
    assert "model.objective.text_length=4 words (the longest has 5)" in why
    with pytest.raises(ValueError, match="has 5 words, more than model.objective.text_length=4"):
        objective.prepare(chosen, {"instruction": np.array(texts, object)})
    second = settings(stage=2, of=base.objective("features").to_dict())
    objective, chosen = objective_config(second)
    assert [(b.key, b.ours) for b in objective.borrowed(chosen)] == [
        ("model.objective.of.weights", "objective/of/teacher"),
        ("model.objective.weights", "objective/first/bottleneck"),
    ]
    with pytest.raises(ValueError, match="'rotation' pairs more frames than 'two_stage'"):
        objective_config(settings(of=base.objective("rotation").to_dict()))
