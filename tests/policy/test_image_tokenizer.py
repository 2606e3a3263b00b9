"""The image tokenizer is LWM's VQGAN; its pickles are read without running anything."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.interop import vqgan
from lapa_jax.interop.array_pickle import load_arrays
from lapa_jax.nn.flops import counted
from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.policy.image_tokenizer import (
    ImageTokenizer,
    ImageTokenizerConfig,
    nearest,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = Path(__file__).parents[1] / "golden" / "vqgan"


@pytest.fixture(scope="module")
def tensors():
    return dict(np.load(GOLDEN / "vqgan_tiny_params.npz"))


@pytest.fixture(scope="module")
def tiny(tensors, quick_compile):
    """(config, method → jitted method of the recorded weights)."""
    config, params = vqgan.from_tensors(tensors)
    model = Functional(lambda rngs: ImageTokenizer(config, dtype=jnp.float32, rngs=rngs))

    def call(method):
        return jax.jit(lambda x: model.apply(params, {}, method, x)[0])

    return config, call


@pytest.mark.slow
def test_parity(tiny):
    config, call = tiny
    io = dict(np.load(GOLDEN / "vqgan_tiny_io.npz"))
    assert (config.dim, config.multipliers, config.blocks) == (32, (1, 2), 1)
    z = call("latents")(io["images_u8"])
    np.testing.assert_allclose(z, io["z_pre_quant"], atol=5e-5)
    codes = np.asarray(call("encode")(io["images_u8"]))
    assert codes.dtype == np.int32 and codes.shape == (2, *config.grid((32, 32)))
    assert ((codes == io["indices"]) | (io["margin"] < 1e-4)).all()
    images = np.asarray(call("decode")(io["indices"]))
    np.testing.assert_allclose(images, io["recon"], atol=5e-5)
    assert images.min() == -1.0 and images.max() <= 1.0, "the recording is clipped"


@pytest.mark.slow
def test_names_and_shapes_are_those_of_the_released_model():
    shapes = json.loads((GOLDEN / "vqgan_full_shapes.json").read_text())
    config = vqgan.infer_config({name: np.empty(shape) for name, shape in shapes.items()})
    assert config == ImageTokenizerConfig(128, (1, 2, 2, 4, 6), 2, 64, 64, 8192)
    assert config.grid((256, 256)) == (16, 16)
    model = Functional(lambda rngs: ImageTokenizer(config, dtype=jnp.float32, rngs=rngs))
    ours = flatten(model.abstract()[0])
    rules = vqgan.rules(config)
    assert {rule.theirs: list(ours[rule.ours].shape) for rule in rules} == shapes
    assert len(rules) == len(ours) == 277
    assert sum(x.size for x in ours.values()) == 146_244_675


def test_the_way_back(tensors):
    config, params = vqgan.from_tensors(tensors)
    again = vqgan.to_tensors(config, params)
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_nearest_takes_the_first_of_equals():
    z, codebook = np.random.default_rng(0).normal(size=(2, 40, 5)).astype(np.float32)
    codebook[7] = codebook[3]
    distance = np.square(z[:, None] - codebook).sum(-1)
    np.testing.assert_array_equal(nearest(z, codebook), distance.argmin(1))
    assert nearest(codebook[7:8], codebook).tolist() == [3]


@pytest.mark.slow
def test_flops_are_those_of_the_compiler():
    def encoding(config, side):
        model = Functional(lambda rngs: ImageTokenizer(config, dtype=jnp.float32, rngs=rngs))
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        return lambda p, x: model.apply(p, {}, "encode", x)[0], model.abstract()[0], images

    encode, *inputs = encoding(ImageTokenizerConfig(32, (1, 2), 1, 16, 16, 64), 64)
    compiled = jax.jit(encode).lower(*inputs).cost_analysis()["flops"]
    # The compiler leaves out what the padding multiplies.
    assert 0.95 < compiled / counted(encode, *inputs) < 1.05
    assert 2.1e11 < counted(*encoding(ImageTokenizerConfig(), 256)) < 2.2e11


def test_settings_and_images_that_cannot_be(tiny):
    small = dict(dim=32, multipliers=(1, 2), blocks=1, latent_dim=16, code_dim=16, codebook_size=4)
    for changes, message in (({"dim": 48}, "model.dim=48 must be a multiple of 32"),):
        with pytest.raises(ValueError, match=message):
            ImageTokenizerConfig(**small | changes)
    encode = tiny[1]("encode")
    with pytest.raises(ValueError, match="images of 31x32 are not a multiple of 2"):
        encode(np.zeros((1, 31, 32, 3), np.uint8))
    for images in (np.zeros((1, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8 of shape"):
            encode(images)


# ---------------------------------------------------------------- pickles


def as_it_is(tree):
    return tree


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def columns_first(tree):
    return jax.tree.map(np.asfortranarray, OrderedDict(tree))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", [as_it_is, as_jax, flax.core.freeze, columns_first])
def test_pickles_of_arrays(form, protocol, tmp_path):
    values = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "a/c/d": np.full(2, 7, np.int32)}
    path = tmp_path / "arrays"
    path.write_bytes(pickle.dumps(form(unflatten(values)), protocol))
    found = load_arrays(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert type(found[name]) is np.ndarray and found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_old_names_are_known(tmp_path):
    """As NumPy 1 and the JAX of before 0.4 wrote them."""
    new = pickle.dumps({"a": jnp.ones(3)}, 0)
    old = new.replace(b"numpy._core.", b"numpy.core.")
    old = old.replace(
        b"jax._src.array\n_reconstruct_array", b"jax._src.device_array\nreconstruct_device_array"
    )
    assert old.count(b"device_array") == 2 and b"_core" not in old
    (tmp_path / "old").write_bytes(old)
    np.testing.assert_array_equal(load_arrays(tmp_path / "old")["a"], np.ones(3))


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    """Pickles as an array with this state."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        function, arguments, _ = np.ones(1).__reduce__()
        return function, arguments, self.state


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return "elsewhere" if isinstance(obj, np.ndarray) else None


@pytest.mark.parametrize("protocol", [0, 4, 5])
@pytest.mark.parametrize(
    "value, message",
    [
        (lambda mark: Call(os.system, f"touch {mark}"), "it names posix.system"),
        (
            lambda mark: {"a": np.ones(2), "b": Call(eval, f"open({str(mark)!r}, 'w')")},
            r"builtins.eval|__bu",
        ),
        (lambda mark: Call(os.makedirs, str(mark)), "it names os.makedirs"),
        (lambda mark: Call(getattr, np.ones(1), "tofile"), "getattr"),
        (
            lambda mark: {"a": np.array([Call(os.system, f"touch {mark}")])},
            "posix.system|dtype 'O8'",
        ),
        (lambda mark: {"a": np.array([1, None])}, "dtype 'O8'"),
        (lambda mark: {"a": np.array(["x"])}, "dtype 'U1'"),
        (lambda mark: {"a": np.zeros(1, [("x", "f4")])}, "names numpy|dtype 'V4'"),
        (lambda mark: {"a": np.ma.ones(2)}, "numpy.ma"),
        (lambda mark: {"a": State(1, (10**9,), np.dtype("f4"), False, b"1234")}, "in 4 bytes"),
        (lambda mark: {"a": State(1, (1,), np.dtype("f4"), False, [1.0])}, "contents are of list"),
        (lambda mark: {"a": [np.ones(2)]}, "a list at a"),
        (lambda mark: {"a": {"b": 3}}, "a int at a/b"),
        (lambda mark: {3: np.ones(2)}, "the key 3 in the outermost dict"),
        (lambda mark: {"a/b": np.ones(2)}, "the key 'a/b'"),
        (lambda mark: np.ones(2), "a _Array at the top"),
        (lambda mark: cycle(), "a dict twice at a/b"),
    ],
)
def test_a_pickle_that_holds_more_than_arrays_is_refused(value, message, protocol, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "bad"
    path.write_bytes(pickle.dumps(value(mark), protocol))
    with pytest.raises(ValueError, match=f"{path} .*({message})"):
        load_arrays(path)
    assert not mark.exists()


def cycle():
    tree = {"a": {}}
    tree["a"]["b"] = tree["a"]
    return tree


def test_damaged_pickles_are_refused(tmp_path):
    path, whole = tmp_path / "bad", pickle.dumps({"a": np.ones(5)})
    for content in (b"", whole[:-30], whole[:20], b"\x80\x04no pickle", b"cos\nsystem\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no pickle of NumPy arrays|holds more than"):
            load_arrays(path)
    with open(path, "wb") as file:
        Persistent(file).dump({"a": np.ones(2)})
    with pytest.raises(ValueError, match="refers to 'elsewhere', outside of the file"):
        load_arrays(path)


# ---------------------------------------------------------------- files that do not fit


def drop(tensors, name):
    del tensors[name]


BLOCK = "decoder/UpsamplingBlock_1/ResnetBlock_0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: drop(t, "encoder/Conv_0/kernel"), "'encoder/Conv_0/kernel' is missing: not a"),
        (lambda t: drop(t, f"{BLOCK}/Conv_2/bias"), rf"missing: \['{BLOCK}/Conv_2/bias'\]"),
        (lambda t: t.update({"encoder/AttnBlock_0/x": np.ones(1)}), "not known: .*AttnBlock_0"),
        (lambda t: t.update({"quant_conv/bias": np.zeros(16, np.int8)}), "int8"),
        (lambda t: t.update({"quant_conv/bias": np.zeros(17, np.float32)}), r"\[17\].*\[16\]"),
        (lambda t: t.update({"quantize/embeddings": np.zeros(17)}), "should have 2 dimensions"),
        (lambda t: t.update({"encoder/Conv_0/kernel": np.zeros((3, 3, 3, 48))}), "not multiples"),
        (lambda t: t.update({"encoder/DownsamplingBlock_3/x": np.ones(1)}), r"\[0, 1, 3\]"),
    ],
)
def test_files_that_do_not_fit(tensors, change, message):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(ValueError, match=message):
        vqgan.from_tensors(changed)
