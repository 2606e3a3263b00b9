"""Our policy ↔ a Hugging Face directory with its own modeling_lapa.py (torch_files/).

The backbone has LLaMA's names (hf_llama.rules); the other tables, heads and the front-end come
after it. lapa_run.json is the config of the run: the way back needs no other.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.interop import (
    hf_check,
    hf_heads,
    hf_llama,
    llama,
    safetensors_files,
    staged,
    tensor_files,
    torch_code,
    torch_tokenizer,
)
from lapa_jax.interop.cards import model_card
from lapa_jax.interop.hf_check import IMAGE_TOKENIZER
from lapa_jax.interop.imported import Imported, exported, rebuilt, run_config
from lapa_jax.interop.mapping import Rule, float_dtype, linear, norm, to_theirs, unwrapped
from lapa_jax.nn.module import flatten
from lapa_jax.policy.front_end import front_end_config
from lapa_jax.policy.image_tokenizer import ImageTokenizerConfig
from lapa_jax.policy.modality import MODALITIES, TEXT
from lapa_jax.policy.vla import VLAConfig
from lapa_jax.runs.loaded import LoadedPolicy, Model, require
from lapa_jax.stages.policy import TOKENIZER, PolicyStage

MODELING, MODELING_VQGAN = "modeling_lapa.py", "modeling_vqgan.py"
FILES = (
    *(MODELING, MODELING_VQGAN, "modeling_backbone.py", "modeling_heads.py"),
    *("modeling_answers.py", "fast_tokens.py"),
)


@dataclasses.dataclass(frozen=True)
class Options(staged.Options):
    """Of `write`.

    image_tokenizer: the run that made the cached tokens of a policy's images: with it the policy
        takes pixels
    """

    image_tokenizer: str | None = dataclasses.field(default=None, metadata={"metavar": "RUN"})


def read(source: Path, options: object) -> Imported:
    """`lapa import --format hf`."""
    config = run_config(source / torch_code.RUN_CONFIG)
    theirs = unwrapped(tensor_files.tensors(source), hf_llama.TABLE, "a policy")
    of_tokenizer = [name for name in theirs if name.startswith(f"{IMAGE_TOKENIZER}.")]
    # Saved again, by others, weights may have another dtype.
    own = [x for name, x in theirs.items() if name not in of_tokenizer]
    config.model.param_dtype = float_dtype(own)
    stage = rebuilt(config, [source / name for name in (TOKENIZER, *hf_heads.ASSETS)])
    if not stage.from_pixels:  # then it is of another run
        theirs = {name: x for name, x in theirs.items() if name not in of_tokenizer}
    return exported(stage, theirs, rules(stage), _sizes(stage))


def write(run: Model, out: Path, options: Options) -> int:
    """`lapa export --format hf`. Takes the model over (`take_over`)."""
    stage = require(run, LoadedPolicy).stage
    found = rules(stage)
    torch_code.require_torch(torch_code.CHECKING, "transformers")
    config, dtype = staged.exported_config(run, options.precision)
    tokenizer = hf_check.find_tokenizer(run, options.image_tokenizer)
    theirs = hf_config(stage, tokenizer=tokenizer and tokenizer.config, dtype=dtype)
    tensors = to_theirs(run.params, found, _sizes(stage), run.variables, dtype)
    if tokenizer is not None and not stage.from_pixels:
        beside = tokenizer_rules(tokenizer.config, "encoder")
        tensors |= to_theirs({}, beside, {}, {"encoder": tokenizer.weights})
    count, inputs = len(tensors), hf_check.Inputs(run, tokenizer)
    card = functools.partial(model_card, run, config, dtype, usage(stage), library="transformers")
    with staged.staged(out, run, card) as (directory, parity):
        safetensors_files.write(directory, tensors)
        del tensors
        marks = {key: theirs[key] for key in ("bos_token_id", "eos_token_id")}
        documents = {
            "config.json": theirs,
            "generation_config.json": {"do_sample": False} | marks,
            torch_code.RUN_CONFIG: config,
        }
        torch_code.write(directory, documents, FILES)
        for name, data in (run.assets | hf_heads.files(stage)).items():
            (directory / name).write_bytes(data)
        parity.stated["tokenizer.json"] = torch_tokenizer.write(
            directory, stage.tokenizer, inputs.instructions
        )
        references = staged.take_over(
            run,
            dtype,
            lambda to: hf_check.Reference(run, inputs, staged.plain_stage(run, config, to)),
        )
        hf_check.check(parity, load(directory), inputs, *references)
    return count


def rules(stage: PolicyStage) -> list[Rule]:
    """Raises ValueError for a policy that the format cannot hold."""
    if stage.inverse_dynamics:
        raise ValueError("model.inverse_dynamics=True: it cannot act, and there is no such export")
    config = stage.model_config
    name, settings = front_end_config(config.front_end)
    if config.dim % config.heads:
        raise ValueError(
            f"model.dim={config.dim} is no multiple of model.heads={config.heads}: LLaMA's "
            "configuration wants one"
        )
    found = hf_llama.rules(config.depth) + hf_heads.rules(stage)
    if name == "patches":
        for i in range(len(settings.stem_channels)):
            theirs, ours = f"front_end.stem.{i}", f"front_end/stem/stage_{i}"
            found.append(Rule(f"{theirs}.conv.weight", f"{ours}/kernel", "o i h w -> h w i o"))
            found += norm(f"{theirs}.norm", f"{ours}/norm")
        found += linear("front_end.project", "front_end/project")
        found += [Rule(f"front_end.{x}", f"front_end/{x}") for x in ("rows", "columns")]
    if name == "vqgan":
        found += tokenizer_rules(settings.tokenizer, "front_end/encoder")
    return found


def tokenizer_rules(config: ImageTokenizerConfig, ours: str) -> list[Rule]:
    """Of an encoder that is at the path `ours`."""
    found = []
    for path in flatten(hf_check.encoder(config).abstract()[0]):
        *parents, leaf = path.split("/")
        name = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        pattern = "o i h w -> h w i o" if leaf == "kernel" else ""
        found.append(Rule(".".join([IMAGE_TOKENIZER, *parents, name]), f"{ours}/{path}", pattern))
    return found


def usage(stage: PolicyStage) -> str:
    """Of the model card."""
    predict, state = f"predict_{stage.head.modality}", ", state" * (stage.state is not None)
    rows, columns = stage.config.data.image_size
    return f"""With PyTorch, sentencepiece and transformers 4.46 or later (such directories were
loaded, used and saved again in 4.46.3, 4.53.2, 4.57.1, 5.0.0 and 5.24.0; before 4.53 a policy with
an image tokenizer loads in float32 alone). `trust_remote_code` runs modeling_lapa.py of this
directory: read it first.

```python
from transformers import AutoModel

policy = AutoModel.from_pretrained("DIR", trust_remote_code=True)    # or ORG/NAME
policy.{predict}(image, "{hf_check.INSTRUCTIONS[0]}"{state})    # uint8 ({rows}, {columns}, 3)
```

{_of_the_answer(stage)}Images must be resized as those of its training were.
`save_pretrained` and `push_to_hub` write all that it needs. `lapa import --format hf --source DIR
--out RUN` makes it a run again; DIR may be hf://ORG/NAME."""


def _of_the_answer(stage: PolicyStage) -> str:
    parts = []
    if stage.acts and stage.head.horizon > 1:
        parts.append(f"It gives the next {stage.head.horizon} actions. ")
    if stage.state is not None:
        parts.append(f"`state`: the {stage.state.dim} numbers of the robot's, in their units. ")
    if stage.head.draws:
        parts.append("Answers begin with noise, by `seed=` or given as `noise=`. ")
    return "".join(parts)


def _sizes(stage: PolicyStage) -> dict[str, int]:
    return llama.sizes(stage.model_config.heads, stage.model_config.head_dim) | hf_heads.SIZES


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
            **hf_heads.settings(stage),
            "vocabularies": vocabularies,
            "image_size": list(stage.config.data.image_size),
            "num_images": layout.num_images,
            "tokens_per_image": layout.tokens_per_image,
            "text_length": layout.text_length,
            "front_end": _front_end(config),
            IMAGE_TOKENIZER: tokenizer.settings() if tokenizer else None,
            "legacy": config.legacy,
            "rope_theta": config.rope_theta,
            # in the original's form, that of the training whatever the weights are loaded as
            "rope_rounding": config.compute_dtype if config.legacy else "float32",
        },
    }


def _front_end(config: VLAConfig) -> dict[str, Any]:
    name, settings = front_end_config(config.front_end)
    return {"name": name} | (dataclasses.asdict(settings) if name == "patches" else {})


def load(directory: Path) -> Any:
    """The directory's own model in PyTorch, on the CPU, its weights as they are in the files. Runs
    the modeling_lapa.py in it: only for what was written here."""
    module = torch_code.load(directory, MODELING)
    return module.LapaPolicy.from_pretrained(directory, dtype="auto").eval()
