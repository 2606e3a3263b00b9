"""The files of PyTorch that go with exported weights, beside ours."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from tiny import NO_TORCH
from tiny_policy import INSTRUCTIONS

from lapa_jax.interop import hf, torch_code, torch_tokenizer, vqgan
from lapa_jax.interop.mapping import to_theirs
from lapa_jax.nn.position import rope_tables
from lapa_jax.policy import text

torch = pytest.importorskip("torch", reason=NO_TORCH)
GOLDEN = Path(__file__).parents[1] / "golden" / "vqgan"


@pytest.mark.slow
def test_the_originals_rounded_rotary_tables_in_torch(tmp_path):
    """Beyond position 256 bfloat16 angles are shared: a table that is not the same is no use."""
    torch_code.write(tmp_path, {}, [hf.MODELING, hf.MODELING_VQGAN])
    module = torch_code.load(tmp_path, hf.MODELING)
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
    encoder, prefix = module.ImageEncoder(config.architecture()), "image_tokenizer."
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
