"""Quantizers as PyTorch sees them, and back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from tiny import lapa, needs_torch, succeed

from experiments import base
from lapa_jax import stages
from lapa_jax.interop import laq_pt, laq_torch, parity, torch_code
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.interop.mapping import to_theirs
from lapa_jax.latent.bottlenecks import BOTTLENECKS
from lapa_jax.latent.objectives import OBJECTIVES
from lapa_jax.latent.objectives.rotation import Rotation, RotationConfig
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.runs import loaded

GOLDEN = Path(__file__).parents[1] / "golden" / "laq"
pytestmark = pytest.mark.usefixtures("quick_compile")


def quantizer_config(data, bottleneck="nsvq", objective="pixels"):
    config = tiny.config("quantizer", data)
    config.model.code_length, config.model.patch_size, config.model.spatial_depth = 4, 16, 2
    config.model.bottleneck = base.bottleneck(bottleneck)
    base.predict(config, objective)
    if objective == "features":
        base.make_vit_quick(config.model.objective.teacher)
    return config.lock()


def make_quantizer(out, config):
    """A run of random weights and statistics."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if x.dtype != np.float32:
            return np.ones(x.shape, x.dtype)
        around_one = path.endswith(("scale", "variance"))
        return (around_one + 0.2 * rng.normal(size=x.shape)).astype(np.float32)

    params, variables = (
        unflatten({path: draw(path, x) for path, x in flatten(tree).items()})
        for tree in stages.build(config, {}).model.abstract()
    )
    made = Imported(config, params, variables=variables)
    write_run(out, made, source="random", source_format="random")
    return out


def export(run, out, form="laq_torch"):
    succeed("export", "--format", form, "--workdir", run, "--out", out)


@pytest.fixture(scope="module")
def original(quick_compile, tmp_path_factory):
    """The original's quantizer, imported."""
    folder = tmp_path_factory.mktemp("original")
    laq_pt.save_file(folder / "laq.pt", dict(np.load(GOLDEN / "laq_tiny4_params.npz")))
    succeed(
        "import", "--format", "laq_pt", "--source", folder / "laq.pt", "--image_size", 64,
        "--out", folder / "run",
    )  # fmt: skip
    return folder / "run"


KINDS = [
    ("nsvq", "pixels"),
    ("vq_ema", "features"),
    ("fsq", "contrastive"),
    ("gaussian", "pixels_no_bottleneck"),
    ("lfq", "contrastive"),
]


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(("bottleneck", "objective"), KINDS)
def test_a_quantizer_in_torch(bottleneck, objective, tiny_data, tmp_path):
    """The export compares latents, codes and frames itself, of real pairs, too; the way back has
    every bit, of the codebook's statistics and of a teacher as of the parameters."""
    config = quantizer_config(tiny_data, bottleneck, objective)
    if bottleneck == "fsq":
        with config.unlocked():
            config.compute_dtype = "bfloat16"
    run = make_quantizer(tmp_path / "run", config)
    export(run, tmp_path / "laq")
    told = json.loads((tmp_path / "laq" / "parity.json").read_text())
    codes = {"codes_that_differ", "frames_of_given_codes"}
    checked = {"latents"} if bottleneck == "gaussian" else codes
    assert told["passed"] and told["checks"].keys() == {"frames"} | checked
    if bottleneck == "fsq":
        assert 0.5 < told["stated"]["codes_equal_to_those_in_bfloat16"] <= 1.0
    assert told["stated"]["random_inputs"] == len(told["stated"]["real_inputs"]) == 4
    assert {x["corpus"] for x in told["stated"]["real_inputs"]} == {"robot"}
    succeed(
        "import", "--format", "laq_torch", "--source", tmp_path / "laq", "--out", tmp_path / "back"
    )
    old, new = loaded.load(run), loaded.load(tmp_path / "back")
    assert new.params_hash == old.params_hash == told["params_hash"]
    jax.tree.map(np.testing.assert_array_equal, new.variables, old.variables)
    assert new.config.model == old.config.model
    names = {path.name for path in (tmp_path / "laq").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "lapa_run.json", "modeling_laq.py", "parity.json",
        "README.md",
    }  # fmt: skip


@pytest.mark.slow
@needs_torch
def test_every_bottleneck_has_a_form_in_torch(tiny_data, tmp_path):
    torch_code.write(tmp_path, {}, [laq_torch.MODELING])
    module = torch_code.load(tmp_path, laq_torch.MODELING)
    torch_model = module.Quantizer
    objectives = list(OBJECTIVES)
    for number, bottleneck in enumerate(BOTTLENECKS):
        objective = objectives[number % len(objectives)]
        stage = stages.build(quantizer_config(tiny_data, bottleneck, objective), {})
        model = stage.model_config
        rules, sizes = laq_torch.rules(model), laq_torch.sizes(model)
        params, variables = stage.model.abstract()
        tensors = to_theirs(params, rules, sizes, variables, np.dtype(np.float32))
        found = {k: v.shape for k, v in tensors.items() if not k.startswith("training.")}
        settings = json.loads(json.dumps(laq_torch.torch_config(model)))
        wanted = {k: tuple(v.shape) for k, v in torch_model(settings).state_dict().items()}
        assert found == wanted, (bottleneck, objective)

    z = np.random.default_rng(0).normal(size=(8, 2, 8)).astype(np.float32)
    shape = SimpleNamespace(code_length=2, quant_dim=8)
    for projection in ("exp", "nearest"):
        ours = Rotation(RotationConfig(projection), shape, rngs=None).received(z)
        theirs = module.rotation(module.torch.from_numpy(z), projection).numpy()
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


IN_TORCH = """
import sys
import numpy as np
directory, inputs, outputs = sys.argv[1:]
sys.path.append(directory)
from modeling_laq import load
quantizer, given = load(directory), np.load(inputs)
z = quantizer.encode(given["first"], given["last"])
found = {"z": z, "frames": quantizer.decode(given["first"], z)}
refused = []
for bad in (
    lambda: quantizer.encode(given["first"][:, 1:], given["last"]),
    lambda: quantizer.encode(given["first"] / 100, given["last"]),
    lambda: quantizer.decode(given["first"], z + 8),
    lambda: quantizer.decode(given["first"], z * 1.0),
):
    try:
        bad()
    except ValueError as error:
        refused.append(str(error))
np.savez(outputs, refused=refused, **found)
ours = {"jax", "flax", "lapa_jax"} & set(sys.modules)
assert not ours, ours
"""


@pytest.mark.slow
@needs_torch
def test_the_original_in_torch(original, tmp_path):
    """What the original itself gave, from a directory alone, in a process without JAX."""
    export(original, tmp_path / "laq")
    io = dict(np.load(GOLDEN / "laq_tiny4_io.npz"))
    frames = np.moveaxis(io["video_u8"], 1, -1)
    np.savez(tmp_path / "given.npz", first=frames[:, 0], last=frames[:, 1])
    places = [tmp_path / "laq", tmp_path / "given.npz", tmp_path / "found.npz"]
    done = subprocess.run(
        [sys.executable, "-c", IN_TORCH, *map(str, places)],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(found["z"], io["inference_indices"])
    expected = np.moveaxis(io["inference_recon"], 1, -1)
    np.testing.assert_allclose(found["frames"], expected, atol=2e-5)
    size, scale, codes, kind = found["refused"]
    assert "not (batch, *(64, 64, 3))" in size and "float in [0, 1]" in scale
    assert "the codebook has 8" in codes and "must be integers" in kind


@pytest.mark.slow
@needs_torch
def test_the_state_dict_is_checked_too(original, tmp_path, monkeypatch):
    export(original, tmp_path / "laq.pt", "laq_pt")
    told = json.loads((tmp_path / "laq.pt.parity.json").read_text())
    assert told["passed"] and {x["value"] for x in told["checks"].values()} == {0}
    assert {path.name for path in tmp_path.iterdir()} == {"laq.pt", "laq.pt.parity.json"}
    real = laq_pt.save_file

    def damaged(path, tensors):
        real(path, tensors | {"vq.codebooks": tensors["vq.codebooks"] + 1})

    monkeypatch.setattr(laq_pt, "save_file", damaged)
    code, _, error = lapa(
        "export", "--format", "laq_pt", "--workdir", original, "--out", tmp_path / "x.pt"
    )
    assert code == 2 and "parameters_that_differ_when_imported=1 (at most 0)" in error
    assert not (tmp_path / "x.pt").exists() and (tmp_path / "x.pt.failed" / "x.pt").exists()


@pytest.mark.slow
@needs_torch
def test_a_state_dict_has_no_normaliser(original, tmp_path):
    config = loaded.load(original).config
    with config.unlocked():
        config.model.normalize_decay = 0.5
    run, out = make_quantizer(tmp_path / "run", config), tmp_path / "laq.pt"
    code, _, error = lapa("export", "--format", "laq_pt", "--workdir", run, "--out", out)
    assert code == 2 and "settings_that_differ_when_imported=1 (at most 0)" in error
    assert not out.exists()


@pytest.mark.slow
@needs_torch
def test_torch_has_no_encoder_of_an_objective(tiny_data, tmp_path):
    config = quantizer_config(tiny_data, objective="algebraic+motion")
    config.unlock()
    config.data.num_frames = 3
    run, out = make_quantizer(tmp_path / "run", config), tmp_path / "laq"
    code, _, error = lapa("export", "--format", "laq_torch", "--workdir", run, "--out", out)
    assert code == 2 and "model.objective.name='algebraic', whose latents are read off" in error
    assert not out.exists()


@pytest.mark.slow
@needs_torch
def test_wrong_weights_are_found_out(original, tmp_path, monkeypatch):
    """Heads taken for keys and values."""
    name, pattern = "decoder.layers.{i}.cross.kv.weight", "(k two c) d -> d two k c"
    tiny.misread(monkeypatch, laq_torch, "rules", name, pattern)
    out = tmp_path / "laq"
    code, _, error = lapa("export", "--format", "laq_torch", "--workdir", original, "--out", out)
    assert code == 2 and "frames=" in error and "codes_that_differ" not in error
    assert not out.exists() and (tmp_path / "laq.failed").exists()


def test_only_codes_that_are_as_near_may_differ():
    place = np.array([[[0.0], [0.9]]])
    points = np.array([[-1.0], [1.0], [1.0]])
    ours = np.array([[0, 1]])
    for found, count in (([[0, 1]], 0), ([[1, 2]], 0), ([[0, 0]], 1)):
        assert parity.clearly_different(np.array(found), ours, place, points) == count
