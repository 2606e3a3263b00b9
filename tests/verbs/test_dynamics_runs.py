"""An image tokenizer and a dynamics model, from videos to imagined frames."""

import json
import shutil

import numpy as np
import pytest
import tiny
import tiny_policy
from tiny import lapa, succeed

import lapa_jax
from data_pipelines.index import load_index
from data_pipelines.index.labels import IMAGE_TOKENS, LabelSet
from lapa_jax.evidence import rollouts
from lapa_jax.nn.module import flatten
from lapa_jax.runs import loaded
from lapa_jax.serving.play import first
from lapa_jax.world.imagination import open_imagination

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]
SMALL = dict(data__image_size="(16,16)", steps=2, checkpoint__every_steps=1)
WINDOW = 0.2


def refused(*arguments) -> str:
    code, _, error = lapa(*arguments)
    assert code == 2, error
    return error[error.rindex("lapa: ") :]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny.write_labels(tiny.write_corpus(folder / "robot", size=16), window_seconds=WINDOW)
    return folder


@pytest.fixture(scope="module")
def tokenizer(quick_compile, data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tokenizer") / "run"
    succeed("train", *tiny.arguments("image_tokenizer", data, **SMALL), "--workdir", workdir)
    return workdir


def arguments(data, weights, **changes):
    window = {"data__corpora__robot__window_seconds": WINDOW}
    return tiny.arguments("dynamics", data, model__weights=weights, **SMALL, **window, **changes)


@pytest.fixture(scope="module")
def dynamics(tokenizer, data, tmp_path_factory):
    """A run whose tokenizer's directory is gone."""
    folder = tmp_path_factory.mktemp("dynamics")
    shutil.copytree(tokenizer, folder / "lent")
    evaluated = dict(evaluation__every_steps=2, evaluation__batches=1)
    given = arguments(data, folder / "lent", **evaluated)
    succeed("train", *given, "--workdir", folder / "run")
    shutil.rmtree(folder / "lent")
    return folder / "run", given


def test_a_tokenizer_makes_tokens_of_a_corpus(tokenizer, data):
    rows = tiny.result(tokenizer)["metrics"]
    assert rows[-1]["skill"] == pytest.approx(1 - rows[-1]["mse"] / rows[-1]["copy_mse"], rel=1e-4)
    told = ("--what", "image_tokens", "--corpus", data / "robot", "--name", "patches")
    succeed("label", "--workdir", tokenizer, *told)
    index = load_index(data / "robot", split="train")
    tokens = LabelSet.open(index.sidecar_dir, "patches", index, IMAGE_TOKENS)
    assert tokens.labels(np.arange(3)).shape == (3, 4) and tokens.codebook_size == 1024
    model = lapa_jax.load_image_tokenizer(tokenizer)
    assert model.decode(model.encode(np.zeros((1, 16, 16, 3), np.uint8))).shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="images of 16x24 are not of 16x16"):
        model.encode(np.zeros((1, 16, 24, 3), np.uint8))


def test_a_run_ends_as_one_that_was_never_stopped(dynamics, tokenizer, tmp_path):
    workdir, given = dynamics
    whole = tiny.result(workdir)
    shutil.copytree(workdir, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "2")
    code, _, error = lapa("train", *given, "--workdir", tmp_path / "stopped")
    assert code == 0 and "continues at step 1 of 2" in error
    stopped = tiny.result(tmp_path / "stopped")
    assert stopped["arrays"] == whole["arrays"] and stopped["meta"] == whole["meta"]
    theirs, run = loaded.load(tokenizer), loaded.load(workdir)
    assert run.provenance["frozen_from"] == theirs.params_hash
    found = flatten(run.variables["tokenizer"])
    assert found.keys() == flatten(theirs.params).keys()
    for path, value in flatten(theirs.params).items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_it_imagines(dynamics):
    model = lapa_jax.load_dynamics(dynamics[0])
    frames = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 3), np.uint8)
    z = np.array([[[0], [7], [3]]])
    found = model.imagine(frames, z)
    assert found.shape == (1, 3, 16, 16, 3) and found.dtype == np.float32
    for given, told in (
        ((frames[0], z), "must be uint8 of shape"),
        ((frames[:, :, :8], z), "first_frames of 8x16 are not of 16x16"),
        ((frames, z[0]), "is not of 1 clips"),
        ((frames, z[:, :0]), "nothing is left to imagine"),
        ((frames, z + 1), "codes from 1 to 8, model.latent_codes is 8"),
    ):
        with pytest.raises(ValueError, match=told):
            model.imagine(*given)
    with pytest.raises(ValueError, match="drawing tokens takes both"):
        model.imagine(frames, z, temperature=1.0)


def test_it_travels_with_its_tokenizer(dynamics, tmp_path):
    """Exported, and imported where neither run is: the same frames."""
    files = ("--format", "safetensors", "--out")
    succeed("export", "--workdir", dynamics[0], *files, tmp_path / "files")
    succeed("import", "--source", tmp_path / "files", *files, tmp_path / "run")
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3), np.uint8)
    z = np.array([[[0], [7], [3]], [[1], [1], [2]]])
    ours, theirs = (lapa_jax.load_dynamics(x) for x in (dynamics[0], tmp_path / "run"))
    np.testing.assert_array_equal(theirs.imagine(frames, z), ours.imagine(frames, z))


def test_rollouts_of_it(dynamics, tokenizer, data, tmp_path):
    """Of given codes they are what `imagine` says; off videos it reads no z."""
    run, corpus = ("rollout", "--workdir", dynamics[0], "--out", tmp_path / "out"), data / "robot"
    succeed(*run, "--corpus", corpus, "--episode", 1, "--codes", "0,7,3")
    found = json.loads((tmp_path / "out" / "rollout.json").read_text())
    assert found["rollouts"][0]["z"] == [[0], [7], [3]] and found["stage"] == "dynamics"
    imagination = open_imagination(dynamics[0])
    frames = first.of_corpus(load_index(corpus), 1, 0, (16, 16), "none")[None]
    drawn = rollouts.imagine(imagination, frames, np.array([[[0], [7], [3]]]))
    wanted = imagination.model.imagine(frames[:, None], np.array([[[0], [7], [3]]]))
    np.testing.assert_allclose(drawn, wanted, atol=1e-5)
    told = refused(*run, "--corpus", corpus)
    assert "name the quantizer of its label set with --quantizer" in told
    quantizer = tiny_policy.quantizer_config().unlock()
    quantizer.data.image_size = (16, 16)
    quantizer.model.code_length = 1
    other = tiny_policy.write(tmp_path / "quantizer", quantizer.lock(), {})
    told = refused(*run, "--corpus", corpus, "--quantizer", other)
    assert "its z is of the quantizer" in told and f"of ['{'0' * 32}']" in told


def test_what_does_not_fit_is_refused(dynamics, tokenizer, data, tmp_path):
    workdir, _ = dynamics

    def told(weights, **changes):
        given = arguments(data, weights, **changes)
        return refused("train", *given, "--workdir", tmp_path / str(len(list(tmp_path.iterdir()))))

    assert "model.weights is empty: name the run of an image tokenizer" in told("")
    assert "stage 'dynamics', not 'image_tokenizer'" in told(workdir)
    assert "image_tokenizer.depth=2, which is 1 there" in told(
        tokenizer, model__image_tokenizer__depth=2
    )
    assert "model.latent_codes is 4" in told(tokenizer, model__latent_codes=4)
    assert "data.num_frames=1 must be at least 2" in told(tokenizer, data__num_frames=1)
    told_by = refused("evaluate", "--workdir", workdir)
    assert "stage 'dynamics': nothing is evaluated" in told_by and "`lapa rollout`" in told_by
    for verb, more in (
        ("label", ["--corpus", data / "robot", "--name", "x"]),
        ("serve", []),
        ("export", ["--format", "laq_pt", "--out", tmp_path / "y"]),
    ):
        assert "stage 'dynamics'" in refused(verb, "--workdir", workdir, *more)
