"""Policies from foreign checkpoints: the original's stream, Hugging Face's LLaMA."""

import functools
import io
import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file
from tiny import lapa, succeed

import lapa_jax
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.interop import msgpack_stream
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.runs import loaded

GOLDEN = Path(__file__).parent.parent / "golden" / "lm"
STREAM = GOLDEN / "lm_tiny_delta_scan.streaming_params"
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "theta": 50000000,
}
BINS = "0,1,2,3\n-1,0,0.5,1\n-0.5,0.5,1.5,\n"


@functools.cache
def tokenizer() -> bytes:
    """As small a model as the recording's vocabulary admits."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["push the red block <vision> </vision> <delta> </delta>"] * 9),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    (directory / "shape.json").write_text(json.dumps(SHAPE))
    (directory / "tokenizer.model").write_bytes(tokenizer())
    (directory / "bins.csv").write_text(BINS)
    return directory


def arguments(files: Path, out: Path, source: Path = STREAM, **changes) -> list:
    flags = {
        "format": "lapa_stream",
        "source": source,
        "out": out,
        "model_json": files / "shape.json",
        "tokenizer": files / "tokenizer.model",
        "compute_dtype": "float32",
    } | changes
    return ["import", *(x for k, v in flags.items() if v is not None for x in (f"--{k}", v))]


def recording(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"lm_tiny_{name}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def policy(files):
    succeed(*arguments(files, files / "run"))
    return lapa_jax.load_policy(files / "run")


@pytest.mark.slow
def test_the_originals_checkpoint_gives_the_originals_logits(policy, files):
    io = recording("delta_scan_io")
    modality = (io["vision_masks"] + 2 * io["delta_masks"]).astype(np.int8)
    found = policy.logits(io["input_ids"], modality)
    assert sorted(found) == ["image", "latent", "text"]
    for ours, theirs in (("image", "vision"), ("text", "text"), ("latent", "delta")):
        np.testing.assert_allclose(found[ours], io[f"{theirs}_logits"], atol=2e-5)
    params = flatten(loaded.load(files / "run").params)
    assert {str(x.dtype) for x in params.values()} == {"bfloat16"}


@pytest.mark.slow
def test_what_lora_learned_is_merged_on_loading(files, tmp_path):
    run = loaded.load(files / "run")
    config = configs.from_dict(configs.to_dict(run.config))
    config.model.update(param_dtype="float32", lora_rank=2, lora_alpha=6.0, lora_pattern=".*/q")
    stage, rng = stages.build(config, run.assets), np.random.default_rng(0)
    params = {path: np.asarray(x, np.float32) for path, x in flatten(run.params).items()}
    for path, x in flatten(stage.model.abstract()[0]).items():
        if "lora" in path:
            params[path] = rng.normal(size=x.shape).astype(np.float32)
    assert len(params) == len(flatten(run.params)) + 2
    params = unflatten(params)
    made = Imported(config, params, run.assets)
    write_run(tmp_path / "run", made, source="params", source_format="lapa_stream")
    ids, modality = np.arange(6, dtype=np.int32)[None], np.zeros((1, 6), np.int32)
    rows = (ids, modality, np.ones_like(ids))
    logits = stage.model.apply(params, {}, "outputs", *rows, slots={"latent": None})[0]["latent"]
    merged = lapa_jax.load_policy(tmp_path / "run")
    assert merged.config.model.lora_rank == 0
    found = merged.logits(ids, modality)["latent"]
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_bad_rows_are_named(policy):
    ids, modality = np.zeros((2, 5), np.int32), np.zeros((2, 5), np.int8)
    for tokens, kinds, message in (
        (ids, modality[:1], "must both be"),
        (ids.astype(np.float32), modality, "tokens has dtype float32"),
        (ids, modality + 4, "modality holds 4 to 4"),
        (ids + 128, modality, "text ids run from 128 to 128; the model has 128"),
        (ids, modality + 3, "action ids run from 0 to 0; the model has 0"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.logits(tokens, kinds)
    with pytest.raises(ValueError, match="predicts the latent, not the action"):
        policy.predict_action(np.zeros((256, 256, 3), np.uint8), "push")
    with pytest.raises(ValueError, match=r"image uint8\[64, 64, 3\] must be uint8\[256, 256, 3\]"):
        policy.predict_latent(np.zeros((64, 64, 3), np.uint8), "push")
    with pytest.raises(ValueError, match="give load_policy the image_tokenizer"):
        policy.predict_latent(np.zeros((256, 256, 3), np.uint8), "push")


@pytest.mark.slow
def test_actions_with_the_originals_bins(files, tmp_path):
    """A stream of layers one by one, in float32, one array in flax's pieces."""
    shape = tmp_path / "shape.json"
    small = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2}
    shape.write_text(json.dumps(SHAPE | small | {"num_attention_heads": 2}))
    stream = tmp_path / "params"
    scanned = recording("action_scan_params")
    with open(stream, "wb") as file:
        for name, x in scanned.items():
            if "scan_decoder" not in name:
                file.write(packed(name, x, pieces=3 if name == "lm_head/kernel" else 1))
                continue
            for i, layer in enumerate(x):
                file.write(packed(name.replace("scan_decoder", str(i)), layer))
    bins = {"action_bins": files / "bins.csv", "model_json": shape}
    succeed(*arguments(files, tmp_path / "run", stream, **bins))
    policy = lapa_jax.load_policy(tmp_path / "run")
    assert policy.stage.head.limits == (3, 2)
    io = recording("action_scan_io")
    modality = io["vision_masks"] + 2 * io["delta_masks"] + 3 * io["action_masks"]
    found = policy.logits(io["input_ids"], modality)
    np.testing.assert_allclose(found["action"], io["action_logits"], atol=2e-5)
    np.testing.assert_allclose(found["text"], io["text_logits"], atol=2e-5)
    assert policy.stage.head.codec.decode(np.array([[1, 0]])).tolist() == [[0.25, 0.0]]


def packed(name: str, x: np.ndarray, pieces: int = 1) -> bytes:
    def one(x: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.name, x.tobytes())))

    value = one(x)
    if pieces > 1:
        chunks = np.array_split(x.reshape(-1), pieces)
        value = {
            "__msgpack_chunked_array__": True,
            "shape": {str(i): size for i, size in enumerate(x.shape)},
            "chunks": {str(i): one(chunk) for i, chunk in enumerate(chunks)},
        }
    return msgpack.packb((name.split("/"), msgpack.packb(value)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokenizer": None}, "needs --tokenizer"),
        ({"model_json": None}, "one of --size and --model_json"),
        ({"model_json": None, "size": "7b"}, "gives .* the model has"),
        ({"model_json": None, "size": "8b"}, "--size '8b' must be one of"),
        ({"image_size": 64}, "lapa_stream does not take --image_size"),
        ({"source": __file__}, "is no streaming msgpack checkpoint"),
        ({"model_json": STREAM}, "is no text: the model's shape is meant"),
        ({"model_json": GOLDEN}, "is a directory: the model's shape is meant"),
        ({"action_bins": STREAM}, "is no text: a csv of bin edges is meant"),
        ({"action_bins": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"tokenizer": STREAM}, "no SentencePiece model"),
    ],
)
def test_wrong_imports_are_errors(files, tmp_path, changes, message):
    code, _, error = lapa(*arguments(files, tmp_path / "run", **changes))
    assert code == 2 and __import__("re").search(message, error), error


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_truncated_streams_are_errors(tmp_path, cut):
    path = tmp_path / "params"
    path.write_bytes(STREAM.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is no streaming msgpack checkpoint: "):
        msgpack_stream.read(path)


def test_wrong_vocabulary_and_missing_tensors(files, tmp_path):
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE | {"vocab_size": 129}))
    code, _, error = lapa(*arguments(files, tmp_path / "a", model_json=shape))
    assert code == 2 and "text_vocab=129, the file holds 128" in error
    stream = tmp_path / "params"
    with open(stream, "wb") as file:
        for name, x in recording("delta_scan_params").items():
            if name != "lm_head/kernel":
                file.write(packed(name, x))
    code, _, error = lapa(*arguments(files, tmp_path / "b", stream))
    assert code == 2 and "missing: ['lm_head/kernel'] (1)" in error


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_hugging_face_llama_has_its_own_logits(tmp_path, files, shards):
    """Against a plain NumPy LLaMA in Hugging Face's conventions: halves are rotated, weights are
    (out, in)."""
    rng = np.random.default_rng(0)
    V, D, F, K, C, L = 64, 24, 40, 3, 8, 2

    def normal(*shape):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(V, D), "lm_head.weight": normal(V, D)}
    tensors["model.norm.weight"] = 1 + normal(D)
    for i in range(L):
        at = f"model.layers.{i}"
        for x in ("q", "k", "v", "o"):
            tensors[f"{at}.self_attn.{x}_proj.weight"] = normal(D, D)
        for x, size in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            tensors[f"{at}.mlp.{x}_proj.weight"] = normal(*size)
        for x in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{x}.weight"] = 1 + normal(D)
    source = tmp_path / "hf"
    source.mkdir()
    config = {
        "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": F,
        "num_hidden_layers": L, "num_attention_heads": K, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, source / "model.safetensors")
    else:
        parts = {f"model-{i}.safetensors": names[i::shards] for i in range(shards)}
        for file, mine in parts.items():
            save_file({name: tensors[name] for name in mine}, source / file)
        index = {"weight_map": {name: file for file, mine in parts.items() for name in mine}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    flags = dict(format="hf_llama", source=source, model_json=None)
    succeed(*arguments(files, tmp_path / "run", **flags))
    tokens = rng.integers(0, V, (2, 7)).astype(np.int32)
    found = lapa_jax.load_policy(tmp_path / "run").logits(tokens, np.zeros((2, 7), np.int8))
    assert list(found) == ["text"]
    expected = hugging_face(tensors, tokens, L, K, C)
    np.testing.assert_allclose(found["text"], expected, atol=1e-4)


def hugging_face(t, tokens, L, K, C):
    def norm(x, scale):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * scale

    def turned(x):
        angles = np.arange(x.shape[1])[:, None] * 1e4 ** (-np.arange(0, C, 2) / C)
        cos, sin = (np.tile(f(angles), 2)[None, :, None] for f in (np.cos, np.sin))
        a, b = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-b, a], -1) * sin

    x = t["model.embed_tokens.weight"][tokens]
    B, T = tokens.shape
    for i in range(L):
        at = f"model.layers.{i}"
        h = norm(x, t[f"{at}.input_layernorm.weight"])
        q, k, v = ((h @ t[f"{at}.self_attn.{n}_proj.weight"].T).reshape(B, T, K, C) for n in "qkv")
        scores = np.einsum("btkc,bskc->bkts", turned(q), turned(k)) / np.sqrt(C)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("bkts,bskc->btkc", weights, v).reshape(B, T, K * C)
        x = x + y @ t[f"{at}.self_attn.o_proj.weight"].T
        h = norm(x, t[f"{at}.post_attention_layernorm.weight"])
        gate = h @ t[f"{at}.mlp.gate_proj.weight"].T
        up = h @ t[f"{at}.mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ t[f"{at}.mlp.down_proj.weight"].T
    return norm(x, t["model.norm.weight"]) @ t["lm_head.weight"].T
