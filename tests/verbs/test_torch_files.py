"""The files of PyTorch that go with exported weights, beside ours."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tiny_policy
from tiny import NO_TORCH
from tiny_policy import INSTRUCTIONS

from lapa_jax import stages
from lapa_jax.interop import hf, hf_llama, torch_code, torch_tokenizer, vqgan
from lapa_jax.interop.mapping import to_theirs
from lapa_jax.nn.position import rope_tables
from lapa_jax.policy import text

torch = pytest.importorskip("torch", reason=NO_TORCH)
GOLDEN = Path(__file__).parents[1] / "golden" / "vqgan"


@pytest.mark.slow
def test_the_originals_rounded_rotary_tables_in_torch(tmp_path):
    """Beyond position 256 bfloat16 angles are shared: a table that is not the same is no use."""
    torch_code.write(tmp_path, {}, hf.FILES)
    module = torch_code.load(tmp_path, "modeling_backbone.py")
    where = np.arange(600)[None]
    for ours, theirs in ((jnp.bfloat16, torch.bfloat16), (jnp.float32, torch.float32)):
        expected = rope_tables(jnp.asarray(where), 128, 5e7, ours)
        found = module.rope_tables(torch.from_numpy(where), 128, 5e7, theirs)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(np.asarray(a), b[:, 0].numpy(), atol=5e-5)


@pytest.mark.slow
def test_the_originals_image_tokens_in_torch(tmp_path):
    config, params = vqgan.from_tensors(dict(np.load(GOLDEN / "vqgan_tiny_params.npz")))
    torch_code.write(tmp_path, {}, [hf.MODELING_VQGAN])
    module = torch_code.load(tmp_path, hf.MODELING_VQGAN)
    encoder, prefix = module.ImageEncoder(config.settings()), "image_tokenizer."
    rules = hf.tokenizer_rules(config, "encoder")
    tensors = to_theirs({}, rules, {}, {"encoder": params["encoder"]})
    encoder.load_state_dict(
        {k.removeprefix(prefix): torch.tensor(x.make()) for k, x in tensors.items()}
    )
    given = dict(np.load(GOLDEN / "vqgan_tiny_io.npz"))
    with torch.no_grad():
        codes = encoder(torch.tensor(given["images_u8"])).numpy()
    assert ((codes == given["indices"]) | (given["margin"] < 1e-4)).all()


def test_a_tokenizer_that_transformers_cannot_reproduce_is_not_written(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(INSTRUCTIONS), model_writer=model, vocab_size=24,
        model_type="unigram", minloglevel=2,
    )  # fmt: skip
    told = torch_tokenizer.write(tmp_path, text.TextTokenizer(model.getvalue()), INSTRUCTIONS)
    assert told == "not written: the SentencePiece model is of type 1"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_llama_is_that_of_transformers(tmp_path):
    """Grouped keys, a head width of its own, tied embeddings, float16 in shards: its logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=352, hidden_size=24, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, head_dim=6, tie_word_embeddings=True,
        initializer_range=0.2,
    )  # fmt: skip
    model, folder = LlamaForCausalLM(config).half(), tmp_path / "hf"
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    (tmp_path / "tokenizer.model").write_bytes(tiny_policy.tokenizer())
    options = hf_llama.Options(tokenizer=str(tmp_path / "tokenizer.model"), compute_dtype="float32")
    made = hf_llama.read(folder, options)
    ids = np.random.default_rng(0).integers(0, 352, (2, 7))
    rows = ids, np.zeros_like(ids), np.ones_like(ids)
    stage = stages.build(made.config, made.assets)
    found = stage.model.apply(made.params, {}, "outputs", *rows, slots={"text": None})[0]["text"]
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = theirs(torch.from_numpy(ids)).logits.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_older_transformers_are_named(tmp_path, monkeypatch):
    import transformers

    torch_code.write(tmp_path, {}, hf.FILES)
    # Those that are taken copy no file that only a neighbour imports.
    text = (tmp_path / hf.MODELING).read_text()
    names = {name.removesuffix(".py") for name in hf.FILES} - {"modeling_lapa"}
    assert all(f"from .{name} import" in text for name in names)
    monkeypatch.setattr(transformers, "__version__", "4.40.1")
    with pytest.raises(ImportError, match="needs transformers 4.46 or later, this is 4.40.1"):
        torch_code.load(tmp_path, hf.MODELING)
