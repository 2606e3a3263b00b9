import numpy as np
import pytest

from lapa_jax.diagnostics.reconstruction import (
    image_errors,
    psnr,
    reconstruction_report,
    skill,
    structural_similarity,
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


def windowed_ssim(x, y):
    """Wang et al. 2004, equation 13, window by window and channel by channel."""
    place = np.arange(-5, 6)
    line = np.exp(-(place**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for row in range(5, x.shape[0] - 5):
        for column in range(5, x.shape[1] - 5):
            for channel in range(x.shape[2]):
                here = np.s_[row - 5 : row + 6, column - 5 : column + 6, channel]
                a, b = x[here], y[here]
                mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                var_a = (weight * (a - mean_a) ** 2).sum()
                var_b = (weight * (b - mean_b) ** 2).sum()
                cov = (weight * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                )
    return np.mean(values)


def test_ssim_is_that_of_direct_windowed_sums():
    rng = np.random.default_rng(0)
    reference = rng.random((3, 17, 14, 2))
    noisy = reference + 0.2 * rng.normal(size=reference.shape)  # leaves [0, 1]
    found = structural_similarity(noisy, reference)
    expected = [windowed_ssim(x, y) for x, y in zip(noisy, reference, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_ssim_of_known_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(structural_similarity(one, one), 1.0)
    assert np.abs(structural_similarity(one, other)).max() < 0.05
    np.testing.assert_allclose(
        structural_similarity(one, other), structural_similarity(one / 255.0, other / 255.0)
    )
    # Constant images differ in luminance only: 2ab + C1 over a² + b² + C1.
    flat = structural_similarity(np.full((1, 11, 11, 1), 0.5), np.full((1, 11, 11, 1), 0.2))
    assert flat == pytest.approx((0.2 + 1e-4) / (0.29 + 1e-4))


def test_report_of_ssim_is_an_addition():
    rng = np.random.default_rng(0)
    first, later = rng.random((2, 6, 16, 16, 3))
    recon = 0.7 * later + 0.3 * first
    errors = image_errors(first, later, recon)
    ssim, copy = structural_similarity(recon, later), structural_similarity(first, later)
    episode = np.arange(6)
    plain = reconstruction_report(*errors, episode, seed=0)
    found = reconstruction_report(*errors, episode, seed=0, ssim=ssim, ssim_copy=copy)
    assert set(found) - set(plain) == {
        "ssim",
        "ssim_interval",
        "ssim_copy",
        "ssim_copy_interval",
    }
    assert {name: found[name] for name in plain} == plain
    assert found["ssim"] == pytest.approx(ssim.mean()) and found["ssim"] > found["ssim_copy"] + 0.3
    assert found["ssim_interval"][0] <= found["ssim"] <= found["ssim_interval"][1]


def test_images_without_a_window_are_errors():
    with pytest.raises(ValueError, match="11 pixels"):
        structural_similarity(np.zeros((1, 10, 32, 3)), np.zeros((1, 10, 32, 3)))
    with pytest.raises(ValueError, match="one shape"):
        structural_similarity(np.zeros((2, 16, 16, 3)), np.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match=r"reference holds values"):
        structural_similarity(np.zeros((1, 16, 16, 3)), np.full((1, 16, 16, 3), 1.5))
