"""The head of FAST tokens: whatever it says is a chunk."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

import lapa_jax
from data_pipelines.normalise import Normaliser
from lapa_jax import stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.policy import heads
from lapa_jax.policy.codecs.fast import Fast
from lapa_jax.policy.heads.fast import TOKENS, FastHead
from lapa_jax.runs.sources import StandIn
from lapa_jax.serving import describe
from lapa_jax.serving.adapters import LeRobotPolicy
from lapa_jax.serving.limits import Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.train import train

STATISTICS = "action_statistics.json"
pytestmark = pytest.mark.usefixtures("quick_compile")
HORIZON = 4


def config_of(data, **changes) -> ConfigDict:
    config = tiny.config("action_finetuning", data, **changes)
    with config.unlocked():
        config.data.action_horizon = HORIZON
        settings = heads.head_settings("fast", vocab=160)
        config.model.targets = ConfigDict({"action": settings})
    return config


class Chunks(StandIn):
    """Sources with these chunks alone."""

    def __init__(self, chunks: np.ndarray):
        super().__init__(chunks.shape[1])
        object.__setattr__(self, "chunks", chunks)

    def actions(self):
        return self.chunks.reshape(-1, self.chunks.shape[-1])

    def action_chunks(self, what_for):
        yield self.chunks[:40]
        yield self.chunks[40:]


def made(rng, *, horizon=HORIZON, dim=3, reach=1.0, **changes) -> tuple[FastHead, np.ndarray]:
    """A head fitted on random chunks in units of their own, and these."""
    steps = rng.normal(0, 0.3, (90, horizon, dim)).cumsum(axis=1) * np.arange(1, dim + 1) * 20 + 5
    chunks = steps.astype(np.float32)
    config = ConfigDict({"model": {"targets": {}}, "data": {"action_horizon": horizon}})
    config.model.targets.action = heads.head_settings("fast", **changes)
    assets = heads.make_assets(config, Chunks(chunks))
    return heads.build(config, assets)["action"], chunks


def batch_of(chunks: np.ndarray) -> dict[str, np.ndarray]:
    return {"action": chunks, "action_mask": np.ones(chunks.shape[:2], bool)}


def test_every_choice_leads_to_a_chunk():
    rng = np.random.default_rng(3)
    head, chunks = made(rng, vocab=1200, scale=200.0)  # numbers of one byte, and of two
    grammar = head.grammar
    assert len(grammar.next_SV) > 1
    read = jax.jit(lambda ids: (head._said(ids), grammar.read(ids)[1]))
    ids, targets = head.rows(batch_of(chunks))
    said, good = read(jnp.asarray(ids))
    assert good.all()
    expected = head.codec.decode(head.codec.encode(head.vectors.statistics.normalise(chunks)))
    np.testing.assert_allclose(said, expected, atol=1e-4)
    # What was learnt may be said: no true token is left out.
    state = grammar.start(len(ids))
    step = jax.jit(
        lambda state, slots, token: (grammar.allowed(state, slots), grammar.advance(state, token))
    )
    for slot in range(head.num_slots):
        allowed, state = step(state, head.num_slots - slot, ids[:, slot])
        of_true = np.asarray(allowed)[np.arange(len(ids)), ids[:, slot]]
        assert of_true[targets["counted"][:, slot]].all()
    # Whatever is likely, what is chosen says a chunk, to the codec, too.
    confined = jax.jit(head._confined)
    for likes in ("any", "short", "open"):
        logits = rng.normal(size=(90, head.num_slots, head.num_outputs)).astype(np.float32)
        if likes == "short":  # tokens of few numbers, which would need more slots than there are
            logits[..., : head.end] -= 9 * np.asarray(grammar.count_SV)[0, : head.end]
        elif likes == "open":  # tokens that end within a number
            logits += 9 * (np.asarray(grammar.next_SV)[0] > 0)
        chosen = np.asarray(confined(logits))
        said, good = read(chosen)
        assert good.all() and np.isfinite(said).all()
        for row in chosen:
            length = int(np.argmax(row == head.end))
            assert (row[length:] == head.end).all() and row[length] == head.end
            assert not head.codec.fault(row[:length].tolist())
    # And what does not is seen.
    for bad in (ids[:, :1], ids[:, 1:], np.roll(ids, 1, axis=1), np.full_like(ids, head.end)):
        filled = np.full_like(ids, head.end)
        filled[:, : bad.shape[1]] = bad
        said, good = read(filled)
        texts = [row[: int(np.argmax(row == head.end))].tolist() for row in filled]
        assert [bool(x) for x in good] == [not head.codec.fault(text) for text in texts]
        assert np.isnan(np.asarray(said)[~np.asarray(good)]).all()


def test_the_loss_counts_tokens_to_the_end_and_steps_that_are_known():
    rng = np.random.default_rng(0)
    head, chunks = made(rng)
    batch = batch_of(chunks[:4])
    batch["action_mask"][:, 2:] = False
    ids, targets = head.rows(batch)
    assert {k: (v.shape[1:], v.dtype) for k, v in targets.items()} == {
        k: (v.shape, v.dtype) for k, v in head.spec().items()
    }
    logits = rng.normal(size=(*ids.shape, head.num_outputs)).astype(np.float32)
    loss, _ = jax.jit(head.loss)(logits, targets)
    log = np.asarray(jax.nn.log_softmax(logits))
    each = -np.take_along_axis(log, ids[..., None], axis=-1)[..., 0]
    mask = targets["counted"]
    assert mask.sum(axis=1).min() < head.num_slots
    expected = ((each * mask).sum(axis=1) / mask.sum(axis=1)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Two examples a row are two examples, and what fills up does not count.
    rows = {k: v.reshape(2, -1, *v.shape[2:]) for k, v in targets.items()}
    packed = logits.reshape(2, -1, head.num_outputs).copy()
    packed[~rows["counted"]] += rng.normal(size=head.num_outputs)
    np.testing.assert_allclose(jax.jit(head.loss)(packed, rows)[0], loss, rtol=1e-5)
    sure = 40.0 * jax.nn.one_hot(ids, head.num_outputs)
    _, metrics = jax.jit(head.loss)(sure, targets)
    assert metrics["decodable"] == metrics["token_accuracy"] == metrics["sequence_accuracy"] == 1.0
    nearest = head.nearest(batch["action"])
    off = np.abs(
        head.vectors.statistics.normalise(nearest)
        - head.vectors.statistics.normalise(batch["action"])
    )
    np.testing.assert_allclose(metrics["l1"], off[:, :2].mean(), atol=1e-5)


def test_what_cannot_be_is_named(tmp_path, caplog):
    rng = np.random.default_rng(1)
    head, chunks = made(rng)
    assert "the largest error of an action said by FAST tokens of scale 10, in each dimension" in (
        caplog.text
    )
    told = caplog.text.split("in its units: ")[1].splitlines()[0]
    bound = 0.5 * np.sqrt(HORIZON) / 10.0 * np.array(head.vectors.statistics.columns[1])
    assert (np.array(told.split(", "), float) <= bound).all()
    with pytest.raises(ValueError, match="coefficient .* of action dimension 1 at frequency 0 has"):
        head.rows(batch_of(chunks[:1] + np.array([0, 9999, 0], np.float32)))
    with pytest.raises(ValueError, match="action: value nan of dimension 0 is not finite"):
        head.rows(batch_of(chunks[:1] * np.nan))
    rough = np.where(rng.random(chunks.shape) < 0.5, chunks.min((0, 1)), chunks.max((0, 1)))
    with pytest.raises(ValueError, match=r"FAST tokens, more than the \d+ of .*max_tokens|has no"):
        head.rows(batch_of(0.6 * rough.astype(np.float32)))
    with pytest.raises(ValueError, match="max_tokens=2, but a chunk of the corpora has"):
        made(rng, max_tokens=2)
    with pytest.raises(ValueError, match="over more than vocab_size=60 numbers"):
        made(rng, vocab=60, scale=100.0)
    with pytest.raises(ValueError, match="vocab=60 is too small: there are"):
        made(rng, vocab=60)
    with pytest.raises(ValueError, match="tokenizer='nowhere' cannot be read"):
        made(rng, tokenizer="nowhere")
    config = ConfigDict({"model": {"targets": {}}, "data": {"action_horizon": 5}})
    config.model.targets.action = heads.head_settings("fast")
    assets = {TOKENS: head.codec.to_json(), STATISTICS: head.vectors.statistics.to_json()}
    with pytest.raises(ValueError, match="is for chunks of 4 steps .*action_horizon is 5"):
        heads.build(config, assets)
    config.model.targets = {"latent": heads.head_settings("fast")}
    with pytest.raises(ValueError, match="targets.latent.name='fast' is of actions"):
        heads.build(config, {})
    # A published processor, which was fitted on other data.
    (tmp_path / "tokenizer.json").write_bytes(head.codec.tokenizer_json())
    (tmp_path / "processor_config.json").write_bytes(
        json.dumps(json.loads(head.codec.processor_json()) | {"time_horizon": None}).encode()
    )
    with pytest.raises(ValueError, match="has no FAST token|above the"):
        made(rng, tokenizer=str(tmp_path), normalisation="none")
    again, chunks = made(rng, tokenizer=str(tmp_path), clip=True)
    assert again.codec.tokenizer_json() == head.codec.tokenizer_json()
    assert again.rows(batch_of(chunks))[0].max() == again.end


@pytest.mark.slow
def test_it_trains_acts_and_is_described(tiny_data, tmp_path):
    config = config_of(tiny_data, steps=2, model__examples_per_row=2, global_batch=16)
    assert train(config, tmp_path / "run")
    policy = lapa_jax.load_policy(tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    texts = ["move the red square to place 1", "push"]
    said = policy.predict(images, texts)
    assert said.values.shape == (2, HORIZON, 2) and np.isfinite(said.values).all()
    served = policy.stage.head.reply(np.asarray(said.values[0]), None)
    assert served["a"].shape == (HORIZON, 2)
    ids = np.argmax(said.probabilities, axis=-1)
    end = policy.stage.head.end
    assert (ids[:, -1] == end).all()
    codec = Fast.from_json(policy.assets[TOKENS])
    expected = codec.decode([row[row != end].tolist() for row in ids])
    expected = Normaliser.from_json(policy.assets[STATISTICS]).restore(expected)
    np.testing.assert_allclose(said.values, expected, atol=1e-5)
    reader = Reader(tuple(policy.image_size), 1, 1, (), "crop", Limits())
    told = describe.metadata(policy, reader)
    assert told["chunk"] == HORIZON and told["action"]["max_tokens"] == ids.shape[1] - 1
    lost = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), policy.params)
    broken = dataclasses.replace(policy, params=lost)
    broken.__dict__["_predict"] = policy._predict  # compiled
    assert np.isnan(broken.predict_action(images, texts)).all()
    asked = LeRobotPolicy(broken, cameras=("front",))
    with pytest.raises(ValueError, match="actions are not finite: none is taken"):
        asked.select_action({"front": images, "task": texts})


@pytest.mark.slow
def test_what_compile_builds(tiny_data):
    config = config_of(tiny_data)
    config.model.targets.action.vocab = 256
    stage = stages.build(config, stand_in_assets(config))
    spec = stage.batch_spec()
    assert spec["action_values"].shape == (8, HORIZON, 7)
    assert spec["action_targets"].shape == spec["action_counted"].shape == (8, stage.head.num_slots)
    assert stage.model_flops() > 0
