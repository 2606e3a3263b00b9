"""A policy of latent actions that acts by a frame that is drawn, and read."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy

from lapa_jax import envs, stages
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.policy import heads
from lapa_jax.runs import loaded, unipi
from lapa_jax.training import session
from lapa_jax.verbs import evaluate

TEXTS = ["push the red block", "move the green square to place 2"]


@pytest.fixture(scope="module")
def runs():
    """(policy of z, quantizer, inverse dynamics model), whose windows are 0.2 s."""
    given = dict(target=heads.head_settings("chunk"), num_frames=2, inverse_dynamics=True)
    latent = drawn(loaded.LoadedPolicy, *tiny_policy.policy_config("latent", depth=1))
    quantizer = drawn(loaded.LoadedQuantizer, tiny_policy.quantizer_config(), {})
    config = tiny_policy.policy_config("action", corpus="robot", depth=1, **given)
    labels = {"quantizer_hash": quantizer.params_hash, "window_seconds": 0.2}
    latent = dataclasses.replace(latent, provenance={"label_sets": {"robot": labels}})
    return latent, quantizer, windowed(drawn(loaded.LoadedPolicy, *config), 0.2)


def drawn(kind, config, assets):
    """A model of random weights; nothing is compiled."""
    stage, rng = stages.build(config, assets), np.random.default_rng(0)
    params, variables = jax.eval_shape(stage.model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    return kind(config, stage, params, variables, params_hash="drawn")


def windowed(run, seconds):
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.corpora.robot.window_seconds = seconds
    return dataclasses.replace(run, config=config, provenance={"control_hz": 10.0})


def test_it_is_its_three_parts_one_after_the_other(runs):
    policy, quantizer, inverse = runs
    model = unipi.compose(*runs)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)

    @jax.jit
    def both(params, variables, prompts, first):
        own = ((params[name], variables[name]) for name in ("policy", "quantizer", "inverse"))
        says, draws, reads = own
        z = policy.stage.predict(*says, prompts, first[:, None]).values
        drawn = quantizer.stage.decode(*draws, first, z)
        later = jnp.round(drawn.clip(0, 1) * 255).astype(jnp.uint8)
        asked = inverse.stage.prompts(["", ""])
        action = inverse.stage.act(*reads, asked, jnp.stack([first, later], axis=1))
        found = model.stage.act(params, variables, prompts, first[:, None])
        return found, action, drawn

    found, expected, drawn = both(
        model.params, model.variables, policy.stage.prompts(TEXTS), images
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert drawn.min() < 0 or drawn.max() > 1  # so that its range matters
    assert np.abs(found[0] - found[1]).max() > 1e-4
    env = envs.make({"name": "tabletop", "horizon": 2})
    options = dict(episodes=2, seed=0, temperature=1.0)
    report = evaluate_success(model, env, "reach", **options).report
    assert report["episodes"] == 2 and report["prediction_horizon"] == 1


def test_parts_that_do_not_fit_are_named(runs, monkeypatch):
    policy, quantizer, inverse = runs
    features = SimpleNamespace(
        read=quantizer.stage.read,
        model_config=quantizer.stage.model_config,
        decode_latent=lambda params, variables, first, z: jnp.zeros((len(first), 4, 6, 8)),
    )
    labels = {"quantizer_hash": "another", "window_seconds": 0.2}
    other = dataclasses.replace(policy, provenance={"label_sets": {"robot": labels}})
    for parts, message in (
        ((policy, quantizer, policy), "model.inverse_dynamics=False and sees no later frame"),
        ((policy, quantizer, windowed(inverse, 0.1)), "frames 0.1 s apart .* leads .0.2. s ahead"),
        ((inverse, quantizer, inverse), "this policy predicts actions"),
        ((other, quantizer, inverse), "the policy learnt labels of .'another'."),
        (
            (policy, dataclasses.replace(quantizer, stage=features), inverse),
            r"its decoder gives \[4, 6, 8\] numbers, not a picture",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            unipi.compose(*parts)
    sized = inverse.config.copy_and_resolve_references()
    with sized.unlocked():
        sized.data.image_size = (64, 64)
    with pytest.raises(ValueError, match="1 cameras of .64, 64.; one frame of .32, 48. is drawn"):
        unipi.compose(policy, quantizer, dataclasses.replace(inverse, config=sized))
    flags = (["--quantizer", "q"], ["--inverse_dynamics", "i"])
    for one in flags:
        with pytest.raises(ValueError, match="act together: give both"):
            evaluate.main(["--workdir", "latent", *one])
    monkeypatch.setattr(evaluate, "load", lambda workdir: inverse)
    with pytest.raises(ValueError, match="are of policies of latent actions; .* action_finetuning"):
        evaluate.main(["--workdir", "inverse", *itertools.chain(*flags)])


def test_an_inverse_dynamics_model_is_told_what_it_is_good_for(runs, capsys):
    policy, _, inverse = runs
    for run, told in ((inverse, "lapa label --what actions --workdir idm"), (policy, "lapa eval")):
        session.tell_end("idm", run.config, done=True)
        assert capsys.readouterr().out.startswith(f"run: idm\nnext: {told}")
