"""Which diagnostic tells success: where one does, where none does, and on kinds that are new."""

import json

import jax
import numpy as np
import pytest

from experiments.studies import predictors, predictors_metaworld
from lapa_jax import stages
from lapa_jax.diagnostics.statistics import rank_correlation
from lapa_jax.studies import prediction


def rows_of(kinds=12, seeds=2, settings=("clean", "distractors"), noise=0.0):
    """A model of quality q: `good` tells it, `turned` the other way round, `random` does not, and
    `partial` is not known of all."""
    rng, rows = np.random.default_rng(3), []
    for setting in settings:
        for kind in range(kinds):
            for seed in range(seeds):
                values = {"model": f"k{kind}", "setting": setting, "seed": seed}
                wins = kind * 100 // kinds // (2 if setting == "distractors" else 1) + seed
                told = {"good": np.exp(wins / 20) + noise * rng.normal(), "turned": -float(wins)}
                told |= {"random": rng.normal(), "partial": None if kind == 0 else 1.0 * wins}
                rows.append(values | {"what": "measures", "same": 1.0, **told})
                outcomes = [True] * wins + [False] * (100 - wins)
                rows.append(values | {"what": "success", "family": "reach", "outcomes": outcomes})
    return rows


@pytest.fixture(scope="module")
def models():
    return prediction.joined(rows_of())


def test_models_have_both_halves(models):
    assert len(models) == 48 and models[5]["success"] == 0.17
    assert prediction.measures_of(models) == ["good", "turned", "random"]
    some = [row for row in rows_of() if row["model"] != "k3" or row["what"] == "success"]
    assert len(prediction.joined(some)) == 44
    more = [
        row | {"family": "push", "outcomes": [True]} for row in some if row["what"] == "success"
    ]
    assert prediction.joined(some + more)[5]["success"] == pytest.approx((0.17 + 1) / 2)


def test_ranks_are_those_within_a_setting(models):
    """Success is half as high in one of them, which says nothing of the measure."""
    rho = prediction.correlation(models, "good")
    assert rho.estimate == pytest.approx(1.0) and rho.low > 0.99
    assert prediction.correlation(models, "turned").estimate == pytest.approx(-1.0)
    assert abs(prediction.correlation(models, "random").estimate) < 0.4
    assert prediction.correlation(models, "same") is None
    assert prediction.correlation(models[:3], "good") is None
    assert [name for name, _ in prediction.best(models)][2:] == ["random"]
    clean = [model for model in models if model["setting"] == "clean"]
    kinds = np.array([model["model"] for model in clean])
    values, wins = (np.array([m[key] for m in clean]) for key in ("random", "success"))
    alone = prediction.correlation(clean, "random")
    assert alone.estimate == pytest.approx(rank_correlation(values, wins, kinds)[0])


def test_a_curve_is_monotone_and_says_what_it_has_seen(models):
    clean = [model for model in models if model["setting"] == "clean"]
    values = np.array([model["turned"] for model in clean])
    said = prediction.fitted(clean, "turned", values)
    np.testing.assert_allclose(said, [model["success"] for model in clean])
    outside = prediction.fitted(clean, "turned", np.array([-1e3, 1e3]))
    np.testing.assert_allclose(outside, [said.max(), said.min()])


def test_the_best_is_held_against_kinds_that_it_was_not_chosen_on():
    models = prediction.joined(rows_of(settings=("clean",), noise=0.3))
    found = prediction.left_out(models)
    assert found["best"]["error"].estimate < 0.1 < 0.2 < found["mean"]["error"].estimate
    assert found["good"]["chosen"] + found["turned"]["chosen"] == 12
    assert found["random"]["error"].estimate > 0.2
    assert prediction.left_out(models[:4]) == {}
    assert prediction.nearest(models, "turned", -50.4, 2) == [0.5, 0.51]


def test_a_new_model_is_set_beside_those_on_record(tmp_path, monkeypatch):
    report = {"codes": {"mean_perplexity": 2.5}, "probe": {"latent_action": {"r2_mean": 0.51}}}
    monkeypatch.setattr(prediction.configs, "shipped", lambda: tmp_path)
    assert prediction.outlook(report) is None
    rows = []
    for row in rows_of(settings=("clean",)):
        if row["what"] == "measures":
            share = -row["turned"] / 100
            row |= {"probe_r2": share, "perplexity": row["random"], "good": None, "turned": None}
        rows.append(row | {"outcomes": [int(x) for x in row.get("outcomes", ())]})
    (tmp_path / "studies" / "results").mkdir(parents=True)
    for row in rows:
        if row["what"] == "success":
            row["outcomes"] = "".join(map(str, row["outcomes"]))
        else:
            del row["outcomes"]
    (tmp_path / "studies" / "results" / "predictors.json").write_text(json.dumps({"rows": rows}))
    told = prediction.outlook(report)
    assert "of 24 models, the 10 whose probe_r2 was nearest to 0.51" in told
    assert "succeed in 33 to 67 %" in told, told
    assert "perplexity was nearest to 2.5" in prediction.outlook({"codes": report["codes"]})
    assert prediction.outlook({}) is None
    for value in (1e9, float("nan")):
        report["probe"]["latent_action"]["r2_mean"] = value
        told = prediction.outlook(report)
        assert f"probe_r2 {value:.3g} is outside of what 24 models on record had" in told
    few = json.dumps({"rows": rows[:38]})
    (tmp_path / "studies" / "results" / "predictors.json").write_text(few)
    assert prediction.outlook(report) is None


def test_the_study_shows_them():
    tables = predictors.tables(rows_of())
    header, first, *_ = tables["correlation"]
    assert header == ["diagnostic", "ρ, all 48 models", "clean, 24", "distractors, 24"]
    assert first[1].startswith("1 (") and tables["correlation"][-1][0] == "`partial`"
    assert tables["left_out"][1][0] == "the best of the others"
    assert tables["models"][1][:3] == ["`k0`", "clean", "0.0, 1.0"]
    (picture,) = predictors.figures(rows_of()).values()
    assert "good" in picture.alt
    few = predictors.tables(rows_of(kinds=2, seeds=1))
    assert few["correlation"][1:] == [] and few["left_out"][1:] == []


def test_cells_share_what_they_can(tmp_path):
    study = predictors.get_study("models=pixels+features+few_labels", tmp_path)
    assert len(study.cells) == 3 * (2 + 1) * 2  # distractors once
    by_name = {str(list(cell.values.values())): cell for cell in study.cells}
    clean = by_name["['features', 'clean', 1, 'success']"]
    moving = by_name["['features', 'distractors', 0, 'measures']"]
    names = [[part.name for part in cell.parts] for cell in (clean, moving)]
    assert {"teacher", "quantizer_features_s1", "latent_vla_features_s1"} <= {*names[0]}
    assert names[1][-4:] == [
        *("teacher_other", "quantizer_features_other_s0", "heldout"),
        "measures_features_distractors_0",
    ]
    acted = [part.name for part in by_name["['features', 'distractors', 0, 'success']"].parts]
    assert acted[-3:] == [
        *("labelled_s0_n50", "policy_latent_vla_features_other_s0_of_s0_n50"),
        "success_features_distractors_0",
    ]
    assert "latent_vla_features_other_s0" in acted and "latent_vla_features_s0" not in acted
    configs = {part.name: part for cell in study.cells for part in cell.parts}
    few = configs["quantizer_few_labels_other_s0"].decides()
    assert few.data.corpora.distractors.action_fraction == 0.025
    assert configs["quantizer_features_s1"].decides().model.objective.weights == str(
        tmp_path / "teacher"
    )
    changed = predictors.get_study("seeds=1", tmp_path)
    configs = {part.name: part for cell in changed.cells for part in cell.parts}
    assert "quantizer_wide_other_s0" not in configs
    hand = configs["latent_vla_mostly_hand_s0"].decides().data.corpora
    assert (hand.human.weight, hand.robot.weight) == (4.0, 1.0)
    two = configs["latent_vla_two_codes_of_four_s0"].decides()
    assert (two.model.targets.latent.vocab, two.code_length) == (4, 2)
    with pytest.raises(ValueError, match="models='best' must be one of"):
        predictors.get_study("models=best", tmp_path)


def test_models_of_metaworld_are_those_of_its_configs(tmp_path):
    study = predictors_metaworld.get_study("models=pixels+far+fsq+few_labels+four_codes", tmp_path)
    assert len(study.cells) == 5 * 2
    configs = {part.name: part for cell in study.cells for part in cell.parts}
    made = {
        name: configs[f"quantizer_{name}_s0"].decides() for name in ("far", "fsq", "few_labels")
    }
    made["pixels"] = configs["quantizer_s0"].decides()
    assert [made[name].data.corpora.robot.window_seconds for name in ("pixels", "far")] == [
        0.3,
        0.9,
    ]
    assert made["few_labels"].model.objective.action_dim == 4
    assert configs["latent_vla_fsq_s0"].decides().model.targets.latent.vocab == 16
    assert configs["latent_vla_four_codes_s0"].decides().model.targets.latent.vocab == 4
    for config in made.values():
        jax.eval_shape(stages.build(config, {}).init, jax.random.key(0))
    with pytest.raises(ValueError, match="models='features' must be one of"):
        predictors_metaworld.get_study("models=features", tmp_path)
