"""The language of selections, and what float32 holds."""

import numpy as np
import pytest

from data_pipelines.rlds import selection


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("action", [("action", None)]),
        ("a/b[:3], c.d", [("a/b", 3), ("c.d", None)]),
        ("left arm", [("left arm", None)]),
        *(
            (text, None)
            for text in ("a,", ",a", "a[3]", "a[:0]", "a[:-1]", "a[1:3]", " ", "a]", "[:2]")
        ),
    ],
)
def test_selections(text, wanted):
    if wanted is None:
        with pytest.raises(ValueError, match=r"is not PATH, PATH\[:N\]"):
            selection.parts(text)
    else:
        assert selection.parts(text) == wanted


@pytest.mark.parametrize(
    ("cameras", "wanted"),
    [
        (["a/top"], []),
        (["a/top", "a/wrist"], ["wrist"]),
        (["observation.images.top", "observation.images.wrist"], ["wrist"]),
        (["left/rgb", "right/rgb", "back/rgb"], ["right_rgb", "back_rgb"]),
        (["wrist", "image"], ["image_2"]),
        (["a", "x/state", "image"], ["x_state", "image_3"]),
    ],
)
def test_names_of_further_cameras(cameras, wanted):
    assert selection.short_names(cameras) == wanted
    with pytest.raises(ValueError, match="selected twice"):
        selection.short_names([*cameras, cameras[0]])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([True, False]), [1, 0]),
        (np.array([-128], np.int8), [-128]),
        (np.array([2**24, -(2**24), 2**62], np.int64), [2**24, -(2**24), 2**62]),
        (np.array([2**63], np.uint64), [2**63]),
        (np.array([0.1, np.nan, np.inf]), np.float32([0.1, np.nan, np.inf])),
        (np.array([65504], np.float16), [65504]),
        (np.array([2**24 + 1]), None),
        (np.array([-(2**53) - 1]), None),
        (np.array([2**63 - 1]), None),
        (np.array([-(2**63)]), [-(2**63)]),
        (np.array([2**64 - 1], np.uint64), None),
        (np.array([1e39]), None),
        (np.array(["a"]), None),
    ],
)
def test_numbers_are_widened_exactly_or_refused(values, wanted):
    if wanted is None:
        with pytest.raises(selection.FieldError, match="x holds"):
            selection.as_float32(values, "x")
    else:
        found = selection.as_float32(values, "x")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.array(wanted, np.float32))
