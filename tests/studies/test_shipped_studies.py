"""Studies that are shipped: their configs are checked, and their tables made of rows."""

import numpy as np
import pytest

from experiments.studies import heads, imagined, metaworld, objectives, verifier, zoo
from lapa_jax.envs.checked import Pushes

POLICIES = [("scratch", 0, 2), ("scratch", 1, 3), ("lapa", 0, 9), ("lapa", 1, 7), ("vpt", 0, 5)]
ROWS = {
    imagined: [
        {"what": "judge", "imagination": "pixels", "episodes": 9, "done": 0.9}
        | {"true_error": 0.002, "true_accuracy": 0.9, "true_done": 0.8}
        | {"imagined_error": [0.01] * 5, "imagined_accuracy": 0.7, "imagined_done": 0.5}
        | {"map_accuracy": 0.8, "map_modal_accuracy": 0.2},
        *(
            {"arm": arm, "seed": seed, "labels": 8} | row
            for arm, seed, n in POLICIES
            for row in (
                {"what": "success", "family": "reach", "outcomes": [i < n for i in range(12)]},
                {"what": "errors", "loss": 2.0 - n, "action_error": 0.01 + seed / 100},
                {"what": "imagined", "imagination": "pixels", "family": "reach", "episodes": 10}
                | {"outcomes": [i <= n for i in range(10)], "by_window": [0, n, *[0] * 8, 1]},
            )
        ),
    ],
    heads: [
        {"arm": arm, "seed": seed, "family": "reach", "outcomes": [True, seed > 0, arm == "flow"]}
        for arm in ("clusters", "flow")
        for seed in (0, 1)
    ],
    objectives: [
        {"setting": "clean", "arm": arm, "seed": seed, "probe_r2": gain + seed / 10, "skill": None}
        for arm, gain in (("rotation", 0.6), ("free_pairs", 0.5))
        for seed in (0, 1, 2)
    ],
    zoo: [
        {"objective": name, "codes": codes, "seed": seed, "perplexity": used and used + seed / 10}
        | {"probe_r2": 0.5 + seed / 10, "skill": -0.001}
        for name, codes, used in (("pixels", 8, 4.0), ("pixels", 64, 19.0), ("vae", 0, None))
        for seed in (0, 1)
    ],
    metaworld: [
        {"arm": arm, "setting": setting, "seed": seed, "family": family}
        | {"episodes": 2, "successes": sum(found), "outcomes": list(map(bool, found))}
        for setting in ("in_domain", "in_domain_words_none")
        for arm, found in (("scratch", (0, 1)), ("lapa", (1, 1)))
        for family in ("reach", "push")
        for seed in (0, 1)
        if arm == "lapa" or setting == "in_domain"
    ],
    verifier: [
        {"arm": arm, "pushes": "pushes", "seed": 0, "family": "reach", "dropped": 0.25}
        | {"outcomes": outcomes, "calls": [calls] * 4, "length": [16] * 4}
        for arm, calls, outcomes in (
            ("fixed_4", 4, [True, True, False, False]),
            ("fixed_8", 2, [True, False, False, False]),
            ("fixed_16", 1, [False] * 4),
            ("verifier_0.05", 2.5, [True, True, True, False]),
            ("told", 8, [True] * 4),
        )
    ],
}


@pytest.mark.parametrize("study", ROWS, ids=lambda x: x.__name__.split(".")[-1])
def test_cells_are_told_apart_and_wrong_arguments_named(study, tmp_path):
    cells = study.get_study("size=quick,seeds=2", tmp_path).cells
    finals = [cell.parts[-1].name for cell in cells]
    assert len(set(finals)) == len(finals) == len({str(cell.values) for cell in cells}) > 10
    key = "heads" if study is heads else "arms"
    with pytest.raises(ValueError, match=f"{key}='best' must be one of"):
        study.get_study(f"{key}=best", tmp_path)


def test_codes_are_held_against_the_aim():
    header, pixels, vae = zoo.tables(ROWS[zoo])["objectives"]
    assert header[1:3] == ["perplexity of 8", "perplexity of 64"]
    assert pixels == ["`pixels`", "4.0 to 4.1", "19.0 to 19.1", "missed", "0.50 to 0.60", "0.00"]
    assert vae == ["`vae`", "–", "–", "–", "0.50 to 0.60", "0.00"]
    met = zoo.tables([row for row in ROWS[zoo] if row["codes"] == 8])["objectives"]
    assert met[1][1:3] == ["4.0 to 4.1", "met"]


def test_what_no_claim_needs_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="arms=free: no claim needs them; everything=True"):
        objectives.get_study("arms=free,settings=clean", tmp_path)
    more = objectives.get_study("arms=free,settings=clean,everything=True", tmp_path)
    assert [cell.values["seed"] for cell in more.cells] == [0, 1, 2]


def test_heads_are_set_beside_clusters():
    header, clusters, flow = heads.tables(ROWS[heads])["success"]
    assert header[0] == "head" and clusters[2:4] == ["1, 2 of 3", clusters[3]]
    assert clusters[3].startswith("50.0 % (") and flow[4].startswith("33.3 points (")


def test_tasks_and_words_of_metaworld_have_a_column_each():
    tables = metaworld.tables(ROWS[metaworld])
    header, scratch, lapa = tables["tasks"]
    assert header == ["arm", "reach", "push"]
    assert scratch[2].startswith("50.0 % (") and lapa[2].startswith("100.0 % (")
    header, scratch, lapa, _ = tables["words"]
    assert header == ["arm", "own words", "no words", "another task's"]
    assert scratch[2:] == ["–", "–"] and lapa[2].startswith("100.0 %") and lapa[3] == "–"
    _, over_scratch, over_vpt = tables["primary"]
    assert over_scratch[2].startswith("50.0 points (") and over_vpt[1:3] == ["0", "–"]


def test_policies_are_ranked_beside_what_needs_no_world():
    tables = imagined.tables(ROWS[imagined])
    _, whole, soon, error, loss, half = tables["ranking"]
    perfect = "1.00 (1.00 to 1.00)"
    assert whole[:3] == ["imagined by `pixels`", "5", perfect] and whole[6] == "0.0 (0.0 to 0.0)"
    assert soon[0] == "`pixels`, soon" and soon[7] != whole[7]
    # The error tells seeds apart, not arms; it is no rate.
    assert error[2].startswith("0.00") and error[7] == "–" and loss[2] == perfect
    assert half[2].startswith("0.9") or half[2].startswith("1.00")
    header, one, _ = tables["beside"]
    assert len(one) == len(header) == 5 and one[3] == "0.00 (0.00 to 0.00)"
    assert [row[:3] for row in tables["policies"][1:]] == [
        ["`lapa`", "8", "2"],
        ["`vpt`", "8", "1"],
        ["`scratch`", "8", "2"],
    ]
    _, judge = tables["judges"]
    assert judge[1] == "80.0 % of codes, the most common 20.0 %" and judge[4] == "1.0, 1.0, 1.0"
    assert judge[2:4] == ["0.20", "90.0 %"] and judge[6] == "90.0 %, 80.0 %, 50.0 %"
    _, agreed = tables["agreement"]
    assert agreed[1:3] == ["62.0 %", "52.0 %"]  # of the first ten start states


def test_policies_of_which_something_is_not_known_yet_are_left_out_there():
    rows = ROWS[imagined]
    few = imagined.tables(rows[:-1])  # what is imagined of the last policy is missing
    assert [row[1] for row in few["ranking"][1:]] == ["4", "4", "5", "5", "5"]
    assert few["policies"][2][:1] + few["policies"][2][4:5] == ["`vpt`", "–"]
    none = imagined.tables(rows[:1])
    assert [len(none[name]) for name in ("ranking", "beside", "policies")] == [4, 1, 1]
    assert none["ranking"][1][1:3] == ["0", "–"]


def test_what_imagines_and_its_corpus_are_given_together(tmp_path):
    with pytest.raises(ValueError, match="give both"):
        imagined.get_study("dynamics=runs/dynamics", tmp_path)
    with pytest.raises(ValueError, match="starts=500"):
        imagined.get_study("starts=500", tmp_path)
    given = "size=quick,dynamics=runs/dynamics,corpus=data/robot"
    names = {cell.values.get("imagination") for cell in imagined.get_study(given, tmp_path).cells}
    assert names == {None, "pixels", "dynamics"}


def test_what_is_half_done_is_compared_by_seed():
    """Of one arm seeds 0 and 1, of the other seed 1 alone."""
    header, clusters, flow = heads.tables(ROWS[heads][1:])["success"]
    assert clusters[2] == "2 of 3" and flow[2] == "2, 3 of 3"
    assert flow[4].startswith("33.3 points (")
    assert heads.tables(ROWS[heads][2:])["success"][1][4] == "–"
    (_, claim) = objectives.tables(ROWS[objectives][1:])["claims"]
    assert claim[3].startswith("0.1 (0.1 to 0.1)") and claim[4] == "2 of 2"


def test_claims_are_paired_by_seed():
    tables = objectives.tables(ROWS[objectives])
    assert tables["arms"][1][:3] == ["clean", "`rotation`", "0.7 (0.452 to 0.948)"]
    assert "–" in tables["arms"][1]
    (picture,) = objectives.figures(ROWS[objectives]).values()
    assert "probe_r2. rotation, clean: 0.7" in picture.alt and "skill" not in picture.alt
    (_, claim) = tables["claims"]
    assert claim[3].startswith("0.1 (0.1 to 0.1)") and claim[4] == "3 of 3"


def test_verifiers_are_set_beside_fixed_lengths_at_equal_calls():
    found = verifier.tables(ROWS[verifier])
    assert found["none"][1:] == []  # none of these rows
    header, *rows = found["pushes"]
    assert header[1:3] == ["successes", "calls an episode"]
    rows = {row[0].strip("`"): row[1:] for row in rows}
    assert rows["fixed_8"][:4] == ["1 of 4", "2.00", "8.00", ""] and not rows["fixed_8"][5]
    assert rows["fixed_8"][4].startswith("25.0 points (")
    assert not rows["fixed_16"][4] and rows["told"][5] == "–"  # none calls as often
    own = rows["verifier_0.05"]
    assert own[:4] == ["3 of 4", "2.50", "6.40", "25.0%"] and own[4].startswith("75.0 points (")
    # At 2.5 calls a quarter of the way from 2 calls, which solve 1, to 4, which solve 2.
    assert own[5].startswith(f"{100 * (3 - 1.25) / 4:.1f} points (")


def test_who_is_told_of_pushes_drops_at_the_next_look():
    spec, pushes = verifier.envs.make(verifier.SCENE).spec, Pushes(push_rate=0.1, push_steps=4)
    pushed = pushes.drawn(spec, 0, 3, 40)
    pushed[:] = np.nan
    pushed[1, 3] = 0.0
    told, looks = verifier.Told(pushed), np.ones(3, int)
    told.asked(0, None, None, np.ones(3, bool))
    assert not told.drops(2, None, looks).any()
    assert told.drops(4, None, looks).tolist() == [False, True, False]
    assert not told.drops(4, None, 0 * looks).any()
    told.asked(4, None, None, np.array([False, True, False]))
    assert not told.drops(6, None, looks).any()
