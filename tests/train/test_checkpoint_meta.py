"""A checkpoint is self-contained, a workdir belongs to one config, and bad states are not saved."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
import tiny

from data_pipelines.index import load_index
from data_pipelines.loader import FingerprintError
from lapa_jax import config as configs
from lapa_jax import train
from lapa_jax.nn import int8, module
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.policy import codecs
from lapa_jax.policy.text import TextTokenizer
from lapa_jax.runs import loaded, start
from lapa_jax.runs import run as runs
from lapa_jax.training import checkpoint
from lapa_jax.training.guard import Guard, NonFiniteError
from lapa_jax.version import __version__

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def latent_run(tiny_data, tmp_path_factory):
    """A workdir reduced to its checkpoints, and its config."""
    workdir = tmp_path_factory.mktemp("latent")
    config = tiny.config("latent_pretraining", tiny_data)
    assert train.train(config, workdir)
    for path in workdir.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return workdir, config


@pytest.fixture(scope="module")
def interrupted(tiny_data, tmp_path_factory):
    """(data, workdir) of a run that saved step 2 of 4."""
    folder = tmp_path_factory.mktemp("interrupted")
    data, workdir = folder / "data", folder / "run"
    shutil.copytree(tiny_data, data)

    def stop(self, step, metrics):
        if step == 3:
            raise RuntimeError("at step 3")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "check", stop)
        with pytest.raises(RuntimeError, match="at step 3"):
            train.train(tiny.config("latent_pretraining", data), workdir)
    assert checkpoint.list_steps(workdir / "checkpoints") == [2]
    return data, workdir


@pytest.fixture
def started(interrupted, tiny_data, tmp_path):
    """The same; what a test does to them is undone."""
    data, workdir = interrupted
    shutil.copytree(workdir, tmp_path / "run")
    yield data, tmp_path / "run"
    shutil.rmtree(data)
    shutil.copytree(tiny_data, data)


def test_everything_is_in_the_checkpoint(latent_run, tiny_data):
    workdir, config = latent_run
    meta = checkpoint.load_meta(workdir / "checkpoints")
    assert meta["step"] == 4
    assert meta["config"] == json.loads(json.dumps(config.to_dict()))
    assert meta["data"]["step"] == 4 and meta["data"]["seed"] == config.seed
    assert {"global_batch", "mixture_hash", "index_hash"} <= meta["data"].keys()
    assert meta["provenance"]["corpora"] == {
        "robot": load_index(tiny_data / "robot", split="train").hash
    }
    assert meta["provenance"]["label_sets"]["robot"]["quantizer_hash"] == "0" * 32
    assert meta["provenance"]["init_from"] is None
    assert meta["provenance"]["code_version"] == __version__
    tokenizer = TextTokenizer(meta["assets"]["tokenizer.model"])
    assert tokenizer.vocab_size <= config.model.text_vocab


@pytest.mark.slow
def test_a_run_needs_only_its_checkpoints(latent_run, tmp_path):
    """... not even in the place where it was trained; the data may be gone."""
    workdir, config = latent_run
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    run = loaded.load(moved)
    assert run.step == 4 and run.config == config
    assert run.params_hash == loaded.load(workdir).params_hash
    older = loaded.load(moved, step=2)
    assert older.step == 2 and older.params_hash != run.params_hash
    prompts = run.stage.prompts(["move the red square to place 1"])
    image = np.zeros((1, 1, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    z = run.stage.predict(run.params, run.variables, prompts, image).ids
    assert z.shape == (1, 1) and 0 <= int(z[0, 0]) < 8


def test_a_workdir_without_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        loaded.load(tmp_path)


def test_another_config_is_refused(started, tiny_data):
    data, workdir = started
    before = tiny.result(workdir)
    config = tiny.config(
        "latent_pretraining",
        data,
        seed=1,
        model__depth=3,
        optimizer__peak_lr=0.5,
        log_every_steps=2,
    )
    with pytest.raises(ValueError) as error:
        train.train(config, workdir)
    lines = str(error.value).splitlines()
    assert str(workdir) in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "model.depth",
        "optimizer.peak_lr",
        "seed",
    ], "keys that change nothing, as log_every_steps, are free"
    assert "2 there, 3 now" in str(error.value)
    assert tiny.result(workdir) == before


@pytest.mark.slow
def test_changed_labels_are_refused(started):
    data, workdir = started
    shutil.rmtree(data / "robot" / "labels")
    tiny.write_labels(data / "robot", quantizer_hash="1" * 32)
    with pytest.raises(FingerprintError, match="mixture_hash"):
        train.train(tiny.config("latent_pretraining", data), workdir)


@pytest.mark.slow
def test_changed_data_are_refused(started):
    data, workdir = started
    shutil.rmtree(data / "robot")
    tiny.write_labels(tiny.write_corpus(data / "robot", seed=5))
    with pytest.raises(FingerprintError, match="index_hash"):
        train.train(tiny.config("latent_pretraining", data), workdir)


def test_a_step_of_another_run_is_refused(started):
    """Copied in beside a config.json that says what the command says: of another learning rate;
    and, older than the newest step, of other assets."""
    data, workdir = started
    config = tiny.config("latent_pretraining", data, optimizer__peak_lr=0.25)
    runs.write_json(workdir / "config.json", configs.to_dict(config))
    with pytest.raises(ValueError, match=r"checkpoints/2 is of .*\n  .*peak_lr: 0.* 0.25 now"):
        train.train(config, workdir)
    config = tiny.config("latent_pretraining", data)
    meta = checkpoint.load_meta(workdir / "checkpoints")
    runs.check_step(workdir, meta, config, meta["assets"])
    for assets in ({}, {"tokenizer.model": b""}, meta["assets"] | {"action_bins.json": b"{}"}):
        with pytest.raises(ValueError, match="step of another run: its asset (tok|action_bins)"):
            runs.check_step(workdir, meta, config, assets)


def test_assets_are_those_of_the_checkpoints(started):
    """A changed or missing copy ends the start; without the folder they are written again."""
    data, workdir = started
    config = tiny.config("latent_pretraining", data)
    path = workdir / "assets" / "tokenizer.model"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=f"{path} was changed: .* remove .*/assets, which"):
        train.train(config, workdir)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing: "):
        train.train(config, workdir)
    shutil.rmtree(path.parent)
    run = start.open_run(config, workdir)
    run.loader.close()
    assert run.assets == {"tokenizer.model": whole}
    runs.write(workdir, config, run.assets)
    assert path.read_bytes() == whole
    runs.check_assets(workdir, run.assets)


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_never_saved(tiny_data, tmp_path):
    changes = dict(steps=9, optimizer__peak_lr=100.0, optimizer__weight_decay=1e3)
    changes |= dict(checkpoint__every_steps=1, checkpoint__keep=9)
    config = tiny.config("latent_pretraining", tiny_data, **changes)
    with pytest.raises(NonFiniteError, match="step [2-8] is not finite.*peak_lr") as error:
        train.train(config, tmp_path)
    bad = int(str(error.value).split()[1])
    steps = checkpoint.list_steps(tmp_path / "checkpoints")
    assert steps == list(range(1, bad))
    params = loaded.load(tmp_path).params
    assert all(np.isfinite(x).all() for x in map(np.asarray, jax.tree.leaves(params)))
    with pytest.raises(NonFiniteError, match=f"step {bad} "):  # a restart ends at the same step
        train.train(config, tmp_path)


@pytest.mark.slow
def test_starting_from_another_run(latent_run, tiny_data, tmp_path, monkeypatch, caplog):
    """init_from: the report says what happened to every parameter, and the tokenizer is kept."""
    workdir, _ = latent_run
    config = tiny.config("action_finetuning", tiny_data, init_from=str(workdir))
    assert train.train(config, tmp_path)
    source, run = loaded.load(workdir), loaded.load(tmp_path)
    report = json.loads((tmp_path / "init_from.json").read_text())
    assert sorted(report["dropped"]) == [
        "embeddings/latent/table",
        "heads/latent/kernel",
    ]
    assert sorted(report["initialised"]) == [
        "embeddings/action/table",
        "heads/action/kernel",
    ]
    paths = module.paths(run.params)
    assert set(report["taken"]) == paths - set(report["initialised"])
    assert run.provenance["init_from"] == source.params_hash
    assert run.assets["tokenizer.model"] == source.assets["tokenizer.model"]
    bins = codecs.from_json(run.assets["action_bins.json"])
    assert bins.action_dim == 2 and max(bins.sizes) <= config.model.targets.action.vocab
    assert "other parameters" not in caplog.text
    monkeypatch.setattr(start, "digest", lambda _: "of others")
    assert train.train(config, tmp_path)
    assert f"{workdir} holds other parameters (of others) than this run" in caplog.text


@pytest.mark.slow
def test_parameters_of_a_source_are_read_split(latent_run, monkeypatch):
    """... and none whole: that would be more than a device holds."""
    run, source = loaded.load(latent_run[0]), start.find(latent_run[0])
    expected, abstract = module.flatten(run.params), module.flatten(source.params)
    assert {p: (x.shape, x.dtype) for p, x in abstract.items()} == {
        p: (x.shape, x.dtype) for p, x in expected.items()
    }
    mesh = make_mesh(dict(data=1, fsdp=8, seq=1, tensor=1))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    where = {path: split for path, x in expected.items() if x.shape[0] % 8 == 0}
    monkeypatch.setattr(start, "load", None)
    found = source.read(where)
    assert found.keys() == where.keys() and len(where) > 2
    assert source.params_hash == run.params_hash
    for path, x in found.items():
        assert x.sharding == split
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


@pytest.mark.slow
def test_fine_tuning_a_head_and_factors(latent_run, tiny_data, tmp_path, caplog):
    """LoRA on a frozen backbone: nothing else moves, and nothing else has moments or an average;
    who starts from it takes the merged kernels, as floats or in int8."""
    config = tiny.config(
        "action_finetuning",
        tiny_data,
        init_from=str(latent_run[0]),
        model__lora_rank=2,
        optimizer__groups__rest__frozen=True,
        optimizer__ema_decay=0.5,
    )
    assert train.train(config, tmp_path / "lora")
    source = module.flatten(loaded.load(latent_run[0]).params)
    saved = checkpoint.load_params(tmp_path / "lora" / "checkpoints", ema=True)
    run = module.flatten(saved.params)
    assert set(module.flatten(loaded.load(tmp_path / "lora").params)) == {
        path for path in run if "lora" not in path
    }
    report = json.loads((tmp_path / "lora" / "init_from.json").read_text())
    new = set(report["initialised"])
    assert {path.split("/")[-1] for path in new} == {"table", "kernel", "lora_a", "lora_b"}
    for path in report["taken"]:
        np.testing.assert_array_equal(run[path], source[path], err_msg=path)
    assert all(np.any(run[path]) for path in new)  # lora_b began as zeros
    _, records = checkpoint._read_meta(tmp_path / "lora" / "checkpoints", config.steps)
    assert set(records["ema"]) == new
    state = records["state"]
    moments = [path for path, record in state.items() if record["shape"] and path != "loss_stats"]
    assert len(moments) == 2 * len(new)
    assert all(any(path.endswith(name) for name in new) for path in moments)

    # Once more from there, the kernels in int8; then on to another step.
    config = tiny.config(
        "action_finetuning",
        tiny_data,
        init_from=str(tmp_path / "lora"),
        steps=2,
        optimizer__schedule="constant",
        optimizer__warmup_steps=0,
        optimizer__groups__rest__frozen=True,
        model__lora_rank=2,
        model__base_dtype="int8",
    )
    again = tmp_path / "again"
    caplog.clear()
    caplog.set_level(logging.INFO)
    assert train.train(config, again)
    assert re.search(r"held as int8: off by 0.00\d+ of their RMS on average", caplog.text)
    report = json.loads((again / "init_from.json").read_text())
    assert report["dropped"] == [] and all("lora" in path for path in report["initialised"])
    merged = module.flatten(loaded.load(tmp_path / "lora").params)

    def held():
        return module.flatten(checkpoint.load_params(again / "checkpoints").params)

    first = held()
    for path in report["held"]:
        values, scale = first[path], first[f"{path}_scale"]
        off = np.abs(int8.dequantize(values, scale) - merged[path])
        assert values.dtype == np.int8 and np.all(off <= 0.501 * scale), path
    run = loaded.load(again)
    assert run.config.model.base_dtype == "param_dtype" and run.config.model.lora_rank == 0
    assert all(x.dtype == np.float32 for x in module.flatten(run.params).values())
    with config.unlocked():
        config.steps = 3
    assert train.train(config, again)
    changed = {path for path, x in held().items() if not np.array_equal(x, first[path])}
    assert changed and changed <= new
    config.model.base_dtype = "bfloat16"
    with pytest.raises(ValueError, match="model.base_dtype.*int8.*bfloat16"):
        train.train(config, again)
    config.optimizer.groups.rest.frozen = False
    with pytest.raises(ValueError, match="optimizer.groups trains .*model.base_dtype='bfloat16'"):
        train.train(config, tmp_path / "trained")


def test_what_nothing_has_trained_cannot_be_frozen(tiny_data, tmp_path):
    config = tiny.config("action_finetuning", tiny_data, optimizer__groups__rest__frozen=True)
    with pytest.raises(ValueError, match="optimizer.groups freezes .*backbone.*set init_from"):
        train.train(config, tmp_path)


def test_the_tokenizer_cannot_be_given_twice(latent_run, tiny_data, tmp_path):
    config = tiny.config(
        "action_finetuning", tiny_data, init_from=str(latent_run[0]), model__tokenizer="x.model"
    )
    with pytest.raises(ValueError, match="model.tokenizer.*init_from"):
        train.train(config, tmp_path)
