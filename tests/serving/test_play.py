"""`lapa play`: frames along z, what it refuses, and its page."""

import dataclasses
import io
import json
import types

import av
import numpy as np
import pytest
import requests
import tiny
from browser import needs_browser
from ml_collections import ConfigDict
from served import TOKEN, b64, picture, png, running
from tiny_policy import make_policy, quantizer_config, write

from data_pipelines.convert.looks import fit_image
from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader.frames import FrameReader
from data_pipelines.normalise import Normaliser
from lapa_jax.evidence.rollout_sources import z_of_file
from lapa_jax.runs import loaded
from lapa_jax.serving.limits import Refused
from lapa_jax.serving.play import first as first_frames
from lapa_jax.serving.play import meanings, start
from lapa_jax.serving.play.app import Game
from lapa_jax.verbs import play
from lapa_jax.world.imagination import Imagination, open_imagination

SIZE = (32, 48)
Z = [[1, 2, 3], [0, 0, 7], [5, 5, 5], [1, 2, 3]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write(tmp_path_factory.mktemp("play") / "run", quantizer_config(), {})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "first.png"
    path.write_bytes(png(picture(1, SIZE)))
    return path


def prepare(run, *given, token=""):
    arguments = ["--workdir", run, "--port", 0, "--steps", 20, *given]
    return start.prepare(play.parser().parse_args([str(x) for x in arguments]), token)


@pytest.fixture(scope="module")
def server(run, first):
    with running(*prepare(run, "--frame", first)) as found:
        yield found


def ask(server, z, since=0, path="/frames", **more):
    message = {"z": z} | ({"since": since} if path == "/frames" else {})
    return requests.post(server.url + path, json=message, **more)


def told(server, z, since=0):
    found = ask(server, z, since)
    assert found.status_code == 200, found.text
    return found.json()["frames"]


# --- Frames ---


def test_frames_are_those_of_the_model(server, run):
    imagination = open_imagination(run)
    state = imagination.start(picture(1, SIZE)[None])
    expected = [png(picture(1, SIZE))]
    for z in Z:
        state, frame = imagination.step(state, np.array([z]))
        expected.append(png(np.round(np.asarray(frame)[0] * 255).astype(np.uint8)))
    assert len(set(expected)) == len(Z) + 1
    uris = ["data:image/png;base64," + b64(one) for one in expected]
    assert told(server, Z) == uris
    assert told(server, Z, 3) == uris[3:] and told(server, []) == uris[:1]


def test_undoing_gives_the_same_bytes(server, run, first):
    """Whatever was done between, and where nothing is held any more."""
    before = told(server, Z[:2])
    told(server, [*Z[:2], [7, 7, 7], [6, 6, 6]])
    assert told(server, Z[:2]) == before
    assert told(server, [*Z[:1], [4, 4, 4]]) != before
    player = server.server.engine
    for most in (2, player.most):
        player._held.clear()
        player.most = most
        assert told(server, Z[:2]) == before
    with running(*prepare(run, "--frame", first)) as other:
        assert told(other, Z[:2]) == before


def test_only_so_many_frames_are_held(server):
    player = server.server.engine
    most, player.most = player.most, 3
    told(server, [[7, 0, code % 8] for code in range(10)])
    assert len(player._held) <= 3
    player.most = most


def test_a_video_of_all_frames(server):
    found = ask(server, Z, path="/video")
    assert found.status_code == 200 and found.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(found.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(Z) + 1
        assert float(container.streams.video[0].average_rate) == pytest.approx(
            server.server.engine.imagination.rate, rel=1e-3
        )


# --- What is refused ---


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("{", 400, "the body is not JSON"),
        ("[" * 100_000, 400, "the body is not JSON"),
        ("[]", 400, "an object with the keys ['since', 'z'] alone"),
        ('{"z": []}', 400, "an object with the keys ['since', 'z'] alone"),
        ('{"z": [], "since": 0, "path": "/etc"}', 400, "an object with the keys"),
        ('{"z": 1, "since": 0}', 422, "z must be a list"),
        ('{"z": [1], "since": 0}', 422, "lists of the lengths [3]"),
        ('{"z": [[1, 2]], "since": 0}', 422, "lists of the lengths [3]"),
        ('{"z": [[1, 2, 8]], "since": 0}', 422, "a whole number from 0 to 7"),
        ('{"z": [[1, 2, -1]], "since": 0}', 422, "a whole number from 0 to 7"),
        ('{"z": [[1, 2, 1.0]], "since": 0}', 422, "a whole number from 0 to 7"),
        ('{"z": [[1, 2, true]], "since": 0}', 422, "a whole number from 0 to 7"),
        ('{"z": [[1, 2, NaN]], "since": 0}', 422, "a whole number from 0 to 7"),
        ('{"z": [[1, 2, %s]], "since": 0}' % ("9" * 400), 422, "a whole number from 0 to 7"),
        ('{"z": [], "since": 1}', 422, "since must be a whole number from 0 to 0"),
        ('{"z": [], "since": false}', 422, "since must be a whole number from 0 to 0"),
        (json.dumps({"z": [[0, 0, 0]] * 21, "since": 21}), 422, "21 steps: at most 20 (--steps)"),
        ("x" * (2**20 + 1), 413, "at most 1048576"),
    ],
)
def test_bad_input_is_one_line(server, body, status, reason):
    found = requests.post(server.url + "/frames", data=body)
    assert (found.status_code, list(found.json())) == (status, ["error"]), found.text
    assert reason in found.json()["error"] and "\n" not in found.json()["error"]


def test_vectors_are_numbers_and_answers_have_an_end():
    game = Game(0, (2, 3), 100)
    z = [[[0, 1.5, -2], [1e6, 0, 0]]]
    np.testing.assert_array_equal(game.video(json.dumps({"z": z}).encode()), np.float32(z))
    for bad in ("NaN", "Infinity", "1e7", '"1"', "null", "true", "9" * 400):
        text = json.dumps({"z": z}).replace("1.5", bad).encode()
        with pytest.raises(Refused, match=r"from -1e\+06 to 1e\+06"):
            game.video(text)
    with pytest.raises(Refused, match="65 frames asked at once: at most 64"):
        game.frames(json.dumps({"z": z * 64, "since": 0}).encode())


def test_who_may_ask(server, run, first):
    evil = {"Origin": "http://evil.com"}
    assert ask(server, [], headers=evil).status_code == 403
    assert ask(server, [], headers={"Host": "evil.com"}).status_code == 400
    with pytest.raises(ValueError, match="--host 0.0.0.0 is open to others: set LAPA_SERVE_TOKEN"):
        prepare(run, "--frame", first, "--host", "0.0.0.0")
    with running(*prepare(run, "--frame", first, token=TOKEN)) as closed:
        assert ask(closed, []).status_code == 401
        assert requests.get(closed.url + "/metadata").status_code == 401
        assert requests.get(closed.url + "/page.js").status_code == 200
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(closed, [], headers=headers).status_code == 200


def test_what_a_game_cannot_start_from(run, first, tmp_path, tiny_data, tmp_path_factory):
    large, corpus = tmp_path / "large.png", tiny_data / "robot"
    large.write_bytes(png(picture(1, (64, 96))))
    (tmp_path / "text.png").write_text("no image")
    of_corpus = ("--corpus", corpus, "--episode")
    for given, reason in (
        ((), "--frame FILE, or --corpus DIR with --episode N"),
        (("--frame", first, *of_corpus, 0), "--frame FILE, or --corpus DIR with --episode N"),
        (("--episode", 0), "--episode 0 is of a --corpus: name one"),
        (("--frame", first, "--step", 3), "--step 3 is of an --episode of --corpus: name one"),
        (("--frame", large), "an image of 64x96 (rows x columns), and the model's frames are of"),
        (("--frame", tmp_path / "text.png"), "image is neither a JPEG nor a PNG"),
        (("--frame", tmp_path / "none.png"), "none.png: No such file or directory"),
        ((*of_corpus, 10), "has 10 episodes, from 0"),
        ((*of_corpus, 0, "--step", 99), "--step 99: episode 0 has"),
        ((*of_corpus, 0), "the model's frames are of 32x48: resize it, or set --resizing"),
        (("--frame", first, "--host", "no.such.host.invalid"), "LAPA_SERVE_TOKEN"),
    ):
        code, _, error = tiny.lapa("play", "--workdir", run, "--port", 0, *given)
        assert code == 2 and reason in error.splitlines()[-1] and "Traceback" not in error, error
    code, _, error = tiny.lapa("play", "--workdir", tmp_path / "none", "--frame", first)
    assert code == 2 and "Traceback" not in error
    policy = make_policy(tmp_path_factory.mktemp("policy") / "run", "latent")
    code, _, error = tiny.lapa("play", "--workdir", policy, "--frame", first, "--port", 0)
    assert code == 2 and "frames are imagined by those of stage 'quantizer' and 'dynam" in error


def test_a_first_frame_is_resized_where_that_is_asked(tiny_data, tmp_path):
    path, image = tmp_path / "large.png", picture(1, (64, 96))
    path.write_bytes(png(image))
    np.testing.assert_array_equal(
        first_frames.of_file(str(path), SIZE, "crop"), fit_image(image, SIZE, "crop")
    )
    index = load_index(tiny_data / "robot")
    found = first_frames.of_corpus(index, 3, 2, (tiny.SIZE, tiny.SIZE), "none")
    row = index.episode_start[3] + 2
    np.testing.assert_array_equal(found, FrameReader(index, found.shape[:2]).read([row])[0][0])
    assert np.ptp(found) > 100


# --- What z stands for ---


def test_codes_stand_for_mean_actions(run, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "robot")
    model = loaded.load_quantizer(run)
    tiny.write_labels(corpus, "other", code_length=3)
    imagination = Imagination(model)
    index = load_index(corpus)
    assert meanings.meanings(imagination, index) == {}
    tiny.write_labels(corpus, "own", code_length=3, quantizer_hash=model.params_hash)
    found = meanings.meanings(imagination, index)
    assert found["label_set"] == "own"
    labels = LabelSet.open(index.sidecar_dir, "own", index)
    by_code, pairs = {code: [] for code in range(8)}, 0
    for begin, length in zip(index.episode_start, index.episode_length, strict=True):
        for row in range(begin, begin + length - 4):
            code = int(labels.labels(np.array([row]))[0, 1])
            by_code[code].append(index.actions[row : row + 4].sum(axis=0))
            pairs += 1
    assert found["pairs"] == pairs
    for code, moved in by_code.items():
        np.testing.assert_allclose(found["actions"][1][code], np.mean(moved, axis=0), atol=1e-5)
        assert found["shares"][1][code] == pytest.approx(len(moved) / pairs)


def test_vectors_are_told_by_the_spread_of_their_labels(tmp_path):
    config = quantizer_config().unlock()
    config.model.bottleneck = ConfigDict({"name": "none"})
    model = loaded.load_quantizer(write(tmp_path / "run", config.lock(), {}))
    imagination = Imagination(model)
    corpus = tiny.write_corpus(tmp_path / "robot")
    width = imagination.width
    tiny.write_labels(corpus, code_length=3, width=width, quantizer_hash=model.params_hash)
    index = load_index(corpus)
    found = meanings.meanings(imagination, index)
    values = LabelSet.open(index.sidecar_dir, tiny.LABEL_SET, index).labels(
        np.arange(index.num_frames)
    )
    np.testing.assert_allclose(found["mean"], np.nanmean(values, axis=0), atol=1e-5)
    metadata = start.describe(imagination, picture(1, SIZE), {}, found)
    assert np.shape(metadata["z"]["std"]) == (3, width) and metadata["z"]["codes"] == 0
    assert metadata["z"]["spread_of"] == tiny.LABEL_SET
    plain = start.describe(imagination, picture(1, SIZE), {}, {})["z"]
    assert plain["spread_of"] == ""
    assert (plain["mean"], plain["std"]) == ([[0.0] * width] * 3, [[1.0] * width] * 3)


def test_vectors_of_a_dynamics_model_are_told_by_its_training():
    learnt = {"label_sets": {"robot": {"quantizer_hash": "y"}}}
    told = types.SimpleNamespace(
        model=types.SimpleNamespace(
            config=ConfigDict({"stage": "dynamics"}), step=1, params_hash="x", provenance=learnt
        ),
        **{"codes": 0, "length": 2, "width": 2, "shape": (2, 2), "image_size": SIZE},
        **{"window_seconds": 0.2, "statistics": Normaliser.fit(np.eye(2), "mean_std")},
    )
    found = start.describe(told, picture(1, SIZE), {}, {})
    z = found["z"]
    assert z["spread_of"] == "the training" and found["quantizers"] == ["y"]
    np.testing.assert_allclose(z["mean"], np.full((2, 2), 0.5))
    np.testing.assert_allclose(z["std"], np.full((2, 2), 0.5))


# --- The page ---


def keys(page, text):
    for key in text:
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        page.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def at(page, step):
    page.wait(f"document.getElementById('caption')?.textContent.startsWith('step {step},')")


@needs_browser
def test_the_page(open_page, server, tmp_path):
    """A digit for each position of z; saved for `lapa rollout`, undone, and loaded again."""
    page = open_page(server.url)
    at(page, 0)
    shown = "document.getElementById('frame').src"
    keys(page, "12")
    assert page.texts(".chosen kbd") == ["1", "2"]
    keys(page, "3")
    at(page, 1)
    keys(page, "007555")
    at(page, 3)
    expected = told(server, Z[:3])
    assert page.js(shown) == expected[3]
    assert page.texts("#strip button") == ["start", "1 2 3", "0 0 7", "5 5 5"]
    page.screenshot("play.png")
    page.js("URL.createObjectURL = (blob) => { window.saved = blob; return '#'; }; 0")
    page.js("document.getElementById('json').click()")
    (tmp_path / "play.json").write_text(page.js("saved.text()"))
    imagination = server.server.engine.imagination
    assert z_of_file(imagination, str(tmp_path / "play.json")).tolist() == [Z[:3]]
    model = dataclasses.replace(imagination.model, params_hash="other")
    with pytest.raises(ValueError, match=r"play.json: its z is of the quantizer \['"):
        z_of_file(Imagination(model), str(tmp_path / "play.json"))
    keys(page, "u")
    at(page, 2)
    assert page.js(shown) == expected[2]
    page.call("Page.reload")
    at(page, 2)
    assert page.js(shown) == expected[2] and len(page.texts("#strip button")) == 3
    keys(page, "9")  # is no code
    assert page.texts(".chosen kbd") == []
    keys(page, "r")
    at(page, 0)
    assert page.js(shown) == expected[0]


@needs_browser
def test_sliders(open_page, tmp_path, first):
    config = quantizer_config().unlock()
    config.model.bottleneck = ConfigDict({"name": "none"})
    run = write(tmp_path / "run", config.lock(), {})
    with running(*prepare(run, "--frame", first)) as server:
        page = open_page(server.url)
        at(page, 0)
        page.js("document.querySelectorAll('.field')[1].value = 1.5")
        page.js("document.getElementById('go').click()")
        at(page, 1)
        z = np.zeros(server.server.engine.imagination.shape)
        z.flat[1] = 1.5
        shown = page.js("document.getElementById('frame').src")
        assert shown == told(server, [z.tolist()])[1] != told(server, [(0 * z).tolist()])[1]
        page.js("document.activeElement.blur()")
        enter = {"key": "Enter", "text": "\r"}
        page.call("Input.dispatchKeyEvent", type="keyDown", **enter)
        page.call("Input.dispatchKeyEvent", type="keyUp", key="Enter")
        at(page, 2)
        page.screenshot("play_sliders.png")
