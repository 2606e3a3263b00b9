"""A bad input ends a verb with exit code 2 and one line that names it; nothing is started."""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import types

import pytest
import tiny

from lapa_jax import cli
from lapa_jax.runs import attempt, examples, start, status
from lapa_jax.training import checkpoint, clock

pytestmark = pytest.mark.usefixtures("quick_compile")


def refused(*arguments, lines: int = 1) -> str:
    """The message of a verb that must refuse its input."""
    code, _, err = tiny.lapa(*arguments)
    assert code == 2, err
    told = err[err.rindex("lapa: ") :].strip().splitlines()
    assert len(told) == lines, err
    assert "Traceback" not in err
    return told[0]


def train(tmp_path, name, data, **changes) -> str:
    workdir = tmp_path / "run"
    told = refused("train", *tiny.arguments(name, data, **changes), "--workdir", workdir)
    assert not (workdir / "checkpoints").exists() or not list((workdir / "checkpoints").iterdir())
    if workdir.exists():  # the config could be read
        left = {path.name for path in workdir.iterdir()}
        assert left <= {"ended.json", "compile_cache", "checkpoints"}, "nothing is claimed"
        found = status.look(workdir, time.time())
        assert found.state == "failed" and told.removeprefix("lapa: ").startswith(found.told[:300])
    return told


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy that may be broken."""
    shutil.copytree(tiny_data, tmp_path / "data")
    return tmp_path / "data"


# --- The command line ---


def test_a_bucket_that_does_not_answer_is_one_line(capsys, monkeypatch):
    def main(_):
        raise Exception("no such bucket, 404")

    gcsfs = types.ModuleType("gcsfs.retry")
    gcsfs.main = types.FunctionType(main.__code__, gcsfs.__dict__)
    monkeypatch.setitem(sys.modules, "gcsfs.retry", gcsfs)
    assert cli.run("gcsfs.retry", []) == 2
    assert "a bucket does not answer as asked (Exception: no such bucket, 404)" in (
        capsys.readouterr().err
    )


def test_lapa_alone_prints_every_verb_with_an_example():
    code, out, _ = tiny.lapa()
    assert code == 0
    for verb in ("demo", "train", "label", "evaluate", "data"):
        assert verb in cli.VERBS
        assert re.search(rf"^  {verb} +\w+", out, re.M)
        assert len(re.findall(rf"\n +lapa {verb}\b", out)) == 1, "an example"
    code, out, _ = tiny.lapa("data")
    assert code == 0
    for verb in ("collect", "convert", "index", "inspect", "batch"):
        assert re.search(rf"^  {verb} +\w+", out, re.M) and f"  lapa data {verb}" in out


@pytest.mark.parametrize("arguments", [["trian"], ["data", "idnex"]])
def test_unknown_verb(arguments):
    code, _, err = tiny.lapa(*arguments)
    assert code == 2
    assert f"unknown verb {arguments[-1]!r}" in err and "usage:" in err


@pytest.mark.parametrize("verb", [["train"], ["label"], ["evaluate"], ["data", "index"]])
def test_missing_flags(verb):
    code, _, err = tiny.lapa(*verb)
    assert code == 2 and "required" in err


def test_unknown_flag(tiny_data, tmp_path):
    arguments = tiny.arguments("quantizer", tiny_data)
    code, _, err = tiny.lapa("train", *arguments, "--workdir", tmp_path / "run", "--stepz=3")
    assert code == 2 and "--stepz=3" in err and "--config.key=value" in err


def test_platforms_of_jax_that_are_not_there(monkeypatch):
    """What JAX raises has no word for CUDA, and several frames of its own for all."""
    import jax._src.xla_bridge

    def backends():
        raise AssertionError

    names = {**vars(jax._src.xla_bridge), "AssertionError": AssertionError}
    fails = types.FunctionType(backends.__code__, names)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("lapa_jax.verbs.status.main", lambda argv: fails())
    assert "no device with JAX_PLATFORMS=cuda. Unset it" in refused("status")


def test_a_file_that_a_library_cannot_open_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("lapa_jax.verbs.status.main", lambda argv: (tmp_path / "no").read_text())
    assert "FileNotFoundError" in (told := refused("status")) and str(tmp_path / "no") in told


# --- The config ---


def test_unknown_config_key_with_a_suggestion(tmp_path, tiny_data):
    told = train(tmp_path, "quantizer", tiny_data, optimizer__peak_lrs=0.1)
    assert "optimizer.peak_lrs" in told and "did you mean 'optimizer.peak_lr'?" in told


def test_value_of_another_type(tmp_path, tiny_data):
    assert "steps" in train(tmp_path, "quantizer", tiny_data, steps="many")


def test_unknown_stage(tmp_path, tiny_data):
    told = train(tmp_path, "quantizer", tiny_data, stage="quantiser")
    assert "stage='quantiser'" in told and "latent_pretraining" in told


def test_missing_config_file(tmp_path):
    told = refused("train", "--config", "experiments/nothing.py", "--workdir", tmp_path / "run")
    assert "experiments/nothing.py" in told


def test_unknown_config_argument(tmp_path, tiny_data):
    config = tiny.ROOT / "experiments/quantizer/tabletop.py"
    told = refused("train", "--config", f"{config}:qick=True", "--workdir", tmp_path / "run")
    assert "'qick'" in told and "quick" in told


def test_bottleneck_that_does_not_exist(tmp_path, tiny_data):
    told = train(tmp_path, "quantizer", tiny_data, model__bottleneck__name="vqq")
    assert "vqq" in told and "nsvq" in told


# --- The data ---


def test_missing_folder(tmp_path):
    assert str(tmp_path / "nowhere") in train(tmp_path, "quantizer", tmp_path / "nowhere")
    assert "nowhere" in refused("data", "index", tmp_path / "nowhere")
    assert "nowhere" in refused("data", "inspect", tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    (tmp_path / "empty" / "robot").mkdir(parents=True)
    told = train(tmp_path, "quantizer", tmp_path / "empty")
    assert str(tmp_path / "empty" / "robot") in told
    assert "no TFRecord shards" in refused("data", "index", tmp_path / "empty" / "robot")


def test_a_camera_that_is_not_there(tmp_path, monkeypatch):
    """Of a corpus without an index, which would get one."""
    monkeypatch.setenv("LAPA_CACHE", str(tmp_path / "cache"))
    tiny.write_corpus(tmp_path / "data" / "robot", index=False)
    told = train(tmp_path, "quantizer", tmp_path / "data", data__corpora__robot__image_key="wrist")
    assert "image_key is 'wrist'" in told and "images: image (uint8[64,64,3])" in told
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_truncated_shard(tmp_path, data):
    shard = sorted((data / "robot").glob("*.tfrecord-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    told = train(tmp_path, "quantizer", data)
    assert shard.name in told or str(data / "robot") in told
    told = refused("data", "index", data / "robot", "--workers", 1)
    assert shard.name in told


def test_window_longer_than_every_clip(tmp_path, tiny_data):
    told = train(tmp_path, "quantizer", tiny_data, data__corpora__robot__window_seconds=60.0)
    assert "data.corpora.robot.window_seconds 60.0" in told and "longest" in told


def test_windows_that_differ(tiny_data):
    changes = dict(views="human+robot", data__corpora__robot__window_seconds=0.4)
    config = tiny.config("quantizer", tiny_data, **changes)
    with pytest.raises(ValueError, match=r"\[0.2, 0.4\]; .*lapa evaluate.*--window_seconds"):
        examples.Pairs(config, {"path": str(tiny_data / "robot")})
    one = config.data.corpora.robot.to_dict()
    assert examples.Pairs(config, one).window_seconds == 0.4


def test_image_size_of_the_config_is_another(tmp_path, tiny_data):
    told = train(tmp_path, "quantizer", tiny_data, data__image_size="(32,32)")
    assert "'robot'" in told and "64x64" in told and "data.image_size" in told


def test_label_set_that_does_not_exist(tmp_path, tiny_data):
    told = train(tmp_path, "latent_pretraining", tiny_data, data__corpora__robot__label_set="other")
    assert "'other'" in told and tiny.LABEL_SET in told and "lapa label" in told


@pytest.mark.slow
def test_labels_longer_than_the_config_says(tmp_path, data):
    tiny.write_labels(data / "robot", "long", code_length=4)
    told = train(tmp_path, "latent_pretraining", data, data__corpora__robot__label_set="long")
    assert "code" in told and "4" in told and "code_length=1" in told


@pytest.mark.slow
def test_labels_of_a_larger_codebook(tmp_path, data):
    tiny.write_labels(data / "robot", "large", codebook_size=500)
    told = train(tmp_path, "latent_pretraining", data, data__corpora__robot__label_set="large")
    assert "model.targets.latent.vocab=8" in told


def test_mixture_of_two_quantizers(tmp_path, data):
    shutil.copytree(data / "robot", data / "human")
    shutil.rmtree(data / "human" / "labels")
    tiny.write_labels(data / "human", quantizer_hash="2" * 32)
    told = train(tmp_path, "latent_pretraining", data, views="human+robot")
    assert "quantizer_hash" in told and "human" in told and "robot" in told


def test_pretrained_run_that_does_not_exist(tmp_path, tiny_data):
    told = train(tmp_path, "action_finetuning", tiny_data, init_from=tmp_path / "nothing")
    assert str(tmp_path / "nothing") in told


def test_batch_that_the_devices_do_not_divide(tmp_path, tiny_data, monkeypatch):
    import jax

    from lapa_jax.parallel.mesh import make_mesh
    from lapa_jax.runs import start

    monkeypatch.setattr(start, "make_mesh", lambda config: make_mesh(config, jax.devices()))
    told = train(tmp_path, "action_finetuning", tiny_data, global_batch=6)
    assert "global_batch" in told and "8" in told


# --- Runs ---


@pytest.mark.parametrize("verb", [["label", "--corpus", "x", "--name", "y"], ["evaluate"]])
def test_no_run_there(tmp_path, verb):
    assert str(tmp_path) in refused(*verb, "--workdir", tmp_path)


@pytest.fixture(scope="module")
def policy(tiny_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("policy")
    arguments = tiny.arguments("latent_pretraining", tiny_data)
    assert tiny.lapa("train", *arguments, "--workdir", workdir)[0] == 0
    return workdir


def test_labelling_with_a_policy(policy, tiny_data):
    told = refused("label", "--workdir", policy, "--corpus", tiny_data / "robot", "--name", "y")
    assert str(policy) in told and "not a quantizer" in told


def test_another_config_lists_the_keys(policy, tiny_data):
    arguments = tiny.arguments("latent_pretraining", tiny_data, seed=3, model__dim=64)
    code, _, err = tiny.lapa("train", *arguments, "--workdir", policy)
    assert code == 2
    assert "model.dim: 32 there, 64 now" in err and "seed: 0 there, 3 now" in err


def test_other_steps_change_the_schedule_only_if_asked(policy, tiny_data, tmp_path):
    shutil.copytree(policy, tmp_path / "run")
    arguments = tiny.arguments("latent_pretraining", tiny_data, steps=6)
    told = refused("train", *arguments, "--workdir", tmp_path / "run")
    assert "has done 4 steps of 4; config.steps=6 gives another learning rate" in told
    assert "optimizer.schedule='warmup_cosine'" in told and "`lapa train --extend`" in told


@pytest.mark.parametrize(
    ("schedule", "done", "steps", "same"),
    [
        ("warmup_constant", 40, 90, True),
        ("wsd", 36, 90, True),  # of 40: the last four are the decay
        ("wsd", 39, 90, False),
        ("wsd", 22, 22, False),
        ("warmup_cosine", 3, 90, True),  # the third step has the peak in both
        ("warmup_cosine", 4, 90, False),
    ],
)
def test_the_learning_rate_so_far_says_whether_steps_may_change(
    schedule, done, steps, same, tiny_data
):
    changes = dict(steps=steps, optimizer__schedule=schedule, optimizer__warmup_steps=2)
    config = tiny.config("quantizer", tiny_data, **changes)
    run = types.SimpleNamespace(workdir="run", config=config, extend=False)
    with contextlib.nullcontext() if same else pytest.raises(ValueError, match="--extend"):
        start._check_steps(run, {"steps": 40}, done)
    run.extend = True
    start._check_steps(run, {"steps": 40}, done)
    with pytest.raises(ValueError, match=f"has done {steps + 1} steps; config.steps={steps} is"):
        start._check_steps(run, {"steps": 40}, steps + 1)


def test_a_run_of_another_stage_to_start_from(policy, tiny_data, tmp_path):
    told = train(tmp_path, "quantizer", tiny_data, init_from=policy)
    assert f"init_from='{policy}' is a run of stage 'latent_pretraining'" in told
    assert "a run of stage 'quantizer' starts from one of 'quantizer'" in told


@pytest.mark.slow
def test_training_rebuilds_what_it_can(policy, tiny_data, tmp_path):
    """From its checkpoints, which are the run."""
    workdir = tmp_path / "run"
    shutil.copytree(policy, workdir)
    for name in ("config.json", "goodput.json", "ended.json", "run.lock"):
        (workdir / name).write_bytes(bytes(range(256)))
    shutil.rmtree(workdir / "assets")
    assert status.look(workdir, time.time()).state == "damaged"
    arguments = tiny.arguments("latent_pretraining", tiny_data)
    code, _, err = tiny.lapa("train", *arguments, "--workdir", workdir)
    assert code == 0 and f"{workdir / 'goodput.json'} is damaged" in err
    for name in ("config.json", "assets/tokenizer.model"):
        assert (workdir / name).read_bytes() == (policy / name).read_bytes()
    assert len(clock.read_goodput(workdir)) == 1
    assert status.look(workdir, time.time()).state == "finished"


def test_a_second_training_is_told_of_the_first(policy, tiny_data):
    arguments = tiny.arguments("latent_pretraining", tiny_data)
    with attempt.Attempt(policy):
        before = {path: path.stat().st_mtime for path in policy.rglob("*")}
        assert status.look(policy, time.time()).state == "finished"
        told = refused("train", *arguments, "--workdir", policy)
        assert {path: path.stat().st_mtime for path in policy.rglob("*")} == before
    assert f"{policy} is being written by process {os.getpid()} on " in told
    assert "choose another --workdir" in told


@pytest.mark.slow
def test_full_disk_while_saving(tiny_data, tmp_path, monkeypatch):
    """The error says so and what is kept; with space again the run continues."""
    save = checkpoint.ocp.CheckpointManager.save

    def fail_at_4(self, step, **kwargs):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **kwargs)

    arguments = tiny.arguments("latent_pretraining", tiny_data)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", fail_at_4)
        told = refused("train", *arguments, "--workdir", tmp_path)
    assert "step 4" in told and "the disk is full" in told and "[2]" in told
    assert checkpoint.list_steps(tmp_path / "checkpoints") == [2]
    code, _, err = tiny.lapa("train", *arguments, "--workdir", tmp_path)
    assert code == 0 and "continues at step 2 of 4" in err
