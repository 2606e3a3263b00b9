"""Teachers, trained and imported, and quantizers that predict their features."""

import shutil
from pathlib import Path

import dinov2_reference
import jax
import numpy as np
import pytest
import tiny
from tiny import lapa, succeed

from lapa_jax.nn.module import flatten
from lapa_jax.runs import loaded

pytestmark = pytest.mark.usefixtures("quick_compile")


def features(data: Path, weights: Path, **changes) -> list[str]:
    return tiny.arguments("features", data, model__objective__weights=weights, **changes)


def refused(*arguments) -> str:
    code, _, error = lapa(*arguments)
    assert code == 2, error
    return error[error.rindex("lapa: ") :]


@pytest.fixture(scope="module")
def teacher(quick_compile, tiny_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    succeed("train", *tiny.arguments("teacher", tiny_data), "--workdir", workdir)
    return workdir


@pytest.mark.slow
def test_a_run_needs_its_teacher_once(teacher, tiny_data, tmp_path):
    """It continues without the teacher's directory, and ends as one that was never stopped."""
    lent = tmp_path / "lent"
    shutil.copytree(teacher, lent)
    arguments = features(tiny_data, lent, steps=4)
    succeed("train", *arguments, "--workdir", tmp_path / "whole")
    whole = tiny.result(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "4")
    shutil.rmtree(lent)
    code, _, error = lapa("train", *arguments, "--workdir", tmp_path / "stopped")
    assert code == 0 and "continues at step 2 of 4" in error
    stopped = tiny.result(tmp_path / "stopped")
    assert stopped["arrays"] == whole["arrays"] and stopped["meta"] == whole["meta"]

    source, run = loaded.load(teacher), loaded.load(tmp_path / "whole")
    assert run.provenance["frozen_from"] == source.params_hash
    found = flatten(run.variables["objective"]["teacher"])
    expected = flatten(source.params["encoder"])
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    frozen = {path.split("/")[0] for path in whole["arrays"] if "teacher" in path}
    assert frozen == {"variables"}, "no moments"
    rows = whole["metrics"]
    assert rows[0]["feature_skill"] == 0.0 and rows[-1]["feature_loss"] > 0.0
    z = run.stage.quantize(run.params, run.variables, *np.zeros((2, 3, 64, 64, 3), np.uint8))
    assert z.shape == (3, 1)


@pytest.mark.slow
def test_teachers_that_do_not_fit(teacher, tiny_data, tmp_path):
    def told(weights, **changes):
        arguments = features(tiny_data, weights, **changes)
        return refused(
            "train", *arguments, "--workdir", tmp_path / str(len(list(tmp_path.iterdir())))
        )

    assert "model.objective.weights is empty" in told("")
    nowhere = tmp_path / "nowhere"
    assert f"model.objective.weights='{nowhere}'" in (error := told(nowhere))
    assert f"{nowhere} does not exist" in error
    error = told(
        teacher, model__objective__teacher__depth=2, model__objective__teacher__registers=1
    )
    assert "model.objective.teacher.depth=2, which is 1 there" in error
    assert "model.objective.teacher.registers=1, which is 0 there" in error


@pytest.fixture(scope="module")
def imported(quick_compile, tmp_path_factory):
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("imported")
    save_file(dinov2_reference.random_tensors(registers=1, depth=1), folder / "dino.safetensors")
    told = succeed(
        *("import", "--format", "dinov2", "--source", folder / "dino.safetensors"),
        *("--out", folder / "run"),
    )
    assert f"-> {folder / 'run'}" in told
    return folder


@pytest.mark.slow
def test_an_imported_teacher(imported, tiny_data, tmp_path):
    run = loaded.load(imported / "run")
    assert run.config.stage == "teacher" and run.config.data.image_size == (20, 20)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = jax.jit(run.stage.features)(run.params, run.variables, images)
    assert found.shape == (2, 16, 16, 128)
    again = ("import", "--format", "dinov2", "--source", imported / "dino.safetensors")
    assert "not empty" in refused(*again, "--out", imported / "run")
    assert "does not take --image_size" in refused(
        *again, "--out", tmp_path / "x", "--image_size", 64
    )


@pytest.mark.slow
def test_an_imported_teacher_is_predicted(imported, tiny_data, tmp_path):
    encoder = loaded.load(imported / "run").stage.model_config.architecture()
    changes = {
        f"model__objective__teacher__{key}": str(value).replace(" ", "")
        for key, value in encoder.items()
    }
    arguments = features(tiny_data, imported / "run", steps=2, **changes)
    succeed("train", *arguments, "--workdir", tmp_path / "run")
    run = loaded.load(tmp_path / "run")
    assert run.variables["objective"]["teacher"]["positions"].shape == (26, 128)
    assert tiny.result(tmp_path / "run")["metrics"][-1]["feature_loss"] > 0.0
