"""Checkpoints: round trips, other meshes, damage, full disks, states that differ."""

import errno
import itertools
import json
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lapa_jax.parallel import distributed
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.training import checksum, manifest
from lapa_jax.training.checkpoint import Checkpoints, load_meta, load_params
from lapa_jax.training.manifest import (
    FORMAT_VERSION,
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointSaveError,
)
from lapa_jax.training.saves import SavePolicy
from lapa_jax.training.state import TrainState, with_shardings

# Orbax leaves coroutines behind when it cannot read an array.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)

META = {
    "config": {"name": "toy", "image_size": [64, 64], "text": "grün"},
    "data": {"step": 1, "seed": 0, "mixture_hash": "ab"},
    "assets": {"tokenizer.model": bytes(range(256)), "bins.json": b"{}"},
}


def make_state(step, ema=True):
    rng = np.random.default_rng(step)

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = {
        "blocks": {"kernel": normal(8, 16), "half": normal(8, 4, dtype=jnp.bfloat16)},
        "scale": jnp.float32(step),
    }
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=({"mu": jax.tree.map(lambda p: p + 1, params)}, [jnp.int32(step)], None),
        ema=jax.tree.map(lambda p: p * 2, params) if ema else None,
        variables={
            "usage": jnp.asarray(rng.integers(0, 99, 8), jnp.int32),
            "dead": jnp.asarray(rng.integers(0, 2, 8), bool),
            "keys": jax.random.split(jax.random.key(step), 3),
        },
        seed=jnp.uint32(5),
        loss_stats=jnp.zeros(3),
    )


def bits(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return (str(x.dtype), x.shape, np.asarray(x).tobytes())


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [bits(x) for x in jax.tree.leaves(found)] == [bits(x) for x in jax.tree.leaves(expected)]


def save(directory, *steps, **settings):
    with Checkpoints(directory, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), META)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 1 and 2; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 1, 2)
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def flip(path, offset, mask=0x10):
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= mask
    path.write_bytes(data)


# --- Sound checkpoints ---


def test_round_trip_of_every_kind_of_leaf(saved):
    with Checkpoints(saved) as checkpoints:
        state, meta = checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
    assert_equal(state, make_state(2))
    assert {key: meta[key] for key in META} == META
    assert meta["step"] == 2 and checkpoints.damaged == []
    assert load_meta(saved, 1)["step"] == 1


@pytest.mark.slow
def test_one_mesh_to_another_to_one_device(tmp_path):
    def on(mesh, spec):
        everywhere = NamedSharding(mesh, P())
        shardings = jax.tree.map(lambda _: everywhere, make_state(3))
        kernel = NamedSharding(mesh, spec)
        for tree in (shardings.params, shardings.ema, shardings.opt_state[0]["mu"]):
            tree["blocks"]["kernel"] = kernel
        return shardings

    first = make_mesh(dict(data=1, fsdp=4, seq=1, tensor=2))
    second = make_mesh(dict(data=1, fsdp=8, seq=1, tensor=1))
    state = make_state(3)
    abstract = jax.eval_shape(lambda: make_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jax.device_put(state, on(first, P("fsdp", "tensor"))), META)
        checkpoints.wait()
        shardings = on(second, P("fsdp"))
        found, _ = checkpoints.restore(with_shardings(abstract, shardings))
        assert_equal(found, state)
        assert found.params["blocks"]["kernel"].sharding.is_equivalent_to(
            shardings.params["blocks"]["kernel"], 2
        )
        alone, _ = checkpoints.restore(abstract)
        assert_equal(alone, state)
    parts = load_params(tmp_path, shardings=on(second, P(None, "fsdp")).params)
    assert_equal(parts.params, state.params)
    assert len(parts.params["blocks"]["kernel"].sharding.device_set) == 8


def test_parameters_load_without_knowing_the_tree(saved):
    model = load_params(saved)
    assert_equal(model.params, jax.device_get(make_state(2).params))
    assert_equal(model.variables, jax.device_get(make_state(2).variables))
    assert isinstance(model.params["blocks"]["half"], np.ndarray)
    assert model.meta["assets"] == META["assets"] and model.step == 2
    assert_equal(load_params(saved, 1, ema=True).params, jax.device_get(make_state(1).ema))
    with pytest.raises(FileNotFoundError, match="step 7.*\\[1, 2\\]"):
        load_params(saved, 7)
    everywhere = NamedSharding(make_mesh(dict(data=8, fsdp=1, seq=1, tensor=1)), P())
    with pytest.raises(CheckpointMismatchError, match="no parameters \\['gain'\\]"):
        load_params(saved, shardings={"scale": everywhere, "gain": everywhere})


def test_parts_are_read_and_the_log_lists_what_was_left(saved, caplog):
    caplog.set_level("INFO", logger="absl")
    split = NamedSharding(make_mesh(dict(data=1, fsdp=8, seq=1, tensor=1)), P("fsdp"))
    model = load_params(saved, ema=True, shardings={"blocks": {"kernel": split}})
    assert_equal(model.params["blocks"].pop("kernel"), make_state(2).ema["blocks"]["kernel"])
    assert model.params == {"blocks": {}} and model.variables == {}
    assert set(model.records) == {"blocks/kernel", "blocks/half", "scale"}
    left = "3 of params, 2 of ema, 3 of variables, 7 of state"
    assert f"{saved}/2: arrays read: 1 of ema; left: " in caplog.text
    told = caplog.text.split("left: ")[1].splitlines()[0]
    assert sorted(told.split(", ")) == sorted(left.split(", "))
    caplog.clear()
    load_meta(saved)
    assert "arrays read" not in caplog.text


@pytest.mark.slow
def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    big = jnp.arange(1 << 20, dtype=jnp.float32)
    state = make_state(1).replace(params={"w": big}, ema=None)
    expected = checksum.of_array(big)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        params = {"w": state.params["w"]}
        del big
        for _ in range(3):
            params = jax.block_until_ready(overwrite(params))
    assert checksum.of_array(load_params(tmp_path).params["w"]) == expected


def test_saves_by_steps_and_by_time(monkeypatch):
    now = 0.0
    policy = SavePolicy(10, 1.0, 2, clock=lambda: now)
    saved = []
    for step in range(1, 31):
        now += 13.0 if step < 20 else 1.0
        if policy.due(step):
            saved.append(step)
    assert saved == [6, 10, 16, 20, 30], "60 s are over at steps 5 and 15, which are not looked at"
    asked = []
    monkeypatch.setattr(distributed, "exchange", lambda text: asked.append(text) or ["late", text])
    assert policy.due(32) and not policy.due(33), "the clock of process 0 counts"
    assert asked == [""]


@pytest.mark.slow
def test_keeps_the_newest_and_refuses_to_go_back(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2, keep_period_steps=3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 4] and checkpoints.latest_step() == 4
        with pytest.raises(ValueError, match="step 4: .*holds 4"):
            checkpoints.save(4, make_state(4), META)
        with pytest.raises(ValueError, match="after step 6"):
            checkpoints.save(5, make_state(6), META)


def test_what_cannot_be_stored_is_refused(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpoints.restore(state)
        for variables, word in (
            ({"a": 1.0}, "variables/a is a float"),
            ({"a": jnp.zeros((0, 2))}, "empty"),
            ({"a.b": jnp.zeros(2)}, "'a.b'"),
        ):
            with pytest.raises(ValueError, match=word):
                checkpoints.save(1, state.replace(variables=variables), META)
        for meta in ({"x": object()}, {"x": float("nan")}, {"arrays": 1}):
            with pytest.raises(ValueError, match="meta"):
                checkpoints.save(1, state, meta)
        assert checkpoints.steps() == []


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda s: s.replace(params={**s.params, "scale": jnp.bfloat16(0)}),
            ["params/scale: checkpoint float32[], config bfloat16[]"],
        ),
        (
            lambda s: s.replace(variables={**s.variables, "usage": jnp.zeros(9, jnp.int32)}),
            ["variables/usage: checkpoint int32[8], config int32[9]"],
        ),
        (
            lambda s: s.replace(params={"scale": s.params["scale"]}),
            ["params/blocks/kernel: checkpoint float32[8, 16], config none"],
        ),
        (lambda s: s.replace(ema=None), ["ema/scale", "config none", "3 arrays differ"]),
        (
            lambda s: s.replace(variables={**s.variables, "new": jnp.zeros(2)}),
            ["variables/new: checkpoint none, config float32[2]"],
        ),
    ],
)
def test_another_state_is_an_error_not_damage(saved, change, words):
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(CheckpointMismatchError) as error:
            checkpoints.restore(change(make_state(0)))
    assert all(word in str(error.value) for word in words), error.value
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]


# --- Damage ---


@pytest.mark.slow
def test_a_flipped_byte_anywhere_never_returns_wrong_values(saved, tmp_path, caplog):
    """Several places in every file of the newest step: found, or without effect."""
    rng = np.random.default_rng(0)
    expected = {step: make_state(step) for step in (1, 2)}
    detected = 0
    for path in sorted(p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file()):
        directory = tmp_path / "damaged"
        shutil.copytree(saved, directory)
        flip(directory / path, int(rng.integers(0, 1 << 30)), mask=1 << int(rng.integers(0, 8)))
        if path.parent.name == "d":  # array data; reading for inference changes nothing
            model = load_params(directory)
            assert_equal(model.params, jax.device_get(expected[model.step].params))
            assert sorted(p.name for p in directory.iterdir()) == ["1", "2"]
        with Checkpoints(directory) as checkpoints:
            state, meta = checkpoints.restore(expected[1])
        step = int(state.step)
        assert_equal(state, expected[step])
        assert {key: meta[key] for key in META} == META
        if step == 1:
            detected += 1
            assert [s for s, _ in checkpoints.damaged] == [2]
            assert sorted(p.name for p in directory.iterdir()) == ["1", "2.damaged"]
        shutil.rmtree(directory)
    # Arrays of four items and meta; other files are unused or do not change what is read.
    assert detected >= 5
    assert "DAMAGED CHECKPOINT" in caplog.text


@pytest.mark.slow
def test_a_flip_that_orbax_restores_in_silence_is_found(tmp_path):
    """Inside incompressible values, where no checksum of the storage library reaches."""
    noise = np.random.default_rng(0).integers(0, 1 << 32, 1 << 12, dtype=np.uint32)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            state = make_state(step)
            checkpoints.save(step, state.replace(params={"noise": jnp.asarray(noise)}), META)
    for path in (tmp_path / "2" / "params").rglob("d/*"):
        place = path.read_bytes().find(noise.tobytes()[64:128])
        if place >= 0:
            flip(path, place)
            break
    else:
        pytest.fail("the array is not stored as plain bytes")
    with pytest.raises(CheckpointDamagedError, match="checksum of params/noise differs"):
        load_params(tmp_path, 2)
    np.testing.assert_array_equal(load_params(tmp_path, 1).params["noise"], noise)


def break_step(directory, step, how):
    if how == "truncated":
        for path in (directory / str(step) / "state").rglob("d/*"):
            os.truncate(path, path.stat().st_size // 2)
    elif how == "missing files":
        for path in (directory / str(step) / "params").rglob("d/*"):
            path.unlink()
    elif how == "missing item":
        shutil.rmtree(directory / str(step) / "variables")
    elif how == "no meta":
        shutil.rmtree(directory / str(step) / "meta")
    elif how == "empty":
        shutil.rmtree(directory / str(step))
        (directory / str(step)).mkdir()
    elif how == "another step":
        shutil.rmtree(directory / str(step))
        shutil.copytree(directory / "1", directory / str(step))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["truncated", "missing files", "missing item", "no meta", "empty", "another step"]
)
def test_a_broken_step_gives_way_to_the_one_before(copied, how, caplog):
    break_step(copied, 2, how)
    with Checkpoints(copied) as checkpoints:
        state, _ = checkpoints.restore(make_state(0))
        assert_equal(state, make_state(1))
        assert f"{copied}/2" in caplog.text
        checkpoints.save(2, make_state(2), META)  # training goes on and saves it again
        checkpoints.wait()
        assert_equal(checkpoints.restore(make_state(0))[0], make_state(2))
    assert (copied / "2.damaged").is_dir()


def test_nothing_readable_is_an_error_and_changes_nothing(copied):
    break_step(copied, 1, "no meta")
    break_step(copied, 2, "missing files")
    for _ in range(2):  # also when a supervisor tries again
        with Checkpoints(copied) as checkpoints:
            assert checkpoints.latest_step() == 2
            with pytest.raises(CheckpointDamagedError, match="step 2(.|\n)*step 1"):
                checkpoints.restore(make_state(0))
        assert sorted(path.name for path in copied.iterdir()) == ["1", "2"]
    with pytest.raises(CheckpointDamagedError, match="no readable"):
        load_params(copied)
    (copied / "2").rename(copied / "2.damaged")
    shutil.rmtree(copied / "1")
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(CheckpointDamagedError, match="does not start from zero"):
            checkpoints.latest_step()


def test_an_asked_step_has_no_substitute_and_reading_renames_nothing(copied):
    break_step(copied, 2, "missing files")
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(CheckpointDamagedError, match="step 2"):
            checkpoints.restore(make_state(0), step=2)
    with pytest.raises(CheckpointDamagedError, match="step 2"):
        load_params(copied, 2)
    assert load_params(copied).step == 1
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_step_before(copied):
    shutil.copytree(copied / "2", copied / "3.orbax-checkpoint-tmp")
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(3, make_state(3), META)
        checkpoints.wait()
        assert_equal(checkpoints.restore(make_state(0))[0], make_state(3))


# --- Disks that fail ---


@pytest.mark.parametrize(
    "name, error",
    [
        ("save", OSError(errno.ENOSPC, "No space left on device")),
        # As the storage library words it, from its threads.
        ("check_for_errors", ValueError("RESOURCE_EXHAUSTED: No space left on device [28]")),
        ("wait_until_finished", ValueError("RESOURCE_EXHAUSTED: No space left on device [28]")),
    ],
)
def test_a_full_disk_is_told_and_earlier_steps_stay(copied, monkeypatch, name, error):
    def full(*args, **kwargs):
        raise error

    with Checkpoints(copied, keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, name, full)
            with pytest.raises(CheckpointSaveError) as raised:
                checkpoints.check()
                checkpoints.save(3, make_state(3), META)
        assert "the disk is full" in str(raised.value) and str(copied) in str(raised.value)
        assert checkpoints.steps() == [1, 2]
    assert load_params(copied).step == 2


@pytest.mark.slow
def test_a_write_that_fails_in_the_background_is_not_lost(copied):
    """A real refusal by the system, below Orbax: no file may grow beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(1 << 18)), jnp.float32)
    state = make_state(3)
    state = state.replace(params={**state.params, "noise": noise})
    with Checkpoints(copied, keep=1) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            checkpoints.save(3, state, META)
            with pytest.raises(CheckpointSaveError, match="step 3 to .*Complete steps there"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps()[-1] == 2
        assert_equal(checkpoints.restore(make_state(0))[0], make_state(2))
        checkpoints.save(4, make_state(4), META)  # room again
    assert [path.name for path in copied.iterdir()] == ["4"]
    assert load_params(copied).step == 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_checksum_ignores_sharding_and_sees_single_bits(dtype, monkeypatch):
    """On the devices and by NumPy alike, with an array that is split in any way."""
    mesh = make_mesh(dict(data=1, fsdp=4, seq=1, tensor=2))
    x = np.random.default_rng(0).normal(scale=9, size=(8, 2, 24))
    x = x > 0 if dtype == "bool" else x.astype(jnp.dtype(dtype))
    specs = (P(), P("fsdp"), P(None, "tensor", "fsdp"), P(None, None, ("fsdp", "tensor")))
    parts = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs]
    expected = checksum.of_array(x)
    assert {checksum.of_array(part) for part in parts} == {expected}
    monkeypatch.setattr(checksum, "SMALL", 0)
    assert {checksum.of_array(part) for part in [x, *parts]} == {expected}
    monkeypatch.undo()

    changed = {expected}
    width = x.dtype.itemsize
    bits = [0] if dtype == "bool" else [0, 3, 8 * width - 1]
    cases = list(itertools.product((0, 1, 24, 383), bits))
    for index, bit in cases:
        word = x.copy()
        word.reshape(-1).view(f"u{width}")[index] ^= 1 << bit
        changed.add(checksum.of_array(word))
    swapped = x.copy()
    swapped[0], swapped[1] = x[1], x[0]
    changed.add(checksum.of_array(swapped))
    assert len(changed) == len(cases) + 2


def rewrite_meta(directory, step, change):
    """As another version of the code would have written it."""
    path = directory / str(step) / "meta" / "metadata"
    payload = json.dumps(change(json.loads(json.loads(path.read_text())["payload"])))
    digest = xxhash.xxh3_64_hexdigest(payload.encode())
    path.write_text(json.dumps({"payload": payload, "xxh3_64": digest}))


def test_an_older_format_is_named(copied):
    rewrite_meta(copied, 2, lambda meta: meta | {"format_version": 1})
    with pytest.raises(
        CheckpointMismatchError, match=f"format 1.*reads {FORMAT_VERSION}.*no way from 1"
    ):
        load_params(copied)
    rewrite_meta(copied, 2, lambda meta: meta | {"format_version": 9})
    with pytest.raises(CheckpointMismatchError, match=f"9, this code reads {FORMAT_VERSION}$"):
        load_params(copied)


def test_an_older_format_is_upgraded_where_there_is_a_way(copied, monkeypatch):
    """Two made-up changes: an array moved from blocks/half to half, and before that the fingerprint
    of the data had another name."""

    def older(meta):
        meta["fingerprint"] = meta.pop("data")
        return meta | {"format_version": 0}

    def rename(meta):
        for record in meta["arrays"]["params"] + meta["arrays"]["ema"]:
            if record["path"] == ["blocks", "half"]:
                record |= {"path": ["half"], "stored_path": ["blocks", "half"]}
        return meta

    def move(meta):
        meta["data"] = meta.pop("fingerprint")
        return meta

    rewrite_meta(copied, 2, older)
    monkeypatch.setitem(manifest.UPGRADES, 0, move)
    with pytest.raises(CheckpointMismatchError, match="format 0.*no way from 1"):
        load_params(copied)
    monkeypatch.setitem(manifest.UPGRADES, 1, rename)
    model, expected = load_params(copied), make_state(2)
    assert model.meta["format_version"] == FORMAT_VERSION and model.meta["data"] == META["data"]
    half = expected.params["blocks"].pop("half")
    assert_equal(model.params, jax.device_get({**expected.params, "half": half}))
    with Checkpoints(copied) as checkpoints:
        average = {**expected.ema, "half": expected.ema["blocks"].pop("half")}
        state = expected.replace(params=model.params, ema=average)
        assert_equal(checkpoints.restore(state)[0], state)
        with pytest.raises(CheckpointMismatchError, match="4 arrays differ"):
            checkpoints.restore(state, step=1)  # which is of the new format, with the old names


def test_format_2_had_no_statistics_of_the_loss(copied):
    def older(meta):
        meta["arrays"]["state"] = [
            record for record in meta["arrays"]["state"] if record["path"] != ["loss_stats"]
        ]
        return meta | {"format_version": 2}

    rewrite_meta(copied, 2, older)
    with Checkpoints(copied) as checkpoints:
        state, meta = checkpoints.restore(make_state(2), step=2)
    assert_equal(state, make_state(2))
    assert meta["format_version"] == FORMAT_VERSION and not state.loss_stats.any()


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory:/run", Path("gs://bucket/run")])
def test_urls_are_refused_with_what_to_do(url):
    for read in (Checkpoints, load_params, load_meta):
        with pytest.raises(ValueError, match="is a URL.*Mount the bucket"):
            read(url)
    assert not Path("gs:").exists() and not Path("memory:").exists()


def test_meta_is_plain_json_on_disk(saved):
    document = json.loads((saved / "2" / "meta" / "metadata").read_text())
    content = json.loads(document["payload"])
    assert content["config"] == META["config"]
    assert content["format_version"] == FORMAT_VERSION
