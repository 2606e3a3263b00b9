"""Data that cannot be trained on are found when a run starts: refused by name, or left out."""

import dataclasses
import re

import numpy as np
import pytest
import tiny

from data_pipelines.index import build, load_index
from data_pipelines.loader import DataSettings, Loader, open_mixture
from data_pipelines.loader.unusable import UnusableError
from lapa_jax.evidence.in_training import Evaluation
from lapa_jax.policy import heads
from lapa_jax.policy.codecs import Clusters
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.runs import start
from lapa_jax.runs.sources import OfCorpora
from lapa_jax.verbs import data

LONG = "lift the small red cup with one hand and hold the plate still with the other, then " * 4
BATCHES = 12


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """DIR/robot: of 10 episodes number 7 has a long instruction, the last two smaller images."""
    folder = tmp_path_factory.mktemp("unusable")
    make = tiny._episode

    def episode(rng, number, size, fps, states):
        found = make(rng, number, 32 if number > 7 else size, fps, states)
        return dataclasses.replace(found, instruction=LONG) if number == 7 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "_episode", episode)
        patch.setattr(tiny.schema, "check_episode", lambda *_: None)
        tiny.write_labels(tiny.write_corpus(folder / "robot"), codebook_size=16)
    tiny.write_labels(folder / "robot", "small")
    return folder


def config(corpora, task="action_finetuning", **changes):
    return tiny.config(task, corpora, **{"data__num_threads": 1, **changes})


def drawn(loader):
    return {one["episode"] for step in range(BATCHES) for one in loader.describe(step)}


def test_what_cannot_be_used_is_refused_before_anything_is_written(corpora, tmp_path):
    told = r"corpus 'robot': 2 of 10 episodes have images of another size .*: 32x32: episode 8 "
    with pytest.raises(
        UnusableError, match=told + r"\(squares-train.*:\d+\), episode 9 .*leave_out"
    ):
        start.open_run(config(corpora), tmp_path / "run")
    walked = open_mixture(DataSettings.of(config(corpora).data).in_order()).corpora[0]
    assert not walked.counts[8:].any() and walked.counts[:8].all()  # to label
    index = load_index(corpora / "robot")
    assert index.other_sizes == {8: (32, 32), 9: (32, 32)} and index.image_size == (64, 64)
    assert not (tmp_path / "run").exists()


def test_a_long_instruction_is_refused_or_left_out(corpora, tmp_path, monkeypatch, capsys):
    sound = dict(data__unusable_episodes="leave_out")
    with monkeypatch.context() as patch:  # an index of before sizes were known
        patch.setattr(build, "_other_sizes", lambda *_: {})
        build.build_index(corpora / "robot", sidecar_dir=tmp_path / "old", progress=False)
    where = dict(data__corpora__robot__sidecar_dir=str(tmp_path / "old"))
    told = (
        r"1 of 10 episodes have an instruction of more than model.text_length=20 tokens \(the "
        r"longest has \d+\): episode 7 \(squares-.*\. Raise model.text_length, or leave"
    )
    with pytest.raises(UnusableError, match=told):
        start.open_run(config(corpora, **where), tmp_path / "run")
    room = dict(model__text_length=200)
    longer = start.open_run(config(corpora, **where, **room), tmp_path / "run")
    whole = open_mixture(longer.config.data, longer.stage.fields_of(longer.config))
    assert longer.loader.mixture.hash == whole.hash  # nothing is left out: as without the choice
    allowed = start.open_run(config(corpora, **where, **room, **sound), tmp_path / "run")
    assert allowed.loader.mixture.hash == whole.hash
    assert 7 in drawn(allowed.loader)

    run = start.open_run(config(corpora, **sound), tmp_path / "run")
    assert drawn(run.loader) == set(range(7)) and run.loader.mixture.hash != whole.hash
    for step in range(BATCHES):
        run.loader.batch(step)
    actions = OfCorpora(run.loader.mixture, {})
    assert len(actions.actions()) == (load_index(corpora / "robot").episode_length[:7] - 1).sum()
    known = run.loader.mixture.corpora[0].actions
    for padding, most in (("repeat", len(actions.actions())), ("drop", 0)):
        of = dataclasses.replace(known, horizon=3, padding=padding)
        corpora_of = tuple(dataclasses.replace(c, actions=of) for c in run.loader.mixture.corpora)
        mixture = dataclasses.replace(run.loader.mixture, corpora=corpora_of)
        chunks = np.concatenate(list(OfCorpora(mixture, {}).action_chunks("fit")))
        assert f"fit: chunk {len(chunks)}/{len(chunks)}, " in capsys.readouterr().err
        lengths = load_index(corpora / "robot").episode_length[:7] - 1
        assert chunks.shape == (most or (lengths - 2).sum(), 3, 2)
        if padding == "repeat":
            np.testing.assert_array_equal(chunks[:, 0], actions.actions())
        assert np.isin(chunks, actions.actions()).all()
    bins = heads.make_assets(run.config, actions)
    assert bins and bins.items() <= run.assets.items()  # fitted to what is used
    kept = run.config.copy_and_resolve_references()
    kept.model.action_codec = str(tmp_path / CODEC)
    (tmp_path / CODEC).write_bytes(Clusters(np.eye(2), np.ones(2)).to_json())
    assert heads.make_assets(kept, actions) == {CODEC: (tmp_path / CODEC).read_bytes()}
    for codec, dim in (("uniform", 2), ("clusters", 3)):
        kept.model.targets.action.codec = codec
        (tmp_path / CODEC).write_bytes(Clusters(np.eye(dim), np.ones(dim)).to_json())
        with pytest.raises(ValueError, match=f"action_codec=.* holds clusters of {dim} dimensions"):
            heads.make_assets(kept, actions)
    (tmp_path / CODEC).unlink()
    with pytest.raises(ValueError, match=r"model\.action_codec=.* cannot be read"):
        heads.make_assets(kept, actions)
    again = start.open_run(config(corpora, **sound), tmp_path / "run")
    assert again.loader.fingerprint(3) == run.loader.fingerprint(3)
    evaluation = config(corpora, evaluation__every_steps=2, **sound)
    program = type("Program", (), {"stage": run.stage, "mesh": run.mesh, "preset": "dp"})
    mixture = run.loader.mixture
    assert drawn(Evaluation(evaluation, program, mixture)._loader) == set(range(7))
    with evaluation.unlocked():
        evaluation.evaluation.episodes = 1
    slow = dataclasses.replace(mixture.corpora[0].settings, fps=5.0)
    mixture = dataclasses.replace(
        mixture, corpora=(dataclasses.replace(mixture.corpora[0], settings=slow),)
    )
    with pytest.raises(ValueError, match="the policy acts at 5 Hz, evaluation.env, tabletop, at"):
        Evaluation(evaluation, program, mixture)
    spec, *overrides = tiny.arguments("action_finetuning", corpora, **sound)[1:]
    assert data.main(["batch", "--step", "2", "--config", spec, *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [one["episode_id"] for one in run.loader.describe(2)]
    assert [re.search(r"episode-\d+", line)[0] for line in lines] == expected


def test_labels_and_rows_that_do_not_fit_are_named(corpora, tmp_path):
    def opened(**changes):
        changes["data__unusable_episodes"] = "leave_out"
        return start.open_run(config(corpora, "latent_pretraining", **changes), tmp_path / "run")

    with pytest.raises(ValueError, match="from 15 to 15; model.targets.latent.vocab=8"):
        opened()
    with pytest.raises(ValueError, match="'robot': .* codes of length 1; config.code_length=3"):
        opened(code_length=3)
    stage = opened(data__corpora__robot__label_set="small").stage
    stage.row_length = stage.layout.example_length - 15
    texts = [LONG, "move the red square to place 3", "go"]
    which, why, remedy = stage.unusable(texts)
    assert which.tolist() == [True, True, False] and remedy == "Raise model.sequence_length"
    assert f"the 5 tokens that model.sequence_length={stage.row_length} leaves to it" in why


def test_left_out_episodes_are_left_out_of_any_order(corpora):
    """Chains, filters and blocks draw from what is left."""
    config = tiny.config("quantizer", corpora).data
    with config.unlocked():
        config.unusable_episodes = "leave_out"
    for changes in (
        dict(),
        dict(chain_pairs=2),
        dict(access="windowed", lanes=2, block_mib=0.01),
        dict(sampling="per_video"),
    ):
        settings = dataclasses.replace(DataSettings.of(config), **changes)
        mixture = open_mixture(settings, ("frames",))
        (corpus,) = mixture.corpora
        assert not corpus.counts[8:].any() and corpus.counts[7]
        less = mixture.without([np.arange(10) == 7])
        assert less.hash != mixture.hash
        loader = Loader(settings, fields=("frames",), global_batch=4, seed=0, mixture=less)
        assert drawn(loader) == set(range(7))
        with pytest.raises(ValueError, match="'robot': every episode that would be drawn"):
            mixture.without([np.ones(10, bool)])


def test_verify_tells_what_it_can_know(corpora, capsys):
    assert data.main(["verify", str(corpora / "robot")]) == 1
    told = capsys.readouterr().out
    assert "2 image_size " in told and "the longest of 68 words, first at squares-train" in told
    assert "episodes of 8 to 11 steps" in told
