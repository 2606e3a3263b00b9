import numpy as np
import pytest

from lapa_jax.diagnostics.reconstruction import (
    image_errors,
    psnr,
    reconstruction_report,
    skill,
)


def images(value, n=2, dtype=np.float32):
    return np.full((n, 4, 4, 3), value, dtype)


def report(first, later, recon, episode=None):
    errors = image_errors(first, later, recon)
    episode = np.arange(len(errors[0])) if episode is None else episode
    return reconstruction_report(*errors, episode, seed=0)


def test_hand_computed_values():
    result = report(images(0.0), images(0.5), images(0.4))
    assert result["mse"] == pytest.approx(0.01, rel=1e-6)
    assert result["mse_copy"] == pytest.approx(0.25)
    assert result["psnr"] == pytest.approx(20.0, rel=1e-6)
    assert result["skill"] == pytest.approx(0.96)
    assert result["better_than_copy_fraction"] == 1.0 and result["images"] == 2
    # Equal images leave nothing to resample.
    assert result["skill_interval"] == pytest.approx([0.96, 0.96])
    assert result["psnr_interval"] == pytest.approx([20.0, 20.0])


def test_copying_has_skill_zero_and_perfection_one():
    rng = np.random.default_rng(0)
    first, later = rng.random((2, 3, 4, 4, 3))
    assert report(first, later, first)["skill"] == 0.0
    perfect = report(first, later, later)
    assert perfect["skill"] == 1.0 and perfect["psnr"] is None


def test_frames_that_never_change_have_no_skill():
    result = report(images(0.5), images(0.5), images(0.6))
    assert result["skill"] is None and result["skill_interval"] is None
    assert skill(0.1, 0.0) is None and psnr(0.0) is None and psnr(1.0) == 0.0


def test_intervals_hold_the_estimate_and_shrink_with_episodes():
    rng = np.random.default_rng(0)
    first, later, recon = rng.random((3, 400, 2, 2, 3))
    few = report(first, later, recon, np.arange(400) // 80)
    many = report(first, later, recon, np.arange(400))
    for name in ("skill", "psnr"):
        (low, high), (low2, high2) = few[f"{name}_interval"], many[f"{name}_interval"]
        assert low <= few[name] <= high and low2 <= many[name] <= high2
        assert few[name] == many[name]
    assert many["skill_interval"] != few["skill_interval"]


def test_uint8_and_float_agree():
    rng = np.random.default_rng(0)
    first, later, recon = rng.integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    as_bytes = image_errors(first, later, recon)
    as_floats = image_errors(first / 255.0, later / 255.0, recon / 255.0)
    np.testing.assert_allclose(as_bytes, as_floats, rtol=1e-12)


def test_overshoot_is_scored_not_clipped():
    error, _ = image_errors(images(0.0), images(1.0), images(1.5))
    np.testing.assert_allclose(error, 0.25)


@pytest.mark.parametrize(
    "first, word",
    [
        (images(0, dtype=np.int32), "int32"),
        (images(0, dtype=np.float16), "float16"),
        (images(-1.0), r"\[0, 1\]"),
        (images(200.0), r"\[0, 1\]"),
        (images(np.nan), "non-finite"),
        (images(0.0)[0], "shape"),
        (images(0.0, n=3), "one shape"),
    ],
)
def test_other_images_are_errors(first, word):
    with pytest.raises(ValueError, match=word):
        image_errors(first, images(0.5), images(0.5))
