"""Models are compared on one corpus: refused before anything is measured, measured once, and all on
one page, whatever they have."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import tiny

from data_pipelines.index import load_index
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.diagnostics.sample import Chains, Sample
from lapa_jax.evidence import measures, verdict
from lapa_jax.evidence.quantizer import QuantizerEvaluation
from lapa_jax.runs.loaded import LoadedQuantizer
from lapa_jax.studies import compare, compare_page
from lapa_jax.verbs import evaluate


def evaluation(name, deep):
    """Of noise; one model has codes, one none, and one predicts features."""
    rng = np.random.default_rng(len(name))
    first, last = rng.integers(0, 256, (2, 48, 16, 16, 3), dtype=np.uint8)
    latents = rng.normal(size=(48, 1, 3)).astype(np.float32)
    features = name == "unlike"

    def read(first, last):
        drawn = (last.mean((1, 2)) - first.mean((1, 2)))[:, None]
        return None if name == "vae" else np.ones((len(first), 1), int), drawn, drawn

    sample = Sample(
        first=first,
        last=last,
        z=None if name == "vae" else rng.integers(0, 8, (48, 1)),
        latents=latents,
        actions=rng.normal(size=(48, 2)),
        episode=np.arange(48) // 8,
        codebook_size=8,
        recon=None if features else last / 255.0,
        errors=np.full((48, 2), [1.0, 4.0]) if features else None,
        received=latents,
        decode=lambda first, z: first / 255.0,
        read=read,
        chains=Chains(
            np.stack([first, last, last[::-1]], 1),
            np.arange(3.0),
            np.arange(48) // 8,
            rng.normal(size=(48, 3, 2)),
        ),
    )
    report = {"pairs": 48, "episodes": 6, "seen_in_training": 0.5, "window_seconds": 0.2}
    report |= measures.measure(sample, deep=deep)
    return QuantizerEvaluation(report | {"verdict": verdict.verdict(report)}, sample)


@pytest.fixture
def asked(tiny_data, monkeypatch):
    """The names of what is measured, of runs that are never trained."""

    def config(path):
        changes = {}
        if path.name == "large":
            changes = {"data.image_size": "(32,32)"}
        return tiny.config(
            "quantizer", tiny_data, **{k.replace(".", "__"): v for k, v in changes.items()}
        )

    def meta(path):
        path = compare.Path(path)
        found = configs.to_dict(config(path))
        if path.name == "policy":
            found |= {"stage": "action_finetuning"}
        return None, {"config": found, "step": 4}

    def load(path):
        of = config(compare.Path(path))
        stage = stages.build(of, {})
        params, variables = stage.model.abstract()
        return LoadedQuantizer(of, stage, params, variables, compare.Path(path), 4)

    names = []

    def measured(run, corpus, *, max_pairs, deep=False, held_out=False):
        names.append(run.workdir.name)
        return evaluation(run.workdir.name, deep)

    def told(run, real=compare.about):
        return real(run) | ({"predicts": "features"} if run.workdir.name == "unlike" else {})

    def cost(run, real=compare.cost, kept={}):  # noqa: B006 - one program for all
        return kept or (kept.update(real(run)) or kept)

    monkeypatch.setattr(compare, "about", told)
    monkeypatch.setattr(compare, "cost", cost)
    content = [one for one in measures.MEASURES if one.key not in ("content", "true_action")]
    monkeypatch.setattr(measures, "MEASURES", tuple(content))
    monkeypatch.setattr(compare.loaded, "open_checkpoints", meta)
    monkeypatch.setattr(compare.loaded, "load_quantizer", load)
    monkeypatch.setattr(compare, "evaluate_quantizer", measured)
    return names


def test_models_of_any_kind_are_on_one_page_and_measured_once(asked, tiny_data, tmp_path, capsys):
    corpus, out = tiny_data / "robot", tmp_path / "out"

    def run(*names):
        given = ["--compare", *(f"runs/{name}" for name in names), "--corpus", str(corpus)]
        assert evaluate.main([*given, "--out", str(out), "--paired", str(corpus)]) == 0
        return capsys.readouterr().out

    text = run("pixels", "vae")
    assert asked == ["pixels", "pixels", "vae", "vae"]  # with the other view
    text = run("pixels", "vae", "unlike")
    assert asked[4:] == ["unlike", "unlike"] and "perplexity" in text
    run("pixels", "vae", "unlike", "../other/pixels")  # whose names tell two of one name apart
    assert asked[6:] == ["pixels", "pixels"]
    run("pixels", "vae", "unlike")
    assert len(asked) == 8
    found = json.loads((out / "compare.json").read_text())
    assert list(found) == ["pixels", "vae", "unlike"]
    cost = found["pixels"]["cost"]
    assert cost["train_flops"] > cost["read_flops"] > cost["decode_flops"] / 10 > 0
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert rows[0]["perplexity"] and not rows[1]["perplexity"]
    assert float(rows[2]["skill"]) == 0.75 and float(rows[0]["paired_cka"]) == pytest.approx(1.0)
    assert float(rows[0]["cut_skill_low"]) <= float(rows[0]["cut_skill"])
    page = (out / "compare.html").read_text()
    for words in (
        "Few were measured (48 pairs",
        "At a glance",
        "Code health",
        "Algebra",
        "Window curve",
        "another view",
    ):
        assert words in page
    assert "which compares with no pixels: unlike." in page
    assert re.search(r">(nan|None|inf)<", page) is None and "different sizes" not in page
    found["vae"]["about"]["image_size"] = [16, 16]
    compare_page.write(out / "sizes.html", found, compare.Compared(corpora=(str(corpus),)))
    page = (out / "sizes.html").read_text()
    assert "of the same size alone: 64x64: pixels, unlike; 16x16: vae." in page
    other = ["--compare", "runs/pixels", "--corpus", str(corpus), "--out", str(out)]
    with pytest.raises(ValueError, match="holds results of other data or settings"):
        evaluate.main(other)


def test_what_cannot_be_compared_is_named_before_anything_is_measured(asked, tiny_data, tmp_path):
    corpus = tmp_path / "robot"
    tiny.write_corpus(corpus, episodes=4)

    def refused(names, **given):
        how = compare.Compared(corpora=(str(tiny_data / "robot"),), **given)
        with pytest.raises(ValueError) as error:
            compare.open_comparison([f"runs/{name}" for name in names], tmp_path / "out", how)
        return str(error.value)

    told = refused(["pixels", "policy", "large"])
    assert "runs/policy: a run of stage 'action_finetuning'" in told and "pixels" not in told
    assert "runs/large: " in told and "32" in told
    assert "has not the same episodes" in refused(["pixels"], paired=(str(corpus),))
    assert "is given twice" in refused(["pixels", "pixels"])
    assert not asked and not (tmp_path / "out").exists()


def test_a_corpus_of_other_episodes_is_another(asked, tmp_path):
    corpus, other = tmp_path / "robot", tmp_path / "other"
    tiny.write_corpus(corpus, episodes=4)
    shutil.copytree(corpus, other)
    how = compare.Compared(corpora=(str(corpus),), paired=(str(other),))

    def part():
        return compare.open_comparison(["runs/pixels"], tmp_path / "out", how).cells[0].parts[0]

    before = part().name
    assert part().name == before
    for folder in (corpus, other):  # made anew in its place
        shutil.rmtree(folder)
        tiny.write_corpus(folder, episodes=4, fps=2 * tiny.FPS)
    assert part().name != before
    index = load_index(corpus)
    lengths, actions = index.episode_length, index.actions
    same = compare.Episodes(lengths, actions.copy())
    assert compare.same_episodes(compare.Episodes(lengths, actions), same)
    assert compare.same_episodes(compare.Episodes(lengths, None), same)
    assert compare.same_episodes(compare.Episodes(lengths, actions[:, :1]), same)
    same.actions[5] += 0.1
    assert not compare.same_episodes(compare.Episodes(lengths, actions), same)


def test_names_are_as_short_as_they_can_be():
    assert compare.labels_of(["/a/one/q", "/a/two/q"]) == ["one", "two"]
    assert compare.labels_of(["/a/x/1", "/b/x/2"]) == ["1", "2"]
    assert compare.labels_of(["/a/x", "/b/x/x", "/a/y"]) == ["a/x", "x/x", "y"]
    assert compare.labels_of(["/a/x"]) == ["x"]
