"""A run behind a gs:// URL is the run that it is in a directory."""

import threading
from types import SimpleNamespace

import pytest
import tiny

from data_pipelines.storage import places
from lapa_jax import train
from lapa_jax.runs.loaded import load
from lapa_jax.training import checkpoint, clock

STEPS = 6
RUN = "bucket/runs/one"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]


@pytest.fixture(scope="module")
def config(tiny_data):
    changes = dict(steps=STEPS, checkpoint__every_steps=2, optimizer__ema_decay=0.9)
    return tiny.config("action_finetuning", tiny_data, **changes)


@pytest.fixture(scope="module")
def whole(config, quick_compile, tmp_path_factory):
    """The run in a directory."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train.train(config, workdir)
    return workdir


def test_a_run_that_is_stopped_crashes_and_is_killed_in_a_save(storage, config, whole, monkeypatch):
    workdir = places.directory(f"gs://{RUN}")
    tiny.disturb(monkeypatch, stop_at=1, crash_at=5)
    assert not train.train(config, str(workdir))
    stopped_at = checkpoint.list_steps(workdir / "checkpoints")[-1]
    assert stopped_at < 4
    with pytest.raises(tiny.Crash):
        train.train(config, str(workdir))
    monkeypatch.undo()

    assert checkpoint.list_steps(workdir / "checkpoints")[-1] == 4
    for key in storage.names(f"{RUN}/checkpoints/4/"):  # a save that never ended
        if not key.endswith("/checkpoints/4/commit_success.txt"):
            storage.write(key.replace("/4/", "/5/"), storage.objects[key][0][:-1])
    assert checkpoint.list_steps(workdir / "checkpoints")[-1] == 4
    _, told, error = tiny.lapa("status", workdir)
    assert "checkpoint   step 4" in told, error

    assert train.train(config, str(workdir))
    assert tiny.result(workdir) == tiny.result(whole)
    assert not storage.names(f"{RUN}/checkpoints/5/")
    assert "finished" in tiny.succeed("status", workdir)
    attempts = clock.read_goodput(workdir)
    assert [one["last_step"] for one in attempts] == [stopped_at, 4, STEPS]


def test_it_is_read_as_any_run(storage, whole):
    one, other = load(f"gs://{RUN}"), load(whole)
    assert (one.step, one.params_hash) == (STEPS, other.params_hash)
    assert one.assets == other.assets and one.config.to_dict() == other.config.to_dict()


def test_a_flipped_byte_is_found_and_the_step_before_is_used(storage, config, whole, caplog):
    key = max(
        storage.names(f"{RUN}/checkpoints/{STEPS}/ema/"), key=lambda k: len(storage.objects[k][0])
    )
    damaged = bytearray(storage.objects[key][0])
    damaged[len(damaged) // 2] ^= 16
    storage.write(key, damaged)
    before = storage.names(RUN)
    assert load(f"gs://{RUN}").step == 4
    assert f"DAMAGED CHECKPOINT: gs://{RUN}/checkpoints/{STEPS}" in caplog.text
    assert storage.names(RUN) == before, "reading changes nothing"

    assert train.train(config, f"gs://{RUN}")
    assert f"step {STEPS} renamed to gs://{RUN}/checkpoints/{STEPS}.damaged" in caplog.text
    aside = key.replace(f"/{STEPS}/", f"/{STEPS}.damaged/")
    assert storage.objects[aside][0] == damaged
    assert tiny.result(places.directory(f"gs://{RUN}")) == tiny.result(whole)


def test_what_grows_is_written_now_and_then_and_before_a_save(storage, monkeypatch):
    def there():
        return storage.objects["bucket/lines"][0]

    clock = [0.0]
    monkeypatch.setattr(places, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    storage.write("bucket/lines", b"0\n")
    file = places.Upload(places.directory("gs://bucket/lines"))
    for line, seconds, expected in (
        ("1\n", 0.0, b"0\n1\n"),
        ("2\n", places.UPLOAD_SECONDS - 1, b"0\n1\n"),
        ("3\n", 1.0, b"0\n1\n2\n3\n"),
        ("4\n", 1.0, b"0\n1\n2\n3\n"),
    ):
        clock[0] += seconds
        file.write(line)
        file.flush()
        assert there() == expected
    file.sync()
    assert there() == b"0\n1\n2\n3\n4\n"


def test_what_is_no_place_for_a_run_is_refused(monkeypatch):
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(places, "importlib", nothing)
    with pytest.raises(ValueError, match=r"gcsfs: pip install gcsfs"):
        places.directory("gs://bucket/run")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_storage_that_cannot_be_reached_is_told_soon(hangs, monkeypatch, caplog):
    ended = threading.Event()

    def connect(address, timeout):
        assert address == places.storage.GOOGLE and timeout <= 12
        if hangs:
            ended.wait()
        raise OSError("no such name")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(places.storage.socket, "create_connection", connect)
    monkeypatch.setattr(places.storage, "TELL_SECONDS", 0)
    monkeypatch.setattr(places.storage, "REACH_SECONDS", 0.05)
    places.storage.reach.cache_clear()
    told = "no answer in 0.05 s" if hangs else "no such name"
    with pytest.raises(ConnectionError, match=f"gs:// cannot .*.com:443: {told}"):
        places.directory("gs://bucket/run")
    ended.set()
    if hangs:
        assert "waiting for gs:// (storage.googleapis.com:443)" in caplog.text
