"""A LAPA policy in PyTorch: an image and an instruction → a latent action or a robot's actions.

    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)
    model.predict_action(image, "put the eggplant into the basket")

The backbone is a LLaMA under Hugging Face's names, which `LlamaForCausalLM.from_pretrained(DIR)`
loads, too. Beside it, images, latent actions and actions have tables and heads of their own; ids
start at 0 in each. `config.lapa` holds what LLaMA's configuration does not know. The tokenizer and
what tokens of actions stand for are files beside the weights; `save_pretrained` writes them again.
For transformers 4.46 and later, 5 included.

Shape suffixes: B rows, T tokens, n slots, N images of a row, D width, S numbers of a state.
"""

from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.utils import cached_file

# All files are imported here: older transformers copy those alone.
from .fast_tokens import FastTokens
from .modeling_answers import ACTION_BINS, OF_TOKENS, Answers
from .modeling_backbone import Backbone, Linear, Patches
from .modeling_heads import StateEmbedding, head_of
from .modeling_vqgan import ImageEncoder

if tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (4, 46):
    raise ImportError(
        f"a LAPA policy needs transformers 4.46 or later, this is {transformers.__version__}: pip "
        "install --upgrade transformers"
    )

TOKENIZER, FAST = "tokenizer.model", "fast_grammar.json"
# What belongs to the weights, and what is only kept where nothing of its name is there.
OWN = (
    *(TOKENIZER, ACTION_BINS, FAST, "fast_tokenizer.json", "lapa_run.json"),
    *(f"{name}_statistics.json" for name in ("action", "latent", "state")),
)
KEPT = ("tokenizer.json", "tokenizer_config.json", "README.md")
# Of `from_pretrained`: where files are from.
WHERE = (
    *("cache_dir", "force_download", "local_files_only"),
    *("proxies", "revision", "subfolder", "token"),
)
MODALITIES = ("text", "image", "latent", "action", "state")
TEXT, IMAGE, LATENT, ACTION, STATE = range(5)
FILL = -1  # the id of a token that comes from pixels, or of the state
PROMPT = (
    "You are a helpful assistant. USER: What action should the robot take to `{instruction}` "
    "ASSISTANT:"
)
END_OF_FRAME, END_OF_VISION = 8192, 8193  # image ids of the legacy layout


class LapaPolicy(Answers, PreTrainedModel):
    """`predict_latent`, `predict_action` and `logits`.

    Computes in the dtype of its weights, or in `compute_dtype` where that is set; image tokens
    always in float32.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer", "ExpertLayer"]
    _keep_in_fp32_modules_strict = ["image_tokenizer"]
    _supports_sdpa = True
    _auto_class = "AutoModel"
    compute_dtype = None

    def __init__(self, config):
        super().__init__(config)
        own, D = config.lapa, config.hidden_size
        self.model = Backbone(config)
        self.lm_head = Linear(D, config.vocab_size)
        vocabularies = {name: size for name, size in own["vocabularies"].items() if size}
        self.embeddings = nn.ModuleDict({k: nn.Embedding(n, D) for k, n in vocabularies.items()})
        heads = {k: Linear(D, n) for k, n in vocabularies.items() if k not in own["heads"]}
        heads |= {k: head_of(config, spec) for k, spec in own["heads"].items()}
        self.heads = nn.ModuleDict(heads)
        vectors = {
            k: x["vectors"]["dim"] for k, x in own["heads"].items() if x["kind"] == "vectors"
        }
        self.fed = nn.ModuleDict({k: Linear(V, D, True) for k, V in vectors.items()})
        self.front_end = self.image_tokenizer = self.state = None
        if own["state"]:
            self.state = StateEmbedding(len(own["state"]["centre"]), D)
        if own["front_end"]["name"] == "patches":
            self.front_end = Patches(own["front_end"], D)
        if own["image_tokenizer"]:
            self.image_tokenizer = ImageEncoder(own["image_tokenizer"])
        else:  # some versions want a module of every name in the list
            self._keep_in_fp32_modules_strict = None
        self._beside, self._tokenizer, self._fast = {}, None, None
        self.post_init()

    # --- Files ---

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        found = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        where = {key: kwargs[key] for key in WHERE if key in kwargs}
        for name in (*OWN, *KEPT):
            file = cached_file(
                pretrained_model_name_or_path,
                name,
                _raise_exceptions_for_missing_entries=False,
                **where,
            )
            if file is not None:
                model._beside[name] = Path(file).read_bytes()
        weights = model.image_tokenizer.parameters() if model.image_tokenizer is not None else ()
        if any(x.dtype != torch.float32 for x in weights):
            raise ValueError(
                f"transformers {transformers.__version__} rounds the image tokenizer with the "
                "policy, which changes its tokens: load in float32, or use 4.53 or later"
            )
        return found

    def save_pretrained(self, save_directory, *args, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        self._write_beside(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Of `push_to_hub`, of the method as of the argument of `save_pretrained`."""
        self._write_beside(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _write_beside(self, directory):
        for name, data in self._beside.items():
            path = Path(directory) / name
            if name in OWN or not path.exists():
                path.write_bytes(data)

    def _file(self, name):
        if name not in self._beside:
            raise ValueError(
                f"this policy has no {name}: from_pretrained reads it where the weights are"
            )
        return self._beside[name]

    def _fast_tokens(self):
        if self._fast is None:
            self._fast = FastTokens(self._file(FAST))
        return self._fast

    # --- What users call ---

    def predict_action(self, image, instruction, state=None, *, seed=0, noise=None):
        """The robot's actions in the units of the data, float32 (action_dim,), of a policy of
        chunks (horizon, action_dim), the next one first; with B before for B examples.

        `image`: uint8 (H, W, 3) and one instruction, or (B, H, W, 3) and B of them; of several
        images an example (N, H, W, 3) or (B, N, H, W, 3), earliest first. A policy of image tokens
        also takes their ids, (tokens,), (N, tokens) or with B before; without an image tokenizer
        only those. `state`: (S,) or (B, S) in the units of the data, of a policy that sees the
        robot's, and of no other. A policy that draws its answers begins with `noise`, float32
        (horizon, action_dim), or of each stream where there are several; else with what `seed`
        gives, which is not what it gives in JAX. ValueError where there is no answer: nothing is
        made up.
        """
        return self._predict("action", image, instruction, state, seed, noise)

    def predict_latent(self, image, instruction, state=None, *, seed=0, noise=None):
        """z int64 (code_length,), or vectors float32 (code_length, width), with B before for B
        examples; arguments as of `predict_action`."""
        return self._predict("latent", image, instruction, state, seed, noise)

    def _predict(self, head, image, instruction, *given):
        if self.config.lapa["head"] != head:
            raise ValueError(f"this policy predicts the {self.config.lapa['head']}, not the {head}")
        single = isinstance(instruction, str)
        found, *_ = self.answer(image, [instruction] if single else list(instruction), *given)
        return found[0] if single else found

    @torch.no_grad()
    def logits(self, tokens, modality, images=None):
        """Logits float32 (B, T, vocabulary) of every head of tokens, by name. `tokens`, `modality`
        (B, T) integers: 0 text, 1 image, 2 latent, 3 action. No padding. `images` uint8 (B, N, H,
        W, 3) where tokens are FILL."""
        tokens, modality = self._tensor(tokens), self._tensor(modality)
        x = self.embed(tokens, modality, None if images is None else self._tensor(images))
        position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        x, _ = self.model(x, position, torch.ones_like(position, dtype=torch.bool))
        heads = self.config.lapa["heads"]
        return {
            name: self._head(name)(x).float()
            for name in ("text", *self.heads)
            if name not in heads or heads[name]["kind"] in OF_TOKENS
        }

    def embed(self, tokens_BT, modality_BT, images_BNHWC=None, state_BS=None):
        """(B, T, D): each token from the table of its modality, FILL from the front-end or the
        state."""
        dtype, x = self.compute_dtype or self.dtype, 0
        for name in ("text", *self.embeddings):
            mine = modality_BT == MODALITIES.index(name)
            table = self.model.embed_tokens if name == "text" else self.embeddings[name]
            ids = torch.where(mine, tokens_BT, 0).clamp(min=0)
            x = x + torch.where(mine[..., None], table(ids).to(dtype), 0)
        if images_BNHWC is not None:
            images = images_BNHWC.flatten(0, 1)
            if self.front_end is None:
                filled = self.embeddings["image"](self.image_tokenizer(images))
            else:
                filled = self.front_end(images)
            filled = filled.reshape(len(x), -1, x.shape[-1]).to(dtype)
            fill = (modality_BT == IMAGE) & (tokens_BT == FILL)
            at = (fill.cumsum(1) - 1).clamp(min=0)[..., None].expand_as(x)
            x = torch.where(fill[..., None], filled.gather(1, at), x)
        if state_BS is not None:
            seen = self.state(state_BS.to(dtype))
            x = torch.where((modality_BT == STATE)[..., None], seen[:, None], x)
        return x

    def _head(self, name):
        return self.lm_head if name == "text" else self.heads[name]

    # --- Prompts ---

    def prompt(self, instruction, image_ids):
        """(tokens, modality) of everything before the first target."""
        own, ids = self.config.lapa, self._text_ids
        begin, image = [self.config.bos_token_id], np.asarray(image_ids)
        if not own["legacy"]:
            text = begin + ids(instruction)
            parts = [(text, TEXT), (image.reshape(-1), IMAGE)]
            if own["state"]:
                parts.append(([FILL], STATE))
        else:
            # Tags are plain text; every image has a mark at its end.
            target = {"latent": "delta", "action": "action"}[own["head"]]
            text = begin + begin + ids(PROMPT.format(instruction=instruction)) + ids("<vision>")
            marks = np.full((len(image), 1), END_OF_FRAME)
            marks[-1] = END_OF_VISION
            parts = [
                (text, TEXT),
                (np.concatenate([image, marks], axis=1).reshape(-1), IMAGE),
                (ids("</vision>") + ids(f"<{target}>"), TEXT),
            ]
        if len(text) > own["text_length"]:
            raise ValueError(
                f"the instruction {instruction!r} needs {len(text)} tokens, more than the "
                f"{own['text_length']} that the policy was trained with"
            )
        tokens = np.concatenate([np.asarray(t, np.int64) for t, _ in parts])
        return tokens, np.concatenate([np.full(len(t), m) for t, m in parts])

    def _text_ids(self, text):
        if self._tokenizer is None:
            model = self._file(TOKENIZER)
            self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
        return self._tokenizer.encode(text)

    def _images(self, image, count):
        """(pixels (B, N, H, W, 3) or None, image ids (N, tokens) of each)."""
        own, image = self.config.lapa, np.asarray(image)
        N, tokens = own["num_images"], own["tokens_per_image"]
        pixels, shape = self.front_end is not None, (tokens,)
        if self.image_tokenizer is not None:  # takes both
            pixels = image.ndim > 2 and image.shape[-1] == 3
        if pixels:
            shape = (*own["image_size"], 3)
        if (image.dtype != np.uint8 if pixels else image.dtype.kind not in "iu") or (
            image.size != count * N * np.prod(shape) or image.shape[-len(shape) :] != shape
        ):
            kind = "uint8 pixels" if pixels else "ids of image tokens"
            raise ValueError(
                f"image {image.dtype}{list(image.shape)} must be {kind} of shape {list(shape)} for "
                f"each of {N} images of {count} examples: resize it as the training data were"
            )
        image = image.reshape(count, N, *shape)
        if pixels:
            return self._tensor(image), [np.full((N, tokens), FILL)] * count
        size = own["vocabularies"]["image"]
        if image.min() < 0 or image.max() >= size:
            raise ValueError(f"image ids run from {image.min()} to {image.max()}: {size} exist")
        return None, list(image)

    def _tensor(self, array):
        tensor = torch.as_tensor(np.asarray(array))
        return (tensor if tensor.dtype in (torch.uint8, torch.bool) else tensor.long()).to(
            self.device
        )
