"""A LAPA policy in PyTorch: an image and an instruction → a latent action or a robot action.

    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)
    model.predict_action(image, "put the eggplant into the basket")

The backbone is a LLaMA under Hugging Face's names, which `LlamaForCausalLM.from_pretrained(DIR)`
loads, too. Beside it, images, latent actions and actions have tables and heads of their own; ids
start at 0 in each. `config.lapa` holds what LLaMA's configuration does not know. The tokenizer and
the action bins are files beside the weights; `save_pretrained` writes them again. For transformers
4.46 and later, 5 included.

Shape suffixes: B rows, T tokens, S keys, N images of a row, K heads, C head width, D width.
"""

import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedModel
from transformers.utils import cached_file

from .modeling_vqgan import ImageEncoder

if tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (4, 46):
    raise ImportError(
        f"a LAPA policy needs transformers 4.46 or later, this is {transformers.__version__}: pip "
        "install --upgrade transformers"
    )

TOKENIZER, ACTION_BINS = "tokenizer.model", "action_bins.json"
# What belongs to the weights, and what is only kept where nothing of its name is there.
OWN = (TOKENIZER, ACTION_BINS, "lapa_run.json")
KEPT = ("tokenizer.json", "tokenizer_config.json", "README.md")
# Of `from_pretrained`: where files are from.
WHERE = (
    *("cache_dir", "force_download", "local_files_only"),
    *("proxies", "revision", "subfolder", "token"),
)
MODALITIES = ("text", "image", "latent", "action")
TEXT, IMAGE, LATENT, ACTION = range(4)
FILL = -1  # the id of an image token that comes from pixels
PROMPT = (
    "You are a helpful assistant. USER: What action should the robot take to `{instruction}` "
    "ASSISTANT:"
)
END_OF_FRAME, END_OF_VISION = 8192, 8193  # image ids of the legacy layout


class LapaPolicy(PreTrainedModel):
    """`predict_latent`, `predict_action` and `logits`.

    Computes in the dtype of its weights, or in `compute_dtype` where that is set; image tokens
    always in float32.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]
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
        self.heads = nn.ModuleDict({k: Linear(D, n) for k, n in vocabularies.items()})
        self.front_end = self.image_tokenizer = None
        if own["front_end"]["name"] == "patches":
            self.front_end = Patches(own["front_end"], D)
        if own["image_tokenizer"]:
            self.image_tokenizer = ImageEncoder(own["image_tokenizer"])
        else:  # some versions want a module of every name in the list
            self._keep_in_fp32_modules_strict = None
        self._beside, self._tokenizer, self._actions = {}, None, None
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

    # --- What users call ---

    def predict_action(self, image, instruction):
        """a float32 (action_dim,), or (B, action_dim), in the units of the data.

        `image`: uint8 (H, W, 3) and one instruction, or (B, H, W, 3) and B of them; of several
        images an example (N, H, W, 3) or (B, N, H, W, 3), earliest first. A policy of image tokens
        also takes their ids, (tokens,), (N, tokens) or with B before; without an image tokenizer
        only those.
        """
        ids = self._predict("action", image, instruction)
        if self._actions is None:
            self._actions = json.loads(self._file(ACTION_BINS))
        if "edges" in self._actions:  # an id a dimension: the centre of its bin
            edges = [np.asarray(e, np.float64) for e in self._actions["edges"]]
            middles = [0.5 * (e[:-1] + e[1:]) for e in edges]
            centres = [np.asarray(c) for c in self._actions.get("centres", middles)]
            found = np.stack(
                [c[i] for c, i in zip(centres, np.moveaxis(ids, -1, 0), strict=True)], axis=-1
            )
        else:  # one id an action
            found = np.asarray(self._actions["centres"])[ids[..., 0]]
        return found.astype(np.float32)

    def predict_latent(self, image, instruction):
        """z int64 (code_length,), or (B, code_length); arguments as of `predict_action`."""
        return self._predict("latent", image, instruction)

    @torch.no_grad()
    def logits(self, tokens, modality, images=None):
        """Logits float32 (B, T, vocabulary) of every head, by name. `tokens`, `modality` (B, T)
        integers: 0 text, 1 image, 2 latent, 3 action. No padding. `images` uint8 (B, N, H, W, 3)
        where tokens are FILL."""
        tokens, modality = self._tensor(tokens), self._tensor(modality)
        x = self.embed(tokens, modality, None if images is None else self._tensor(images))
        position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        x, _ = self.model(x, position, torch.ones_like(position, dtype=torch.bool))
        return {name: self._head(name)(x).float() for name in ("text", *self.heads)}

    # --- Decoding ---

    def _predict(self, head, image, instruction):
        if self.config.lapa["head"] != head:
            raise ValueError(f"this policy predicts the {self.config.lapa['head']}, not the {head}")
        single = isinstance(instruction, str)
        ids, _ = self.decode(image, [instruction] if single else list(instruction))
        return ids[0] if single else ids

    @torch.no_grad()
    def decode(self, image, texts):
        """The likeliest ids int64 (B, L), one after the other, and their logits float32 (B, L,
        vocabulary)."""
        own, head = self.config.lapa, self.config.lapa["head"]
        images, image_ids = self._images(image, len(texts))
        prompts = [self.prompt(text, ids) for text, ids in zip(texts, image_ids, strict=True)]
        # Prompts all end at the last slot: shorter ones are padded at the left.
        B, T = len(prompts), max(len(tokens) for tokens, _ in prompts)
        tokens, modality = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
        visible = np.zeros((B, T), bool)
        for row, (t, m) in enumerate(prompts):
            tokens[row, T - len(t) :], modality[row, T - len(t) :] = t, m
            visible[row, T - len(t) :] = True
        visible = self._tensor(visible)
        position = (visible.cumsum(1) - 1).clamp(min=0)
        x = self.embed(self._tensor(tokens), self._tensor(modality), images)
        cache, found, logits = None, [], []
        for limit in own["limits"]:  # ids that this token has
            x, cache = self.model(x, position, visible, cache)
            logits.append(self._head(head)(x[:, -1]).float())
            found.append(logits[-1][:, :limit].argmax(-1))
            x = self.embeddings[head](found[-1])[:, None].to(x.dtype)
            position = position[:, -1:] + 1
            visible = F.pad(visible, (0, 1), value=True)
        return tuple(torch.stack(x, 1).cpu().numpy() for x in (found, logits))

    def embed(self, tokens_BT, modality_BT, images_BNHWC=None):
        """(B, T, D): each token from the table of its modality, FILL from the front-end."""
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


# --- The backbone: LLaMA ---


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD, position_BT, visible_BS, cache=None):
        """(normed hidden states, cache). The T rows are the last of the S that `visible` tells."""
        S, T = visible_BS.shape[1], x_BTD.shape[1]
        causal = torch.ones(T, S, dtype=torch.bool, device=x_BTD.device).tril(S - T)
        mask = causal & visible_BS[:, None]
        # Padding sees itself, lest its softmax be empty.
        mask = mask | torch.eye(S, dtype=torch.bool, device=mask.device)[S - T :]
        tables = rope_tables(
            position_BT,
            self.config.head_dim,
            self.config.lapa["rope_theta"],
            getattr(torch, self.config.lapa["rope_rounding"]),
        )
        new = []
        for i, layer in enumerate(self.layers):
            x_BTD, kv = layer(x_BTD, tables, mask[:, None], cache[i] if cache else None)
            new.append(kv)
        return self.norm(x_BTD), new


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, tables, mask, cache):
        y, cache = self.self_attn(self.input_layernorm(x), tables, mask, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_dim, inner = config.head_dim, config.num_attention_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, inner)
        self.k_proj = Linear(config.hidden_size, inner)
        self.v_proj = Linear(config.hidden_size, inner)
        self.o_proj = Linear(inner, config.hidden_size)

    def forward(self, x, tables, mask, cache):
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, K, T, C)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rope(q, *tables), rope(k, *tables)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(-2)), (k, v)


class Linear(nn.Linear):
    """Without bias, in the dtype of its input, whatever that of its weights."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def rope_tables(position_BT, head_dim, theta, rounded):
    """cos and sin (B, 1, T, head_dim / 2), float32. `rounded`: the dtype that wavelengths, angles
    and tables are rounded to on the way; the original LAPA computes them in bfloat16."""
    wavelengths = theta ** (np.arange(0, head_dim, 2) / head_dim)
    wavelengths = torch.from_numpy(wavelengths).to(rounded).double()
    frequencies = (1.0 / wavelengths).float().to(position_BT.device)
    angles = (position_BT[:, None, :, None].float() * frequencies).to(rounded).float()
    return angles.cos().to(rounded).float(), angles.sin().to(rounded).float()


def rope(x, cos, sin):
    """Rotates the halves of a head."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


# --- The front-end: images → tokens ---


class Patches(nn.Module):
    """Convolutions of stride 2, patches of what they give, learned positions."""

    def __init__(self, settings, width):
        super().__init__()
        channels = (3, *settings["stem_channels"])
        self.stem = nn.ModuleList(map(ConvStage, channels[:-1], channels[1:]))
        self.cut = settings["patch_size"] // 2 ** len(self.stem)
        self.project = nn.Linear(channels[-1] * self.cut**2, width)
        rows, columns = (side // settings["patch_size"] for side in settings["image_size"])
        self.rows = nn.Parameter(torch.zeros(rows, 1, width))
        self.columns = nn.Parameter(torch.zeros(1, columns, width))

    def forward(self, images_BHWC):
        x = images_BHWC.float() / 255.0
        x = x - x.mean((1, 2), keepdim=True)
        x = x * torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + 1e-4)
        x = x.permute(0, 3, 1, 2).to(self.rows.dtype)
        for stage in self.stem:
            x = stage(x)
        B, C, H, W = x.shape
        p = self.cut
        x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1)
        x = self.project(x.reshape(B, H // p, W // p, -1)) + self.rows + self.columns
        return x.flatten(1, 2)


class ConvStage(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x):
        x = self.conv(F.pad(x, (0, 1, 0, 1)))  # sides are even: padding right and below
        x = F.gelu(self.norm(x.permute(0, 2, 3, 1)), approximate="tanh")
        return x.permute(0, 3, 1, 2)
