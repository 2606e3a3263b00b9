"""The page of a sweep says which point is best, by what, and what is not told apart from it."""

from types import SimpleNamespace

from lapa_jax.studies import sweep


def page(tmp_path, rows, keys):
    cells = [SimpleNamespace(values={key: row[key] for key in keys}) for row in rows]
    sweep.write_results(SimpleNamespace(rows=lambda: rows, cells=cells, workdir=tmp_path))
    return (tmp_path / "sweep.html").read_text()


def point(skill, width=0.0, **values):
    names = [row["measure"] for row in sweep.measures.rows({}, deep=False)]
    ends = {"skill_low": skill - width, "skill_high": skill + width} if width else {}
    numbers = dict.fromkeys(names) | {"perplexity": 4.0, "skill": skill} | ends
    return {"corpus": "robot", **values, **numbers}


def test_the_best_point_is_marked_and_told_from_others_where_intervals_do(tmp_path):
    rows = [
        point(skill, 0.05, **{"model.codebook_size": size, "data.corpora.*.fraction": part})
        for skill, size, part in ((0.1, 4, 0.5), (0.28, 4, 1.0), (0.3, 8, 0.5), (0.24, 8, 1.0))
    ]
    text = page(tmp_path, rows, ["model.codebook_size", "data.corpora.*.fraction"])
    assert "4 points over codebook_size × fraction" in text
    assert "Best by <code>skill</code>: codebook_size=8,fraction=0.5, 0.3 (0.25 to 0.35)" in text
    assert "2 of the other 3 reach into that interval" in text
    assert "<strong>0.3 (0.25 to 0.35)</strong>" in text and text.count("<strong>") == 1
    assert "best codebook_size 8, fraction 0.5" in text  # of the picture
    assert "Best by <code>perplexity</code>" not in text  # larger codebooks have more


def test_one_key_has_curves_and_three_have_the_table(tmp_path):
    rows = [point(0.1 * i, **{"model.dim": 2**i}) for i in range(1, 5)]
    text = page(tmp_path, rows, ["model.dim"])
    assert "skill over dim. 2: 0.1;" in text and "Best at 16." in text
    rows = [row | {"seed": 0, "lr": 0.1} for row in rows[:1]]
    text = page(tmp_path, rows, ["model.dim", "seed", "lr"])
    assert "<img" not in text and "<strong>" not in text and "Best by" in text
