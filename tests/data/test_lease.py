"""Who holds a directory, on one machine, on several, in a bucket, and who takes it later."""

import contextlib
import dataclasses
import json
import os
import subprocess
import threading

import pytest

from data_pipelines.storage import LockedError, lease, places


@pytest.fixture(params=["a disk", "a bucket"])
def path(request, tmp_path, monkeypatch):
    """Of a lock file, where a sign of life comes every 0.02 s and a holder is dead after 0.4 s."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.4)
    if request.param == "a bucket":
        storage = request.getfixturevalue("storage")
        storage.objects.clear()
        return places.directory("gs://bucket/run/run.lock")
    return tmp_path / "run" / "run.lock"


def take(path):
    return lease.Lease(path, path.parent, "choose another")


def holder(**changes) -> lease.Holder:
    own = lease.Holder("there", os.getpid(), 0.0, lease._machine(), "key")
    return dataclasses.replace(own, **changes)


def leave(path, found) -> None:
    """The lock file of a process that was killed."""
    places.make(path.parent)
    path.write_text(json.dumps(dataclasses.asdict(found)))


def test_the_loser_is_told_who_holds_it_and_touches_nothing(path):
    with take(path):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on .* since 2.*or choose an"):
            take(path)
        assert lease.holder_of(path).pid == os.getpid() and lease.silent_seconds(path) < 30
    assert not path.exists()
    take(path).release()


def test_a_holder_that_was_killed_here_is_replaced_at_once(path, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1e6)
    ended = subprocess.Popen(["true"])
    ended.wait()
    leave(path, holder(pid=ended.pid))
    with take(path) as held:
        held.confirm()
        assert lease.holder_of(path).pid == os.getpid()


@pytest.mark.parametrize("lives", [False, True])
def test_of_another_machine_a_sign_of_life_is_awaited(path, lives):
    leave(path, holder(machine="another"))
    ended = threading.Event()

    def live():
        beat = 0
        while not ended.wait(0.02):
            beat += 1
            leave(path, holder(machine="another", beat=beat))

    thread = threading.Thread(target=live)
    if lives:
        thread.start()
    refused = pytest.raises(LockedError, match=f"process {os.getpid()} on there since 19")
    with refused if lives else take(path):
        if lives:
            take(path)
    ended.set()
    if lives:
        thread.join()
        assert lease.holder_of(path).machine == "another", "it is left alone"


def test_a_torn_lock_file_is_no_obstacle(path):
    places.make(path.parent)
    path.write_text('{"host": "the')
    with take(path):
        assert lease.holder_of(path).pid == os.getpid()


def test_who_was_believed_dead_learns_it(path):
    held = take(path)
    leave(path, holder(machine="another"))
    with pytest.raises(LockedError, match="was taken over by process"):
        held.confirm()
    held.release()
    assert lease.holder_of(path).machine == "another"


def test_without_locks_of_the_system_the_file_counts(path, monkeypatch):
    def no_lock(*args, **kwargs):
        raise OSError(lease.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lease, "Lock", no_lock)
    places.make(path.parent)
    with take(path), contextlib.suppress(LockedError):
        take(path).release()
        raise AssertionError("two hold it")
