import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.diagnostics.reconstruction import ReconstructionSums, image_errors, psnr, skill


def images(value, n=2, dtype=np.float32):
    return np.full((n, 4, 4, 3), value, dtype)


def test_hand_computed_values():
    sums = ReconstructionSums()
    sums.update(images(0.0), images(0.5), images(0.4))
    result = sums.result()
    assert result["mse"] == pytest.approx(0.01, rel=1e-6)
    assert result["mse_copy"] == pytest.approx(0.25)
    assert result["psnr"] == pytest.approx(20.0, rel=1e-6)
    assert result["skill"] == pytest.approx(0.96)
    assert result["better_than_copy_fraction"] == 1.0


def test_copying_has_skill_zero_and_perfection_one():
    rng = np.random.default_rng(0)
    first, later = rng.random((2, 3, 4, 4, 3))
    sums = ReconstructionSums()
    sums.update(first, later, first)
    assert sums.result()["skill"] == 0.0
    sums = ReconstructionSums()
    sums.update(first, later, later)
    assert sums.result()["skill"] == 1.0 and sums.result()["psnr"] is None


def test_frames_that_never_change_have_no_skill():
    sums = ReconstructionSums()
    sums.update(images(0.5), images(0.5), images(0.6))
    assert sums.result()["skill"] is None
    assert skill(0.1, 0.0) is None and psnr(0.0) is None and psnr(1.0) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_batches_merge_and_mask_agree_with_one_pass(n, cut, seed):
    rng = np.random.default_rng(seed)
    first, later, recon = rng.integers(0, 256, (3, n, 2, 3, 3), dtype=np.uint8)
    whole = ReconstructionSums()
    whole.update(first, later, recon)
    left, right = ReconstructionSums(), ReconstructionSums()
    left.update(first[:cut], later[:cut], recon[:cut])
    right.update(first[cut:], later[cut:], recon[cut:])
    padded = ReconstructionSums()
    pad = [np.concatenate([x, x[:1]]) for x in (first, later, recon)]
    padded.update(*pad, mask=np.arange(n + 1) < n)
    for other in (left.merge(right), padded):
        assert other.result() == pytest.approx(whole.result())


def test_uint8_and_float_agree():
    rng = np.random.default_rng(0)
    first, later, recon = rng.integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    as_bytes = image_errors(first, later, recon)
    as_floats = image_errors(first / 255.0, later / 255.0, recon / 255.0)
    np.testing.assert_allclose(as_bytes, as_floats, rtol=1e-12)


def test_overshoot_is_scored_not_clipped():
    error, _ = image_errors(images(0.0), images(1.0), images(1.5))
    np.testing.assert_allclose(error, 0.25)


@pytest.mark.parametrize("first, word", [
    (images(0, dtype=np.int32), "int32"),
    (images(0, dtype=np.float16), "float16"),
    (images(-1.0), r"\[0, 1\]"),
    (images(200.0), r"\[0, 1\]"),
    (images(np.nan), "non-finite"),
    (images(0.0)[0], "shape"),
    (images(0.0, n=3), "one shape"),
])
def test_other_images_are_errors(first, word):
    with pytest.raises(ValueError, match=word):
        image_errors(first, images(0.5), images(0.5))


def test_nothing_added_is_an_error():
    with pytest.raises(ValueError, match="update"):
        ReconstructionSums().result()
