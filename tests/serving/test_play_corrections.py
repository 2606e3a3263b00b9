"""`lapa play` with a policy: what it says at each frame, and games that are saved to train on."""

import base64
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import simplejpeg
import tiny
from browser import needs_browser
from ml_collections import ConfigDict
from PIL import Image
from served import picture, png, running
from test_play import at, keys
from tiny_policy import policy_config, quantizer_config, write

from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader.frames import FrameReader
from lapa_jax.runs import corrections
from lapa_jax.runs.loaded import load_policy, load_quantizer
from lapa_jax.serving import start as serving_start
from lapa_jax.serving.play import start
from lapa_jax.serving.play.app import Server
from lapa_jax.serving.play.player import Player
from lapa_jax.training.metrics import METRICS_FILE
from lapa_jax.verbs import play
from lapa_jax.world.imagination import open_imagination

SIZE = (tiny.SIZE, tiny.SIZE)
TEXT = "move the red square to place 3"  # of the episode


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A labelled corpus, a quantizer and a policy that was trained on its labels."""
    folder = tmp_path_factory.mktemp("corrections")
    config = quantizer_config().unlock()
    config.data.image_size, config.model.code_length = SIZE, 2
    quantizer = load_quantizer(write(folder / "quantizer", config.lock(), {}))
    robot = tiny.write_corpus(folder / "data" / "robot", episodes=4, shards=1)
    tiny.write_labels(robot, code_length=2, quantizer_hash=quantizer.params_hash)
    config, assets = policy_config("latent", image_size=SIZE, corpus=robot)
    config.unlock().code_length = 2
    config.data.corpora.robot.label_set = tiny.LABEL_SET
    write(folder / "policy", config.lock(), assets)
    return folder


def prepare(made, *given):
    arguments = ["--workdir", made / "quantizer", "--port", 0, "--steps", 20]
    arguments += given or ["--corpus", made / "data" / "robot", "--episode", 3]
    return start.prepare(play.parser().parse_args([str(x) for x in arguments]), "")


@pytest.fixture(scope="module")
def server(made):
    of_corpus = ["--corpus", made / "data" / "robot", "--episode", 3]
    with running(
        *prepare(made, *of_corpus, "--policy", made / "policy", "--corrections", made / "data")
    ) as found:
        yield found


def said(server, z):
    """(frames, what the policy says at each)."""
    found = requests.post(server.url + "/frames", json={"z": z, "since": 0})
    assert found.status_code == 200, found.text
    return found.json()["frames"], found.json()["said"]


def save(server, z):
    message = {"z": z, "instruction": server.server.engine.instruction}
    return requests.post(server.url + "/corrections", json=message)


def other(z):
    """Another z than the policy's."""
    return [(z[0] + 1) % 8, *z[1:]]


def corrected(server, *choices):
    """z of a game in which the policy is corrected at the steps that are True."""
    z = []
    for wrong in choices:
        one = said(server, z)[1][-1]
        z.append(other(one) if wrong else one)
    return z


def read_back(made, name):
    index = load_index(made / "data" / "corrections")
    labels = LabelSet.open(index.sidecar_dir, name, index)
    return index, labels


def test_the_policy_speaks_at_each_frame(server, made):
    policy, player = load_policy(made / "policy"), server.server.engine
    z = corrected(server, False, True, False)
    told = said(server, z)[1]
    moments = [player.start, *player._held.values()]
    frames = {one.frame.tobytes(): one.said.tolist() for one in moments}
    assert len(told) == 4 and all(one in frames.values() for one in told)
    for one in moments:
        expected = policy.predict_latent(one.frame, player.instruction)
        np.testing.assert_array_equal(one.said, expected)
    metadata = requests.get(server.url + "/metadata").json()
    assert metadata["policy"]["instruction"] == player.instruction == TEXT
    assert metadata["policy"]["saved"] == "corrections"


def test_what_is_saved_is_read_back_and_the_last_choice_counts(server, made):
    z = corrected(server, False, True, False, True)
    found = save(server, z)
    assert found.status_code == 200, found.text
    assert found.json() == {"episodes": 1, "pairs": 4, "corrected": 2}
    assert save(server, z).json() == found.json()  # again: the same game

    index, labels = read_back(made, tiny.LABEL_SET)
    assert labels.labels(np.arange(5)).tolist() == [*z, [-1, -1]]
    assert labels.provenance["window_seconds"] == pytest.approx(1 / index.fps[0])
    person = read_back(made, tiny.LABEL_SET + "_person")[1]
    assert person.valid.tolist() == [False, True, False, True, False]
    assert person.labels(np.array([1, 3])).tolist() == [z[1], z[3]]
    frames, bad = FrameReader(index, SIZE).read(np.arange(5))
    assert not bad and index.instruction(0) == TEXT
    for uri, frame in zip(said(server, z)[0], frames, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(encode_jpeg(shown)), frame)
    metadata = index.metadata(0)
    assert metadata["chosen_by"] == "policy person policy person"
    told = json.loads(metadata["told"])
    policy = load_policy(made / "policy")
    assert told["policy"] == {"step": policy.step, "params_hash": policy.params_hash}
    assert told["checkpoint"]["params_hash"] == labels.provenance["quantizer_hash"]
    assert (told["start"]["corpus"], told["start"]["episode"]) == ("robot", 3)

    # Going back to step 1 and on otherwise: its frame has that z alone.
    branch = [z[0], said(server, z[:1])[1][-1]]
    assert save(server, branch).json() == {"episodes": 2, "pairs": 4, "corrected": 1}
    index, labels = read_back(made, tiny.LABEL_SET)
    gone = [[-1, -1]]
    assert index.num_episodes == 2
    assert labels.labels(np.arange(8)).tolist() == [*2 * gone, *z[2:], *gone, *branch, *gone]
    assert not list((made / "data").glob(".*"))


def test_saved_games_train_the_policy(server, made, tmp_path):
    assert save(server, corrected(server, True, False)).status_code == 200
    arguments = tiny.arguments(
        "latent_pretraining",
        made / "data",
        views="robot+corrections",
        **{"steps": 2, "code_length": 2, "init_from": made / "policy", "model__mlp_dim": 48},
        **{"model__text_length": 24, "model__front_end__stem_channels": "(6,)"},
    )
    tiny.succeed("train", *arguments, "--workdir", tmp_path / "run")
    lines = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    sets = load_policy(tmp_path / "run").provenance["label_sets"]
    assert sets["corrections"]["quantizer_hash"] == sets["robot"]["quantizer_hash"]


# --- What is refused ---


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        ({"z": [[1, 2]]}, 400, "the keys ['instruction', 'z'] alone"),
        ({"z": [[1, 2]], "instruction": TEXT, "path": "/etc"}, 400, "an object with the keys"),
        ({"z": [[1, 8]], "instruction": TEXT}, 422, "a whole number from 0 to 7"),
        ({"z": [[1]], "instruction": TEXT}, 422, "lists of the lengths [2]"),
        ({"z": [], "instruction": TEXT}, 422, "z has no step"),
        ({"z": [[0, 0]] * 21, "instruction": TEXT}, 422, "21 steps: at most 20 (--steps)"),
        ({"z": [[1, 2]], "instruction": "stop"}, 422, "is not that of this server's policy"),
        ({"z": [[1, 2]], "instruction": ["stop"]}, 422, "is not that of this server's policy"),
        ({"z": [[1, 2]], "instruction": "x" * 2**20}, 413, "at most 1048576"),
    ],
)
def test_bad_games_are_refused_in_one_line(server, message, status, reason):
    corpus = server.server.lapa.saves.corpus
    before = [path.stat().st_mtime_ns for path in corpus.path.glob("*")]
    found = requests.post(server.url + "/corrections", json=message)
    assert (found.status_code, list(found.json())) == (status, ["error"]), found.text
    assert reason in found.json()["error"] and "\n" not in found.json()["error"]
    assert [path.stat().st_mtime_ns for path in corpus.path.glob("*")] == before


def test_without_a_policy_nothing_is_said_or_saved(made):
    with running(*prepare(made)) as server:
        found = requests.post(server.url + "/frames", json={"z": [], "since": 0}).json()
        assert "said" not in found
        assert "policy" not in requests.get(server.url + "/metadata").json()
        message = {"z": [[1, 2]], "instruction": ""}
        found = requests.post(server.url + "/corrections", json=message)
        assert found.status_code == 422 and "--corrections" in found.json()["error"]


def test_flags_that_do_not_fit(made, tmp_path):
    frame = tmp_path / "first.png"
    frame.write_bytes(png(picture(1, SIZE)))
    policy = ("--policy", made / "policy")
    config, assets = policy_config("latent", image_size=SIZE)
    config.unlock().code_length = 3
    short = write(tmp_path / "short", config.lock(), assets)
    large = tmp_path / "large"
    tiny.write_corpus(large / "corrections", episodes=2, shards=1)
    for given, reason in (
        (("--instruction", "stop"), "--instruction 'stop' is for a --policy"),
        (("--corrections", tmp_path), "are of what a --policy says"),
        (policy, "is told what to do: give --instruction"),
        ((*policy, "--instruction", "red " * 40), "text_length"),
        (("--policy", made / "quantizer", "--instruction", "x"), "not a policy"),
        (("--policy", short, "--instruction", "x"), "its code_length is 3, that of the imagining"),
        ((*policy, "--instruction", "x", "--corrections", large), "is no corpus of corrections"),
    ):
        with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
            prepare(made, "--frame", frame, *given)


# --- The corpus ---


def games(count, seed=0, shape=(3,), steps=2):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        frames = rng.integers(0, 256, (steps + 1, 16, 24, 3), np.uint8)
        z = rng.integers(0, 8, (steps, *shape))
        if len(shape) == 2:
            z = rng.normal(size=(steps, *shape)).astype(np.float32)
        by_person = np.arange(steps) % 2 == 0
        yield corrections.Game(frames, z, by_person, "go", {"seed": seed})


def of(**changes):
    kept = dict(image_size=(16, 24), window_seconds=0.2, shape=(3,), codes=8)
    return corrections.Of(**kept | {"quantizer_hash": "q", "label_set": "laq"} | changes)


def test_a_full_corpus_stays_as_it_is(tmp_path, monkeypatch):
    corpus = corrections.Corrections(tmp_path, of())
    monkeypatch.setattr(corrections, "MOST_FRAMES", 6)
    assert corpus.add(list(games(2))) == corrections.Counts(2, 4, 2)
    with pytest.raises(corrections.FullError, match="9 frames of corrections: at most 6"):
        corpus.add(list(games(1, seed=1)))
    assert corpus.add([]) == corrections.Counts(2, 4, 2)


def test_a_failed_or_stopped_save_leaves_the_corpus(server, tmp_path, monkeypatch):
    corpus = corrections.Corrections(tmp_path, of())
    corpus.add(list(games(1)))

    def full(*given, **more):
        raise OSError(28, "no space left", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(corrections, "build_index", full)
        with pytest.raises(OSError, match="no space left"):
            corpus.add(list(games(1, seed=1)))
        found = save(server, [[1, 2]])  # tells no place of this machine
        assert found.status_code == 503
        assert found.json()["error"] == "corrections cannot be written; the server's log says why"
    assert corpus.add([]) == corrections.Counts(1, 2, 1)
    corpus.path.rename(tmp_path / ".corrections.old")  # stopped between two renames
    again = corrections.Corrections(tmp_path, of())
    assert again.add(list(games(1, seed=2))) == corrections.Counts(2, 4, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corrections"]


def test_vectors_are_kept_to_the_bit_and_other_z_refused(tmp_path):
    made, kind = list(games(3, shape=(2, 5))), of(shape=(2, 5), codes=0)
    corrections.Corrections(tmp_path, kind).add(made[:1])
    corrections.Corrections(tmp_path, kind).add(made[1:])
    index = load_index(tmp_path / "corrections")
    z = LabelSet.open(index.sidecar_dir, "laq", index).labels(np.arange(9)).reshape(3, 3, 2, 5)
    np.testing.assert_array_equal(z[:, :2], [game.z_KL for game in made])
    assert np.isnan(z[:, 2]).all()
    with pytest.raises(ValueError, match="whose quantizer_hash is q, not other"):
        corrections.Corrections(tmp_path, of(shape=(2, 5), codes=0, quantizer_hash="other"))
    with pytest.raises(ValueError, match="has no label set 'another', .*: choose another folder"):
        corrections.Corrections(tmp_path, of(shape=(2, 5), codes=0, label_set="another"))
    with pytest.raises(ValueError, match=r"z of a game are \[2, 2, 5\], expected \[2, 3\]"):
        corrections.Corrections(tmp_path / "new", of()).add(made)


# --- The page ---


@needs_browser
def test_the_policy_is_corrected_on_the_page(open_page, server, made):
    page = open_page(server.url)
    at(page, 0)
    first = said(server, [])[1][0]
    assert page.texts(".said kbd") == [str(code) for code in first]
    keys(page, " ")
    at(page, 1)
    z = [first, other(said(server, [first])[1][1])]
    keys(page, "".join(map(str, z[1])))
    at(page, 2)
    assert page.js("document.querySelectorAll('#strip .corrected').length") == 1
    keys(page, " ")
    at(page, 3)
    z.append(said(server, z)[1][2])
    shown = "document.getElementById('frame').src"
    branch = page.js(shown)
    assert branch == said(server, z)[0][3]

    # Back to step 1 and on otherwise: what was left is listed, and kept in the tab.
    page.js("document.querySelectorAll('#strip button')[1].click()")
    at(page, 1)
    keys(page, " ")
    at(page, 2)
    left = "from step 1: " + ", ".join(" ".join(map(str, one)) for one in z[1:])
    assert page.texts("#branches button") == [left]
    page.js("window.before = true")
    page.call("Page.reload")
    page.wait("!window.before && !!document.querySelector('#branches button')")
    at(page, 2)
    page.screenshot("play_corrections.png")
    page.js("document.querySelector('#branches button').click()")
    at(page, 3)
    assert page.js(shown) == branch and len(page.texts("#branches button")) == 1

    page.js("document.getElementById('corrections').click()")
    page.wait("document.getElementById('status').textContent.startsWith('corrections has ')")
    index = load_index(made / "data" / "corrections")
    rows = index.episode_start[-1] + np.arange(3)
    assert read_back(made, tiny.LABEL_SET)[1].labels(rows).tolist() == z
    assert index.metadata(index.num_episodes - 1)["chosen_by"] == "policy person policy"


@needs_browser
def test_the_policy_speaks_beside_sliders(open_page, tmp_path):
    config = quantizer_config().unlock()
    config.model.bottleneck = ConfigDict({"name": "none"})
    imagination = open_imagination(write(tmp_path / "run", config.lock(), {}))
    z = np.linspace(-1, 1, math.prod(imagination.shape), dtype=np.float32)
    z = z.reshape(imagination.shape)
    policy = SimpleNamespace(predict_latent=lambda frame, text: z)
    first = picture(1, imagination.image_size)
    checkpoint = {"step": 1, "params_hash": "x"}
    metadata = start.describe(imagination, first, {"file": "first.png"}, {})
    metadata["policy"] = {"checkpoint": checkpoint, "instruction": "go"}
    made = Server(Player(imagination, first, policy, "go"), metadata, steps=20)
    bound = serving_start.bind("127.0.0.1", 0, 10.0)
    uvicorn = serving_start.Uvicorn(made, "", serving_start.LOOPBACK_NAMES)
    with running(uvicorn, bound) as server:
        page = open_page(server.url)
        at(page, 0)
        assert page.texts(".says") == [f"{x:.2f}" for x in z.flat]
        assert page.js("document.getElementById('corrections').hidden")
        keys(page, " ")
        at(page, 1)
        assert page.js("document.getElementById('frame').src") == said(server, [z.tolist()])[0][1]
        page.js("document.getElementById('go').click()")
        at(page, 2)
        assert page.js("document.querySelectorAll('#strip .corrected').length") == 1
        page.screenshot("play_policy_sliders.png")
