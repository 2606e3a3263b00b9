"""Arms: what they share, and that they differ in what they claim to differ in alone."""

import dataclasses
import json

import pytest

from experiments.studies import arms, headline
from experiments.studies import pipeline as pipelines
from experiments.studies.pipeline import Pipeline
from lapa_jax.studies import record
from lapa_jax.studies import study as studies

ARG = headline.arguments("size=quick")


@pytest.fixture(scope="module")
def configs():
    """By the name of the part that trains by it; as `train_part` gets it."""
    return {}


@pytest.fixture(scope="module")
def pipeline(configs, tmp_path_factory):
    """Whose parts that train note their config."""
    made = studies.train_part

    def noted(name, config, workdir):
        configs[name] = config
        return made(name, config, workdir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "train_part", noted)
        workdir = tmp_path_factory.mktemp("study")
        yield Pipeline(headline.get_world(ARG), workdir)


def test_one_name_is_one_part(tmp_path):
    """Else an arm of one's own would take over what another of its name came to."""
    made = Pipeline(headline.get_world(ARG), tmp_path)
    shown = [arms.Arm("latent", other=other) for other in (False, True)]
    cell = made.cell("mine", arm=shown[0], seed=0, labels=8)
    assert made.cell("mine", arm=shown[0], seed=0, labels=8).parts == cell.parts
    with pytest.raises(ValueError, match="two parts are called success_mine_in_domain_s0_n8: one"):
        made.cell("mine", arm=shown[1], seed=0, labels=8)


LABELS = {"labels": 8, "seed": 0}


def names(pipeline, arm, **kind):
    return [part.name for part in pipeline.cell(arm, **(LABELS | kind)).parts]


def test_parts_of_every_arm(pipeline):
    found = {arm: names(pipeline, arm) for arm in arms.ARMS}
    assert found["scratch"] == [
        *("labelled_s0_n8", "tokenizer"),
        *("policy_scratch_of_s0_n8", "success_scratch_in_domain_s0_n8"),
    ]
    shared = {*found["lapa"]}
    assert {"quantizer_s0", "latents_s0", "latent_vla_s0"} <= shared
    assert {"inverse_s0_n8", "said_s0_n8", "vpt_s0_n8"} <= {*found["vpt"]} - shared
    for control in ("shuffled", "kmeans", "random"):
        own = {*found[f"{control}_latents"]} - shared
        assert {f"{control}_latents_s0", f"{control}_latent_vla_s0"} < own and len(own) == 4
    for arm, own in {
        "scratch_matched": {"matched_s0", "policy_scratch_matched_of_s0_n8"},
        "frozen_features": {"policy_latent_vla_s0_frozen_features_of_s0_n8"},
        "unipi": {"inverse_window_s0_n8"},
        "action_vla": {"action_vla_s0", "policy_action_vla_s0_of_s0_n8"},
        "openvla": {"action_vla_openvla_s0", "policy_action_vla_openvla_s0_openvla_of_s0_n8"},
    }.items():
        assert {*found[arm][:-1]} - shared == own
    assert names(pipeline, "lapa", setting="cross_embodiment")[:-1] == found["human_only"][:-1]
    assert len({tuple(parts) for parts in found.values()}) == len(arms.ARMS)
    for parts in found.values():
        assert len(parts) == len(set(parts))


def test_other_cells_share_what_is_theirs(pipeline):
    lapa = {*names(pipeline, "lapa")}
    other_labels = {*names(pipeline, "lapa", labels=4)} - lapa
    assert {*names(pipeline, "lapa", unseen=True)} - lapa == {"success_lapa_in_domain_unseen_s0_n8"}
    assert len(other_labels) == 3 and all(name.endswith("_s0_n4") for name in other_labels)
    assert {*names(pipeline, "lapa", seed=1)} & lapa == {"videos", "tokenizer"}
    part = names(pipeline, "vpt", setting="cross_task")
    assert "vpt_part_s0_n8" in part and "labelled_s0_n8" not in part


def test_arms_differ_in_what_they_claim(pipeline, configs):
    for arm in arms.ARMS:
        names(pipeline, arm)
    policies = {
        name: one
        for name, one in configs.items()
        if name.startswith("policy") and name.endswith("_of_s0_n8") and not callable(one)
    }
    lapa = policies["policy_latent_vla_s0_of_s0_n8"]
    same = ("dim", "depth", "heads", "mlp_dim", "text_vocab", "text_length", "front_end")
    for name, one in policies.items():
        assert [one.model[key] for key in same] == [lapa.model[key] for key in same], name
        assert (one.data, one.steps, one.global_batch) == (lapa.data, lapa.steps, lapa.global_batch)
        assert bool(one.model.tokenizer) != bool(one.init_from)
        kept = "policy_vpt" in name or "policy_action_vla" in name
        assert one.model.action_codec == (
            f"{one.init_from}/assets/action_bins.json" if kept else ""
        )
        if "openvla" not in name and "frozen" not in name:
            assert one.model.targets == lapa.model.targets
    before = [configs[name] for name in ("latent_vla_s0", "action_vla_s0", "vpt_s0_n8")]
    for one in before[1:]:
        for key in ("steps", "global_batch", "seed"):
            assert one[key] == before[0][key]
        assert one.optimizer.peak_lr == before[0].optimizer.peak_lr
        assert one.model.tokenizer == before[0].model.tokenizer
        corpora = zip(one.data.corpora.values(), before[0].data.corpora.values(), strict=True)
        assert all(a.path == b.path for a, b in corpora)
    (pipeline.workdir / "matched_s0.json").write_text('{"examples": 168}')
    matched = configs["policy_scratch_matched_of_s0_n8"]()
    assert (matched.steps, matched.data) == (lapa.steps + round(168 / 16), lapa.data)
    vpt = configs["vpt_s0_n8"].data.corpora.robot
    assert (vpt.action_set, vpt.action_fraction) == ("said_s0_n8", 0.0)
    assert configs["shuffled_latent_vla_s0"].data.corpora.robot.label_set == "shuffled_latents_s0"
    assert configs["quantizer_free_s0"].model.bottleneck.name == "none"
    assert configs["latent_vla_free_s0"].model.targets.latent.name == "vectors"


def test_what_cannot_be_is_told(pipeline):
    with pytest.raises(ValueError, match="arm='lappa' must be one of"):
        names(pipeline, "lappa")
    alone = dataclasses.replace(pipeline.world, other=(), unseen={}, label_seed=700)
    without = Pipeline(alone, pipeline.workdir)
    with pytest.raises(ValueError, match=r"arm human_only, .*: World\.other is empty"):
        names(without, "human_only")
    with pytest.raises(ValueError, match="World.unseen is empty"):
        names(without, "lapa", unseen=True)
    with pytest.raises(ValueError, match="videos and labelled episodes .* same seed 700"):
        names(without, "lapa")


def test_cells_of_the_study_and_of_the_search(tmp_path):
    study = headline.get_study("size=quick,budgets=4+8", tmp_path)  # all its configs are checked
    order = [(c.values["arm"], c.values["labels"]) for c in study.cells]
    others = [(arm, 8) for arm in arms.ARMS if arm not in arms.MAIN]
    main, fewer = ([(arm, n) for arm in arms.MAIN] for n in (8, 4))
    assert order[: len(others) + 8] == [*main, *others, *fewer]
    assert {c.values["arm"] for c in study.cells} == {*arms.ARMS}
    settings = {c.values["setting"] for c in study.cells}
    assert settings == {s + end for s in arms.SETTINGS for end in ("", arms.UNSEEN)}
    named = "size=quick,arms=scratch,seeds=3,others=2"
    many = headline.get_study(named, tmp_path)
    counts = [
        len({c.values["seed"] for c in many.cells if c.values["setting"] == s}) for s in settings
    ]
    assert sorted(counts) == [2] * 5 + [3]
    search = headline.get_study("size=quick,tune=True,arms=lapa+vpt", tmp_path)
    assert len(search.cells) == 2 * len(headline.GRID)
    trained = [c.parts[-2].name for c in search.cells if c.values["arm"] == "lapa"]
    assert len(set(trained)) == len(headline.GRID)
    with pytest.raises(ValueError, match="TUNING_SEED=50 is one of the 51 seeds of record"):
        headline.get_study("size=quick,tune=True,seeds=51,arms=lapa", tmp_path)
    with pytest.raises(ValueError, match="arms='best' must be one of"):
        headline.get_study("arms=best", tmp_path)


def test_a_study_goes_on_from_its_own_parts_and_record(tmp_path):
    def opened(workdir):
        given = "size=quick,arms=vpt+scratch,budgets=4+8,seeds=2,others=0"
        study = headline.get_study(given, workdir)
        study.claim({"arguments": given, "size": "quick"})
        return study

    path, study = tmp_path / "record.json", opened(tmp_path / "a")
    study.do(study.cells[0].parts[0])  # its labelled episodes
    record.Record(path, "lapa study", study, study.claims).write()
    opened(tmp_path / "a").check()
    other = opened(tmp_path / "b")
    record.Record(path, "lapa study", other, other.claims)
    kinds = record._unfolded(json.loads(path.read_text())["configs"])
    assert "action_set" not in kinds["vpt"]["data"]["corpora"]["robot"]  # it differs by seed


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("seeds=0", "seeds=0 must be at least 1"),
        ("rollouts=-1", "rollouts=-1 must be at least 1"),
        ("others=-1", "others=-1 must be at least 0"),
        ("budgets=0", "budgets='0' must be numbers from 1 on"),
        ("budgets=8+x", r"budgets='8\+x' must be numbers from 1 on"),
    ],
)
def test_numbers_that_leave_nothing_are_refused(tmp_path, given, told):
    with pytest.raises(ValueError, match=told):
        headline.get_study(f"size=quick,{given}", tmp_path)


def row(arm, outcomes, **values):
    counts = {"successes": sum(outcomes), "episodes": len(outcomes)}
    known = {"setting": "in_domain", "seed": 0, "labels": 50, "family": "reach"}
    return {"arm": arm, "outcomes": [bool(x) for x in outcomes], **known, **counts, **values}


def test_tables():
    good, half = [1] * 40, [1, 0] * 20
    rows = [
        row(arm, half if arm == "scratch" else good, seed=s) for arm in arms.MAIN for s in (0, 1)
    ]
    rows += [row("kmeans_latents", half), row("lapa", half, setting="cross_task_unseen")]
    tables = headline.tables(rows)
    (_, scratch, vpt) = tables["primary"]
    assert scratch[:3] == ["`lapa` less `scratch`", "2", "50.0 points (35.0 to 65.0)"]
    assert vpt[2] == "0.0 points (0.0 to 0.0)"
    assert [cells[2] for cells in tables["expected"][1:]] == ["yes"] * 4
    assert tables["main"][1] == ["`scratch`", "50.0 % (35.0 to 65.0)"]
    assert [cells[0] for cells in tables["controls"]] == ["arm", "`lapa`", "`kmeans_latents`"]
    assert tables["settings"][0][4] == "cross-task, only shown"
    assert tables["settings"][3][1:5] == [
        "100.0 % (100.0 to 100.0)",
        "–",
        "–",
        tables["main"][1][1],
    ]
    assert tables["families"][1] == ["`scratch`", "50.0 % (39.3 to 60.7)"]
    search = [
        row("lapa", half[:n], steps=one.steps, rest=one.rest)
        for one, n in zip(headline.GRID, (2, 6, 4, 6, 2, 2), strict=True)
    ]
    assert headline.tables(search)["search"][1][1:4] == ["1 of 2", "**3 of 6**", "2 of 4"]
    assert headline.tables([])["primary"][1][2] == "–"
