"""Our text tokenizer ↔ tokenizer.json, for `AutoTokenizer` of transformers.

modeling_lapa.py does not use it: it reads tokenizer.model with SentencePiece, as we do.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lapa_jax.interop.tensor_files import json_object
from lapa_jax.policy.text import TextTokenizer
from lapa_jax.runs.run import write_json

BPE = 2  # SentencePiece's number
# Spaces, full-width and composed characters, bytes: what normalisation may change.
PROBES = (
    "", "go", "  two  spaces ", "a\nb\tc", "\u00dcn\u00efcode \u00bd \ufb01", "\uff11\uff12\uff21",
    "e\u0301", "it's 5\u00b0", "x\u00a0y", "\u200bz", "\U0001f916", "\u2581x", "<vision>",
)  # fmt: skip


def write(directory: Path, tokenizer: TextTokenizer, texts: Sequence[str]) -> str:
    """Writes tokenizer.json and tokenizer_config.json if they give our ids of `texts` and PROBES to
    the last; says what was done. Without marks: add_special_tokens=False; else <s> comes first."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Regex, normalizers, pre_tokenizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    proto = ModelProto.FromString(tokenizer.model)
    if proto.trainer_spec.model_type != BPE:
        return f"not written: the SentencePiece model is of type {proto.trainer_spec.model_type}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(tokenizer.model)
        backend = LlamaTokenizer.from_pretrained(folder).backend_tokenizer
    # LLaMA's own does not normalise.
    steps = []
    if proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    prepend = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    begin, end = (proto.pieces[i].piece for i in (tokenizer.bos, tokenizer.eos))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos)]
    )
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=begin, eos_token=end)
    for text in (*texts, *PROBES):
        ours = tokenizer.ids(text).tolist()
        plain = found(text, add_special_tokens=False)["input_ids"]
        if plain != ours or found(text)["input_ids"] != [tokenizer.bos, *ours]:
            return f"not written: {text!r} gives {plain}, not {ours}"
    found.save_pretrained(directory)
    # The name of this class that transformers 4 knows, and 5 still does.
    settings = Path(directory) / "tokenizer_config.json"
    write_json(settings, json_object(settings) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    return "written: the same ids"
