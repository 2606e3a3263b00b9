"""An image tokenizer from a foreign file to objects and sidecars."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny import lapa, succeed

import lapa_jax
from lapa_jax.models.module import unflatten

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


def test_what_a_tokenizer_is_not_for(tokenizer, tmp_path):
    again = ("import", "--format", "vqgan_pickle", "--out", tmp_path / "x", "--source")
    (tmp_path / "bad").write_bytes(pickle.dumps({"a": np.ones(1), "b": Path("x")}))
    assert "bad holds more than dicts of NumPy arrays: it names pathlib" in refused(
        *again, tmp_path / "bad"
    )
    assert "are of --format laq_pt" in refused(*again, tmp_path / "bad", "--image_size", 32)
    assert not (tmp_path / "x").exists()
    assert "stage 'image_tokenizer': nothing is evaluated" in refused(
        "evaluate", "--workdir", tokenizer
    )
    assert "not a quantizer" in refused(
        "export", "--format", "laq_pt", "--workdir", tokenizer, "--out", tmp_path / "y"
    )


def test_a_tokenizer_is_not_trained(tiny_data, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\nfrom experiments import base\n"
        "def get_config(arg=None):\n"
        "    config = base.stage_defaults('image_tokenizer')\n"
        "    config.compute_dtype = 'float32'\n"
        "    config.model = ConfigDict()\n"
        f"    config.data.corpora.robot = base.corpus('{tiny_data}/robot')\n"
        "    return config\n"
    )
    told = refused("train", "--config", config, "--workdir", tmp_path / "run")
    assert "config.stage='image_tokenizer' cannot be trained" in told
