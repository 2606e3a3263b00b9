"""Eight devices train as one does, for every preset and stage, through the loop itself."""

import json

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from experiments import base
from lapa_jax import stages, train
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import PRESETS
from lapa_jax.runs import program, start
from lapa_jax.training import step as train_step
from lapa_jax.training.checkpoint import Checkpoints
from lapa_jax.training.metrics import METRICS_FILE, TIMING_KEYS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]

MESHES = {
    "dp": dict(data=8),
    "fsdp": dict(data=2, fsdp=4),
    "fsdp_tp": dict(data=2, fsdp=2, tensor=2),
    "fsdp_sp": dict(data=2, fsdp=2, seq=2),
    "fsdp_tp_sp": dict(fsdp=2, seq=2, tensor=2),
    "zero": dict(data=2, fsdp=4),
    "zero_tp": dict(data=2, fsdp=2, tensor=2),
}
CASES = [
    *(("latent_pretraining", preset) for preset in MESHES),
    ("quantizer", "zero_tp"),
    ("flow", "fsdp_tp_sp"),  # of action_finetuning
    ("teacher", "fsdp_tp"),
    ("dynamics", "fsdp_tp_sp"),
]
# Float32; the order of sums differs between meshes.
METRIC_TOLERANCE = 2e-4  # relative
STATE_TOLERANCE = 1e-4  # of the largest value of an array


class Saved(Exception):
    """Ends a run at its first checkpoint, of step 2."""


@pytest.fixture(scope="module")
def tokenizer(tiny_data, tmp_path_factory):
    """A run of an image tokenizer that was never trained."""
    config = tiny.config("image_tokenizer", tiny_data)
    rng, shapes = np.random.default_rng(0), stages.build(config, {}).model.abstract()
    params, variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    out = tmp_path_factory.mktemp("tokenizer") / "run"
    write_run(out, Imported(config, params, {}, variables), source="", source_format="none")
    return out


@pytest.fixture(scope="module")
def run(tiny_data, tokenizer, tmp_path_factory):
    """(metrics of two steps, state after them) of a stage on a mesh; devices 0: one device."""

    def run(stage, preset="dp", **sizes):
        workdir = tmp_path_factory.mktemp(f"{stage}-{preset}")
        sizes = dict(data=1, fsdp=1, seq=1, tensor=1) | sizes
        count = int(np.prod(list(sizes.values())))
        name = "action_finetuning" if stage == "flow" else stage
        config = tiny.config(name, tiny_data, mesh__preset=preset)
        if stage == "flow":
            with config.unlocked():
                config.data.action_horizon = 3
                flow = base.head("flow", dim=16, mlp_dim=24, conditioning="adaptive")
                config.model.targets = ConfigDict({"action": flow})
        if preset == "zero":
            config.model.unroll = 0  # gathers the layers apart
        if stage == "dynamics":
            config.model.weights = str(tokenizer)
        held, traces = [], []

        def save(self, step, state, meta):
            held.append(jax.device_get(state))
            raise Saved

        def make_train_step(*args, **kwargs):
            step = train_step.make_train_step(*args, **kwargs)
            return lambda state, batch: (traces.append(1), step(state, batch))[1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", save)
            patch.setattr(program, "make_train_step", make_train_step)
            patch.setattr(start, "make_mesh", lambda _: make_mesh(sizes, jax.devices()[:count]))
            with pytest.raises(Saved):
                train.train(config, workdir)
        assert len(traces) == 1, "the step is compiled once, not again for its own output"
        rows = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in TIMING_KEYS} for row in rows], held[0]

    return run


@pytest.fixture(scope="module")
def on_one_device(run):
    done = {}

    def get(stage):
        if stage not in done:
            done[stage] = run(stage)
        return done[stage]

    return get


def test_every_preset_has_a_mesh():
    assert MESHES.keys() == PRESETS.keys()


@pytest.mark.parametrize("stage, preset", CASES)
def test_same_losses_and_gradients(run, on_one_device, stage, preset):
    one_rows, one = on_one_device(stage)
    rows, state = run(stage, preset, **MESHES[preset])
    assert len(rows) == len(one_rows) == 2
    for row, expected in zip(rows, one_rows, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                row[name], value, rtol=METRIC_TOLERANCE, atol=1e-6, err_msg=name
            )
    # Adam's averages are the gradients and their squares; parameters follow from them.
    leaves = jax.tree_util.tree_flatten_with_path((one.opt_state, one.variables, one.step))[0]
    others = jax.tree.leaves((state.opt_state, state.variables, state.step))
    moved = 0
    for (path, expected), value in zip(leaves, others, strict=True):
        if jax.tree_util.keystr(path).endswith("['attention']['k']['bias']"):
            continue  # softmax does not depend on it: its gradient is rounding
        scale = max(float(np.abs(expected).max()), 1e-8)
        np.testing.assert_allclose(
            value,
            expected,
            rtol=0,
            atol=STATE_TOLERANCE * scale,
            err_msg=jax.tree_util.keystr(path),
        )
        moved += bool(np.any(expected))
    assert moved > len(leaves) / 2, "the comparison is of zeros"


@pytest.mark.parametrize("stage", ["quantizer", "latent_pretraining", "action_finetuning"])
def test_golden_numerics(on_one_device, stage):
    """Loss and gradient of the first two steps, so that a change of either is seen."""
    rows, _ = on_one_device(stage)
    found = {
        f"step {row['step']}": {name: f"{row[name]:.3e}" for name in ("loss", "grad_norm")}
        for row in rows
    }
    tiny.check_golden(f"numerics-{stage}.json", found)


def test_gpus_are_told_what_gives_the_same_bits(monkeypatch):
    told = []
    monkeypatch.setattr(program.logging, "warning", lambda text, *args: told.append(text % args))
    for platform, flags in (
        ("cpu", ""),
        ("gpu", "--xla_gpu_exclude_nondeterministic_ops=true"),
        ("cuda", "--xla_dump_to=/tmp --xla_gpu_deterministic_ops=true"),
    ):
        monkeypatch.setenv("XLA_FLAGS", flags)
        program.warn_if_inexact(platform)
    assert not told
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_exclude_nondeterministic_ops=false")
    program.warn_if_inexact("gpu")
    assert "lacks --xla_gpu_exclude_nondeterministic_ops=true" in told[0]


def test_compiled_programs_stay_with_the_run_unless_a_folder_is_named(tmp_path):
    named = jax.config.jax_compilation_cache_dir
    program.keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir == named
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        program.keep_compiled(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compile_cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", named)
