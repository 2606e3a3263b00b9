"""The original's way of a policy, small: weights and image tokenizer imported, frames as cached
tokens, the paper's config trained from them, actions asked for."""

import json
import pickle
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
import tiny
from tiny import succeed

import lapa_jax
from lapa_jax.nn.module import unflatten
from lapa_jax.policy.text import train

GOLDEN = Path(__file__).parents[1] / "golden"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]
TEXTS = [f"move the {c} square to place {i}" for c in ("red", "green", "blue") for i in range(4)]
D, F, L, V, IMAGE_V = 32, 64, 2, 32_000, 8448


@pytest.fixture(scope="module")
def world(quick_compile, tmp_path_factory):
    """A folder with the runs `vqgan` and `lwm`, and a corpus of 32 px with both sidecars."""
    folder = tmp_path_factory.mktemp("original")
    tiny.write_corpus(folder / "corpus", size=32, episodes=4)
    tiny.write_labels(folder / "corpus")
    with np.load(GOLDEN / "vqgan" / "vqgan_tiny_params.npz") as file:
        (folder / "vqgan.pickle").write_bytes(pickle.dumps(unflatten(dict(file))))
    (folder / "tokenizer.model").write_bytes(train(TEXTS, 320))
    shape = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": L}
    (folder / "shape.json").write_text(json.dumps(shape | {"num_attention_heads": 2}))
    with open(folder / "params", "wb") as file:
        for name, x in weights().items():
            array = msgpack.packb((x.shape, x.dtype.name, x.tobytes()))
            value = msgpack.packb(msgpack.ExtType(1, array))
            file.write(msgpack.packb((name.split("/"), value)))
    run = ("import", "--format", "vqgan_pickle", "--source", folder / "vqgan.pickle")
    succeed(*run, "--out", folder / "vqgan")
    run = ("import", "--format", "lapa_stream", "--source", folder / "params")
    flags = ("--model_json", folder / "shape.json", "--tokenizer", folder / "tokenizer.model")
    succeed(*run, *flags, "--out", folder / "lwm")
    run = ("label", "--what", "image_tokens", "--workdir", folder / "vqgan")
    succeed(*run, "--corpus", folder / "corpus", "--name", "vqgan")
    return folder


def weights() -> dict[str, np.ndarray]:
    """LWM's tensors: text and images only."""
    rng = np.random.default_rng(0)
    layer = "transformer/h/scan_decoder"
    shapes = {
        "transformer/wte/embedding": (V, D),
        "transformer/vte/embedding": (IMAGE_V, D),
        "lm_head/kernel": (D, V),
        "vision_head/kernel": (D, IMAGE_V),
        "transformer/ln_f/kernel": (D,),
        f"{layer}/attention_norm/kernel": (L, D),
        f"{layer}/ffn_norm/kernel": (L, D),
        **{f"{layer}/attention/w{x}/kernel": (L, D, D) for x in "qkvo"},
        f"{layer}/feed_forward/w1/kernel": (L, D, F),
        f"{layer}/feed_forward/w2/kernel": (L, F, D),
        f"{layer}/feed_forward/w3/kernel": (L, D, F),
    }
    return {
        name: (0.2 * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }


TOKENIZER_FLAGS = [
    f"--config.model.front_end.tokenizer.{setting}"
    for setting in (
        "dim=32",
        "multipliers=(1,2)",
        "blocks=1",
        "latent_dim=16",
        "code_dim=16",
        "codebook_size=64",
    )
]


def train_latent(world: Path, front_end: str, *overrides: str) -> Path:
    spec = (
        f"{tiny.ROOT}/experiments/latent_vla/paper.py:quick=True,data={world}/corpus,"
        f"label_set={tiny.LABEL_SET},front_end={front_end}"
    )
    changes = {
        "init_from": world / "lwm",
        "steps": 2,
        "optimizer.warmup_steps": 1,
        "global_batch": 4,
        "log_every_steps": 1,
        "checkpoint.every_steps": 2,
        "code_length": 1,
        "data.image_size": "(32,32)",
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    workdir = world / f"latent-{front_end}"
    succeed("train", "--config", spec, *flags, *overrides, "--workdir", workdir)
    return workdir


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in open(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def cached(world):
    return train_latent(world, "cached_tokens")


def test_it_starts_from_the_imported_weights(cached):
    report = json.loads((cached / "init_from.json").read_text())
    new = {"embeddings/latent/table", "heads/latent/kernel"}
    assert set(report["initialised"]) == new and not report["dropped"]
    assert len(report["widened"]) == len(report["taken"]) == 14


def test_a_tokenizer_in_the_model_trains_as_cached_tokens_do(world, cached):
    weights = f"--config.model.front_end.weights={world}/vqgan"
    inside = train_latent(world, "vqgan", weights, *TOKENIZER_FLAGS)
    np.testing.assert_allclose(losses(inside), losses(cached), rtol=1e-5)
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    texts = TEXTS[:2]
    z = lapa_jax.load_policy(inside).predict_latent(image, texts)
    same = lapa_jax.load_policy(cached, image_tokenizer=world / "vqgan")
    np.testing.assert_array_equal(same.predict_latent(image, texts), z)
    assert z.shape == (2, 1)
    one = same.predict_latent(image[0], texts[0], temperature=1.0, top_k=3, seed=1)
    assert one.shape == (1,) and 0 <= int(one[0]) < 8
    with pytest.raises(ValueError, match="sampling takes both"):
        same.predict_latent(image[0], texts[0], seed=1)


def test_the_papers_finetuning(world, cached):
    """Of the real robot: from cached tokens to tokens of augmented images."""
    spec = (
        f"{tiny.ROOT}/experiments/action_vla/paper.py:quick=True,task=real,data={world}/corpus,"
        f"init_from={cached},vqgan={world}/vqgan"
    )
    changes = {
        "steps": 2,
        "optimizer.warmup_steps": 1,
        "global_batch": 4,
        "checkpoint.every_steps": 2,
        "data.image_size": "(32,32)",
        "model.action_vocab": 16,
        "init_from": cached,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    succeed("train", "--config", spec, *flags, *TOKENIZER_FLAGS, "--workdir", world / "action")
    policy = lapa_jax.load_policy(world / "action")
    image = np.zeros((32, 32, 3), np.uint8)
    action = np.asarray(policy.predict_action(image, TEXTS[0]))
    assert action.shape == (2,) and np.isfinite(action).all()
    centres = policy.stage.head.codec.centres
    assert all(value in centres[i] for i, value in enumerate(action))
