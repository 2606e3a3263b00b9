"""An image tokenizer from a foreign file to objects and sidecars."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tiny
from tiny import lapa, succeed

import lapa_jax
from data_pipelines.index import load_index
from data_pipelines.index.labels import IMAGE_TOKENS, LabelSet, LabelSetWriter
from lapa_jax.nn.module import unflatten

GOLDEN = Path(__file__).parents[1] / "golden" / "vqgan"
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def tokenizer(quick_compile, tmp_path_factory):
    """A run directory."""
    folder = tmp_path_factory.mktemp("vqgan")
    tensors = dict(np.load(GOLDEN / "vqgan_tiny_params.npz"))
    (folder / "vqgan").write_bytes(pickle.dumps(unflatten(tensors)))
    told = succeed(
        "import", "--format", "vqgan_pickle", "--source", folder / "vqgan", "--out", folder / "run"
    )
    assert f"-> {folder / 'run'}: {len(tensors)} tensors" in told
    return folder / "run"


def refused(*arguments) -> str:
    code, _, error = lapa(*arguments)
    assert code == 2, error
    return error[error.rindex("lapa: ") :]


@pytest.mark.slow
def test_an_imported_tokenizer_acts_as_the_original(tokenizer):
    io = dict(np.load(GOLDEN / "vqgan_tiny_io.npz"))
    loaded = lapa_jax.load_image_tokenizer(tokenizer)
    codes = loaded.encode(io["images_u8"])
    assert codes.dtype == np.int32 and loaded.codebook_size == 64 and loaded.factor == 2
    assert ((np.asarray(codes) == io["indices"]) | (io["margin"] < 1e-4)).all()
    np.testing.assert_allclose(loaded.decode(io["indices"]), io["recon"], atol=5e-5)
    for bad, message in (
        (lambda: loaded.encode(io["images_u8"] / np.float32(255)), "must be uint8 of shape"),
        (lambda: loaded.encode(io["images_u8"][0]), "must be uint8 of shape"),
        (lambda: loaded.encode(io["images_u8"][:, :31]), "31x32 are not a multiple of 2"),
        (lambda: loaded.decode(codes[0]), r"must be integers of shape \(B, h, w\)"),
        (lambda: loaded.decode(codes * 1.0), "must be integers"),
        (lambda: loaded.decode(codes - 1), "codes holds codes from -1 to .*the codebook has 64"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    with pytest.raises(ValueError, match="stage 'image_tokenizer', not a quantizer"):
        lapa_jax.load_quantizer(tokenizer)


@pytest.mark.slow
def test_what_a_tokenizer_is_not_for(tokenizer, tmp_path):
    again = ("import", "--format", "vqgan_pickle", "--out", tmp_path / "x", "--source")
    (tmp_path / "bad").write_bytes(pickle.dumps({"a": np.ones(1), "b": Path("x")}))
    assert "bad holds more than dicts of NumPy arrays: it names pathlib" in refused(
        *again, tmp_path / "bad"
    )
    assert "does not take --image_size" in refused(*again, tmp_path / "bad", "--image_size", 32)
    assert not (tmp_path / "x").exists()
    assert "stage 'image_tokenizer': nothing is evaluated" in refused(
        "evaluate", "--workdir", tokenizer
    )
    assert "not a quantizer" in refused(
        "export", "--format", "laq_pt", "--workdir", tokenizer, "--out", tmp_path / "y"
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """32 pixels; the JPEG of row 3 does not decode."""
    directory, count = tmp_path_factory.mktemp("corpus"), iter(range(10**6))
    original = simplejpeg.encode_jpeg
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            simplejpeg,
            "encode_jpeg",
            lambda *a: original(*a)[: 300 if next(count) == 3 else None],
        )
        return tiny.write_corpus(directory, size=32, episodes=4)


@pytest.mark.slow
def test_the_tokens_of_every_frame(tokenizer, corpus, monkeypatch):
    arguments = ("label", "--what", "image_tokens", "--workdir", tokenizer, "--corpus", corpus)
    index, written, write = load_index(corpus), [], LabelSetWriter.write_shard

    def write_shard(self, shard, labels):
        if written == [0]:
            written.append("stopped")
            raise OSError("no space is left")
        written.append(shard)
        write(self, shard, labels)

    monkeypatch.setattr(LabelSetWriter, "write_shard", write_shard)
    with pytest.raises(OSError, match="no space"):
        lapa(*arguments, "--name", "vqgan")
    succeed(*arguments, "--name", "vqgan")
    assert written == [0, "stopped", 1], "the first shard is not written again"

    found = LabelSet.open(corpus, "vqgan", index, IMAGE_TOKENS)
    assert (corpus / "image_tokens/vqgan/image/train.npy").stat().st_size == (
        128 + 512 * index.num_frames
    )
    np.testing.assert_array_equal(np.flatnonzero(~found.valid), [3])
    rows = np.flatnonzero(found.valid)[::5]
    images = np.stack([simplejpeg.decode_jpeg(_jpeg(index, row)) for row in rows])
    loaded = lapa_jax.load_image_tokenizer(tokenizer)
    np.testing.assert_array_equal(
        found.labels(rows), np.asarray(loaded.encode(images)).reshape(len(rows), 256)
    )
    told = succeed("data", "inspect", corpus)
    assert 'image token set vqgan, split train: {"code_version"' in told
    assert f'"num_labelled": {index.num_frames - 1}' in told


def _jpeg(index, row):
    with open(index.shards[index.shard_of_episode[index.episode_of_rows(row)]], "rb") as file:
        file.seek(int(index.frame_offset[row]))
        return file.read(int(index.frame_length[row]))


@pytest.mark.slow
def test_what_cannot_be_labelled(tokenizer, corpus, tmp_path):
    arguments = ("label", "--workdir", tokenizer, "--corpus", corpus, "--name", "x")
    assert "image_tokenizer', not a quantizer" in refused(*arguments)
    told = refused(*arguments, "--what", "image_tokens", "--window_seconds", 0.6)
    assert "--window_seconds and --fps are of --what latent_actions" in told
    told = refused(*arguments, "--what", "image_tokens", "--image_key", "wrist")
    assert "no index of image_key 'wrist'" in told


def test_an_imported_tokenizer_is_not_trained(tiny_data, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\nfrom experiments import base\n"
        "def get_config(arg=None):\n"
        "    config = base.stage_defaults('image_tokenizer')\n"
        "    config.compute_dtype = 'float32'\n"
        "    config.model = ConfigDict({'architecture': 'vqgan'})\n"
        f"    config.data.corpora.robot = base.corpus('{tiny_data}/robot')\n"
        "    return config\n"
    )
    told = refused("train", "--config", config, "--workdir", tmp_path / "run")
    assert "model.architecture='vqgan' of stage 'image_tokenizer' cannot be trained" in told
