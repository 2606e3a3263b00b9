import base64
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from lapa_jax.report import figures
from lapa_jax.report.frames import BRIGHTER, DARKER, change_scale, signed_change, tint_change
from lapa_jax.report.picture import to_uint8

SVG = "{http://www.w3.org/2000/svg}"
ATTACK = 'push <script>alert(1)</script> & $x^2$ \x00 "now"'


def data(picture):
    kind, body = re.fullmatch(r"data:image/(\S+);base64,(.+)", picture.data_uri).groups()
    return kind, base64.b64decode(body)


def svg(picture):
    kind, body = data(picture)
    assert kind == "svg+xml"
    root = ElementTree.fromstring(body)
    assert root.tag == SVG + "svg"
    # Every address in it is inside it: nothing is fetched, nothing runs.
    for element in root.iter():
        assert element.tag != SVG + "script"
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith(("#", "data:image/png;base64,"))
    return root


def embedded(picture):
    """The frames inside a drawing, in order."""
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(e.get("href").split(",")[1]))))
        for e in svg(picture).iter(SVG + "image")
    ]


def texts(picture):
    return [element.text for element in svg(picture).iter(SVG + "text")]


def scene(x):
    image = np.full((16, 16, 3), 220, np.uint8)
    image[6:9, x : x + 3] = 30
    return image


def test_png_keeps_the_pixels_and_scales_in_the_page():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    picture = figures.picture_of_frame(image, "noise", scale=3)
    kind, body = data(picture)
    assert kind == "png" and (picture.width, picture.height) == (72, 48) and picture.pixelated
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), image)


def test_images_of_a_wrong_scale_are_errors():
    np.testing.assert_array_equal(to_uint8(np.full((1, 1, 3), 1.1)), 255)
    for bad, word in (
        (np.full((4, 4, 3), 200.0), "range"),
        (np.full((4, 4, 3), -1.0), "range"),
        (np.zeros((4, 4, 3), np.int32), "dtype"),
        (np.zeros((4, 4)), "shape"),
        (np.full((4, 4, 3), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=word):
            to_uint8(bad)


def test_change_is_painted_where_it_is_and_with_its_sign():
    before, after = scene(2), scene(10)
    change = signed_change(before, after)
    assert (change[6:9, 2:5] > 0.7).all() and (change[6:9, 10:13] < -0.7).all()
    assert np.count_nonzero(change) == 18
    painted = tint_change(before, change, change_scale([change]))
    assert (painted[6:9, 2:5] == BRIGHTER).all() and (painted[6:9, 10:13] == DARKER).all()
    rest = painted[change == 0]
    assert (rest.max(-1) == rest.min(-1)).all(), "unchanged pixels must stay grey"


def test_a_change_of_colour_alone_is_seen():
    before = np.zeros((2, 2, 3), np.uint8) + np.array([200, 50, 50], np.uint8)
    assert np.abs(signed_change(before, before[..., [1, 0, 2]])).min() > 0.5


def test_noise_does_not_glow():
    noise = np.random.default_rng(0).uniform(-3 / 255, 3 / 255, (16, 16))
    painted = tint_change(scene(4), noise, change_scale([noise])).astype(int)
    assert (painted.max(-1) - painted.min(-1)).max() < 30


def test_atlas_shows_decoded_frames_and_their_change():
    starts = np.stack([scene(2), scene(6)])
    decoded = np.stack([[start, np.roll(start, 4, axis=1)] for start in starts])
    picture = figures.atlas(starts, decoded, ["z = 0", "z = 1"])
    images = embedded(picture)
    assert len(images) == 2 * (1 + 2 * 2)
    np.testing.assert_array_equal(images[0], starts[0])
    np.testing.assert_array_equal(images[3], decoded[0, 1])
    still, moved = images[2].astype(int), images[4].astype(int)
    assert np.ptp(still, axis=-1).max() == 0, "no change, no colour"
    coloured = np.ptp(moved, axis=-1) > 60
    np.testing.assert_array_equal(coloured, np.any(starts[0] != decoded[0, 1], -1))
    assert {"z = 0", "z = 1", "start"} <= set(texts(picture))
    with pytest.raises(ValueError, match="columns"):
        figures.atlas(starts, decoded, ["z = 0"])
    with pytest.raises(ValueError, match="starts"):
        figures.atlas(starts[:1], decoded, ["z = 0", "z = 1"])


def test_reconstruction_grid_has_five_rows_and_shows_what_is_missed():
    first, later = np.stack([scene(2)] * 3), np.stack([scene(10)] * 3)
    picture = figures.reconstruction_grid(first, later, later / 255.0, labels=["a", "b", ATTACK])
    images = embedded(picture)
    assert len(images) == 15
    assert np.ptp(images[12].astype(int), axis=-1).max() == 0, "perfect: no difference"
    assert any("<script>" in text for text in texts(picture))
    with pytest.raises(ValueError, match="3 examples"):
        figures.reconstruction_grid(first, later, later, labels=["a"])
    with pytest.raises(ValueError, match="one shape"):
        figures.reconstruction_grid(first, later[:2], later)


def test_film_strips_keep_first_and_last_frame_and_the_words():
    frames = np.stack([np.full((8, 8, 3), t, np.uint8) for t in range(30)])
    picture = figures.film_strips(
        [figures.Strip(frames, ATTACK, True, "arm"), figures.Strip(frames[:3], "go", False)],
        frames=5,
    )
    images = embedded(picture)
    assert [int(image[0, 0, 0]) for image in images] == [0, 7, 14, 22, 29, 0, 1, 2]
    words = texts(picture)
    assert "✓ success" in words and "✗ failure" in words
    assert "<script>" in " ".join(words) and "\ufffd" in " ".join(words)
    assert "success" in picture.alt and "failure" in picture.alt


def test_pipeline_shows_notes_and_frames():
    picture = figures.pipeline_diagram(
        {"quantizer": "8 codes " + ATTACK, "demonstrations": "25 episodes"}, {"videos": scene(3)}
    )
    words = " ".join(texts(picture))
    for word in ("Videos", "Quantizer", "Labels", "Latent VLA", "Action VLA", "Success", "25"):
        assert word in words
    assert len(embedded(picture)) == 1 and "quantizer" in picture.alt
    with pytest.raises(ValueError, match="no box 'policy'"):
        figures.pipeline_diagram({"policy": "x"})


def charts():
    rows = [{"step": i, "loss": 1 / (1 + i)} for i in range(40)] + [{"step": 40, "eval": 1.0}]
    meaning = [
        {
            "code": [c, 0],
            "count": 9,
            "share": 0.3,
            "mean": [c - 1.0, 0.5, 0.0],
            "covariance": np.diag([0.1, 0.2, 0.0]).tolist(),
        }
        for c in range(3)
    ]
    success = [
        {"family": f, "arm": a, "estimate": 0.4, "low": 0.2, "high": 0.6}
        for f in ("reach", ATTACK)
        for a in ("scratch", "latent")
    ]
    grid = [
        {"model.size": size, "seed": seed, "bits": size / (1 + seed), ATTACK: None if seed else 0.5}
        for size in (4, 8, 64)
        for seed in (0, 1)
    ]
    line, best = grid[::2], {"bits": grid[4], ATTACK: None}
    return {
        "heat": lambda: figures.heat_maps(grid, "model.size", "seed", best),
        "curves": lambda: figures.measure_curves(line, "model.size", best),
        "loss": lambda: figures.loss_curves({ATTACK: rows, "b": rows}, log=True, smooth=5),
        "usage": lambda: figures.code_usage([[5, 3, 0, 1], [1, 1, 1, 1]]),
        "success": lambda: figures.success_chart(success),
        "meaning": lambda: figures.code_meaning(meaning, dims=(0, 1)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heat", "curves", "loss", "usage", "success", "meaning"])
def test_charts_are_deterministic_offline_svg_of_the_stated_size(name):
    make = charts()[name]
    picture = make()
    assert picture == make()
    root = svg(picture)
    _, _, width, height = map(float, root.get("viewBox").split())
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.01)
    assert len(list(root.iter(SVG + "path"))) > 5
    body = data(picture)[1].decode()
    assert "var(--ink)" in body and "#010203" not in body, "inks must follow light and dark"
    assert "pyplot" not in body


def test_scales_are_logarithmic_where_values_are():
    for values in ([4, 8, 64], [1e-4, 1e-2], [1, 8]):
        assert figures.is_logarithmic(values)
    for values in ([4, 8], [0, 8], [-1, 8], [True, 8], ["a", "b"], [3]):
        assert not figures.is_logarithmic(values)


def test_loss_curves_name_a_missing_metric():
    with pytest.raises(ValueError, match="no metric 'lss'.*'loss'"):
        figures.loss_curves({"run": [{"step": 1, "loss": 1.0}]}, "lss")
    with pytest.raises(ValueError, match="at least one"):
        figures.loss_curves({})


def test_success_chart_rejects_impossible_and_doubled_rows():
    row = {"family": "f", "arm": "a", "estimate": 0.5, "low": 0.6, "high": 0.7}
    with pytest.raises(ValueError, match="low <= estimate"):
        figures.success_chart([row])
    with pytest.raises(ValueError, match="twice"):
        figures.success_chart([row, row])


def test_code_meaning_says_how_much_it_shows():
    row = {
        "code": [0],
        "count": 5,
        "share": 0.25,
        "mean": [0.0, 0.0],
        "covariance": [[0.0, 0.0], [0.0, 0.0]],
    }
    picture = figures.code_meaning([row] * 30, limit=2)
    assert "2 latent actions" in picture.alt
    with pytest.raises(ValueError, match="dimensions"):
        figures.code_meaning([row], dims=(0, 2))


@pytest.mark.slow
def test_imports_stay_light():
    code = (
        "import sys, lapa_jax.report.html, lapa_jax.diagnostics.probes\n"
        "assert not {'matplotlib', 'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
        "import lapa_jax.report.figures\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot keeps global state'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
