"""Our policy ↔ a Hugging Face directory with its own modeling_lapa.py (torch_files/).

The backbone has LLaMA's names (llama.hf_rules); the other tables, heads and the front-end come
after it. lapa_run.json is the config of the run: the way back needs no other.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lapa_jax.interop import llama, safetensors_files, torch_code
from lapa_jax.interop.mapping import Rule
from lapa_jax.interop.safetensors_files import Tensor
from lapa_jax.nn.module import Functional, Tree, flatten
from lapa_jax.policy.front_end import front_end_config
from lapa_jax.policy.heads.tokens import TokenHead
from lapa_jax.policy.image_tokenizer import ImageEncoder, ImageTokenizerConfig
from lapa_jax.policy.modality import MODALITIES, TEXT
from lapa_jax.policy.vla import VLAConfig
from lapa_jax.stages.policy import PolicyStage

MODELING, MODELING_VQGAN = "modeling_lapa.py", "modeling_vqgan.py"
IMAGE_TOKENIZER = "image_tokenizer"  # the prefix of its tensors


def rules(stage: PolicyStage) -> list[Rule]:
    """Raises ValueError for a policy that the format cannot hold."""
    config = stage.model_config
    name, settings = front_end_config(config.front_end)
    if config.dim % config.heads:
        raise ValueError(
            f"model.dim={config.dim} is no multiple of model.heads={config.heads}: LLaMA's "
            "configuration wants one"
        )
    found = llama.hf_rules(config.depth)
    for head in stage.parts.values():
        if not isinstance(head, TokenHead):
            raise ValueError(
                f"model.targets.{head.modality}: PyTorch's LapaPolicy has heads of tokens alone"
            )
    for modality, size in stage.vocabularies.items():
        if size and modality != MODALITIES[TEXT]:
            table, kernel = f"embeddings/{modality}/table", f"heads/{modality}/kernel"
            found.append(Rule(f"embeddings.{modality}.weight", table))
            found.append(Rule(f"heads.{modality}.weight", kernel, "v d -> d v"))
    if name == "patches":
        for i in range(len(settings.stem_channels)):
            theirs, ours = f"front_end.stem.{i}", f"front_end/stem/stage_{i}"
            found += [
                Rule(f"{theirs}.conv.weight", f"{ours}/kernel", "o i h w -> h w i o"),
                Rule(f"{theirs}.norm.weight", f"{ours}/norm/scale"),
                Rule(f"{theirs}.norm.bias", f"{ours}/norm/bias"),
            ]
        found += [
            Rule("front_end.project.weight", "front_end/project/kernel", "d p -> p d"),
            Rule("front_end.project.bias", "front_end/project/bias"),
            Rule("front_end.rows", "front_end/rows"),
            Rule("front_end.columns", "front_end/columns"),
        ]
    if name == "vqgan":
        found += tokenizer_rules(settings.tokenizer, "front_end/encoder")
    return found


def encoder(config: ImageTokenizerConfig) -> Functional:
    """The half of an image tokenizer that a policy needs."""
    return Functional(lambda rngs: ImageEncoder(config, dtype=jnp.float32, rngs=rngs))


def tokenizer_rules(config: ImageTokenizerConfig, ours: str) -> list[Rule]:
    """Of an encoder that is at the path `ours`."""
    found = []
    for path in flatten(encoder(config).abstract()[0]):
        *parents, leaf = path.split("/")
        name = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        pattern = "o i h w -> h w i o" if leaf == "kernel" else ""
        found.append(Rule(".".join([IMAGE_TOKENIZER, *parents, name]), f"{ours}/{path}", pattern))
    return found


def tensors(
    stage: PolicyStage, params: Tree, variables: Tree, dtype: np.dtype
) -> dict[str, Tensor]:
    """Their tensors, each rearranged when it is asked for; parameters in `dtype`, what is frozen as
    it is."""
    sizes = llama.sizes(stage.model_config.heads, stage.model_config.head_dim)
    return safetensors_files.mapped(params, variables, rules(stage), sizes, dtype)


def hf_config(
    stage: PolicyStage, *, tokenizer: ImageTokenizerConfig | None, dtype: np.dtype
) -> dict[str, Any]:
    """config.json: LLaMA's keys, and ours under "lapa"."""
    config, layout, vocabularies = stage.model_config, stage.layout, stage.vocabularies
    del vocabularies[MODALITIES[TEXT]]
    return {
        "model_type": "llama",
        "architectures": ["LapaPolicy"],
        "auto_map": {"AutoModel": "modeling_lapa.LapaPolicy"},
        "vocab_size": config.text_vocab,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": layout.example_length,
        "initializer_range": config.init_std,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": layout.tokenizer.bos,
        "eos_token_id": layout.tokenizer.eos,
        "dtype": dtype.name,
        "torch_dtype": dtype.name,
        "lapa": {
            "head": stage.head.modality,
            "limits": list(stage.head.limits),
            "vocabularies": vocabularies,
            "image_size": list(stage.config.data.image_size),
            "num_images": layout.num_images,
            "tokens_per_image": layout.tokens_per_image,
            "text_length": layout.text_length,
            "front_end": _front_end(config),
            IMAGE_TOKENIZER: tokenizer.architecture() if tokenizer else None,
            "legacy": config.legacy,
            "rope_theta": config.rope_theta,
            # in the original's form, that of the training whatever the weights are loaded as
            "rope_rounding": config.compute_dtype if config.legacy else "float32",
        },
    }


def _front_end(config: VLAConfig) -> dict[str, Any]:
    name, settings = front_end_config(config.front_end)
    return {"name": name} | (dataclasses.asdict(settings) if name == "patches" else {})


def write(
    directory: Path,
    their_config: Mapping[str, Any],
    run_config: Mapping[str, Any],
    assets: Mapping[str, bytes],
    tensors: Mapping[str, Tensor],
) -> None:
    safetensors_files.write(directory, tensors)
    generation = {"do_sample": False} | {k: their_config[k] for k in _GENERATION}
    documents = {
        "config.json": their_config,
        "generation_config.json": generation,
        torch_code.RUN_CONFIG: run_config,
    }
    torch_code.write(directory, documents, [MODELING, MODELING_VQGAN])
    for name, data in assets.items():
        (directory / name).write_bytes(data)


_GENERATION = ("bos_token_id", "eos_token_id")


def load(directory: Path) -> Any:
    """The directory's own model in PyTorch, on the CPU, its weights as they are in the files. Runs
    the modeling_lapa.py in it: only for what was written here."""
    module = torch_code.load(directory, MODELING)
    return module.LapaPolicy.from_pretrained(directory, dtype="auto").eval()
