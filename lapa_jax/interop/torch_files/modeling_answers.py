"""How a LAPA policy answers: what it has seen of prompts, then its heads in turn (PyTorch).

Shape suffixes: B examples, T tokens, n slots or vectors, D width, S numbers of a state, V numbers
of a vector.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

OF_TOKENS = ("tokens", "fast")  # kinds of heads
ACTION_BINS = "action_bins.json"


@dataclass
class Prompt:
    """What the backbone has seen: which slots hold a token and where it stands, the normed hidden
    states, keys and values of each layer, and the position of the next token."""

    visible_BT: torch.Tensor
    position_BT: torch.Tensor
    hidden_BTD: torch.Tensor | None = None
    cache: list | None = None

    @property
    def next_B1(self):
        return self.position_BT[:, -1:] + 1


class Answers:
    """Of a policy."""

    _actions = None  # what tokens of actions stand for, once read

    @torch.no_grad()
    def answer(self, image, texts, state=None, seed=0, noise=None):
        """(values (B, ...), ids int64 (B, n), logits float32 (B, n, vocabulary)) of the likeliest
        answer to B texts; ids and logits are None of a head of numbers."""
        last, prompt = self.config.lapa["head"], self._prompt(image, texts, state)
        for head in self.config.lapa["before"]:  # they speak first
            if head in self.fed:
                self._see(prompt, self.fed[head](self._one_by_one(head, prompt)[:, -1:]))
            else:
                ids, _ = self._spoken(head, prompt)
                self._see(prompt, self.embeddings[head](self._tensor(ids[:, -1:])))
        spec, ids, logits = self.config.lapa["heads"][last], None, None
        if spec["kind"] in OF_TOKENS:
            ids, logits = self._spoken(last, prompt)
            if not np.isfinite(logits.max(-1)).all():
                raise ValueError("this policy's outputs are not finite: it has no answer")
            values = self._said(spec, ids)
        elif spec["kind"] == "vectors":
            values = self._restored(self._one_by_one(last, prompt), spec["vectors"])
        elif spec["kind"] == "chunk":
            steps = torch.arange(spec["vectors"]["count"], device=self.device)
            x = self.embeddings[last](steps.expand(len(texts), -1))
            hidden = self._see(prompt, x, block=True)
            values = self._restored(self.heads[last](hidden).float(), spec["vectors"])
        else:
            noise = self._noise(spec["streams"], last, len(texts), seed, noise)
            found = self.heads[last].sample(noise, prompt)[last]
            values = self._restored(found, spec["streams"][last])
        return values, ids, logits

    def _prompt(self, image, texts, state):
        images, image_ids = self._images(image, len(texts))
        state = self._state(state, len(texts))
        prompts = [self.prompt(text, ids) for text, ids in zip(texts, image_ids, strict=True)]
        # Prompts all end at the last slot: shorter ones are padded at the left.
        B, T = len(prompts), max(len(tokens) for tokens, _ in prompts)
        tokens, modality = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
        visible = np.zeros((B, T), bool)
        for row, (t, m) in enumerate(prompts):
            tokens[row, T - len(t) :], modality[row, T - len(t) :] = t, m
            visible[row, T - len(t) :] = True
        visible = self._tensor(visible)
        prompt = Prompt(visible, (visible.cumsum(1) - 1).clamp(min=0))
        x = self.embed(self._tensor(tokens), self._tensor(modality), images, state)
        prompt.hidden_BTD, prompt.cache = self.model(x, prompt.position_BT, visible)
        return prompt

    def _see(self, prompt, x_BnD, block=False):
        """Goes on with these tokens; their hidden states (B, n, D)."""
        n = x_BnD.shape[1]
        position = prompt.next_B1 + torch.arange(n, device=x_BnD.device)
        prompt.visible_BT = F.pad(prompt.visible_BT, (0, n), value=True)
        given = position, prompt.visible_BT, prompt.cache, block
        hidden, prompt.cache = self.model(x_BnD.to(prompt.hidden_BTD.dtype), *given)
        prompt.position_BT = torch.cat([prompt.position_BT, position], 1)
        prompt.hidden_BTD = torch.cat([prompt.hidden_BTD, hidden], 1)
        return hidden

    def _spoken(self, head, prompt):
        """The likeliest ids int64 (B, n), one after the other, and their logits float32 (B, n,
        vocabulary), all but the last of them seen."""
        spec, found, logits = self.config.lapa["heads"][head], [], []
        fast = self._fast_tokens() if spec["kind"] == "fast" else None
        state = fast and fast.start(len(prompt.visible_BT))
        n = spec["slots"]
        for i in range(n):
            if i:
                self._see(prompt, self.embeddings[head](self._tensor(found[-1]))[:, None])
            logits.append(self._head(head)(prompt.hidden_BTD[:, -1]).float().cpu().numpy())
            if fast:
                may = fast.allowed(state, n - i)
                found.append(np.where(may, logits[-1], -np.inf).argmax(-1))
                state = fast.advance(state, found[-1])
            else:  # ids that this token has
                found.append(logits[-1][:, : spec["limits"][i]].argmax(-1))
        return np.stack(found, 1), np.stack(logits, 1)

    def _one_by_one(self, head, prompt):
        """Vectors (B, n, V), each fed before the next, all but the last of them seen."""
        found = []
        for i in range(self.config.lapa["heads"][head]["vectors"]["count"]):
            if i:
                self._see(prompt, self.fed[head](found[-1])[:, None])
            found.append(self._head(head)(prompt.hidden_BTD[:, -1]).float())
        return torch.stack(found, 1)

    def _said(self, spec, ids):
        """What ids (B, n) stand for."""
        if spec["kind"] == "fast":
            return self._restored(self._fast_tokens().actions(ids), spec["vectors"])
        if self.config.lapa["head"] == "latent":
            return ids
        if self._actions is None:
            self._actions = json.loads(self._file(ACTION_BINS))
        if spec["horizon"] > 1:
            ids = ids.reshape(len(ids), spec["horizon"], -1)
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

    def _restored(self, normalised, vectors):
        """float32 (B, n, V) in the units of the data, of a single action (B, V)."""
        found = np.asarray(torch.as_tensor(normalised).cpu(), np.float64)
        found = (found * vectors["scale"] + vectors["centre"]).astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError("this policy's outputs are not finite: it has no answer")
        return found[:, 0] if vectors["single"] else found

    def _noise(self, streams, last, count, seed, given):
        """Of each stream (B, n, V), the same for all examples."""
        if given is None:
            draw = torch.Generator().manual_seed(seed)
            given = {
                name: torch.randn(one["count"], one["dim"], generator=draw)
                for name, one in streams.items()
            }
        elif not isinstance(given, dict):
            given = {last: given}
        if given.keys() != streams.keys():
            raise ValueError(f"noise of {sorted(given)}: the streams are {sorted(streams)}")
        found = {}
        for name, one in streams.items():
            noise = torch.tensor(np.asarray(given[name], np.float32), device=self.device)
            if tuple(noise.shape) != (one["count"], one["dim"]):
                raise ValueError(
                    f"noise of shape {list(noise.shape)} for the {name}: it must be "
                    f"[{one['count']}, {one['dim']}]"
                )
            found[name] = noise.expand(count, -1, -1)
        return found

    def _state(self, state, count):
        """Normalised (B, S), or None."""
        said = self.config.lapa["state"]
        if (state is None) != (said is None):
            raise ValueError(
                "this policy sees the robot's state: it must be given"
                if said
                else "this policy was trained without the robot's state: give none"
            )
        if said is None:
            return None
        state, S = np.asarray(state, np.float64), len(said["centre"])
        if state.shape not in ((count, S), *[(S,)] * (count == 1)) or not np.isfinite(state).all():
            raise ValueError(
                f"state of shape {list(state.shape)} must be {S} finite numbers for each of "
                f"{count} examples"
            )
        state = (state.reshape(count, S) - said["centre"]) / said["scale"] * said["live"]
        return torch.as_tensor(state, dtype=torch.float32, device=self.device)
