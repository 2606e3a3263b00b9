"""Runs, data and exports of an earlier version are read, continued, imported and served.

It wrote golden/earlier by what commands.json tells, and into expected.json what it said of them.
Paths in there are relative: everything runs in a copy of the folder.
"""

import base64
import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import requests
import simplejpeg
import tiny
from PIL import Image

import lapa_jax
from data_pipelines.index import load_index
from data_pipelines.loader import Loader
from lapa_jax.interop import hf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "inside")]

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
COMMANDS = json.loads((EARLIER / "commands.json").read_text())
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
CORPUS = "corpus/robot"
RUN_CONFIG = {"safetensors": "config.json", "hf": "lapa_run.json"}
FORMATS = ["safetensors", pytest.param("hf", marks=tiny.needs_torch)]
IMAGE = np.random.default_rng(7).integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return shutil.copytree(EARLIER, tmp_path_factory.mktemp("earlier") / "copy")


@pytest.fixture
def inside(copied, monkeypatch):
    """In a copy, in which nothing changes."""
    monkeypatch.chdir(copied)


@pytest.fixture
def own(inside, tmp_path, monkeypatch):
    """In a copy that a test may change."""
    monkeypatch.chdir(shutil.copytree(EARLIER, tmp_path / "copy"))


def located(argv: list[str]) -> list[str]:
    """With the place of the config files."""
    return [f"{tiny.ROOT}/{x}" if x.startswith("experiments/") else x for x in argv]


def alone(argv: list[str]) -> str:
    """Runs a command as the earlier version did: with one thread, as the bits of a sum depend on
    how many share it, and with programs that were compiled so. Its output."""
    env = tiny.environment() | {"PJRT_NPROC": "1", "PYTHONPATH": str(tiny.ROOT)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-m", "lapa_jax", *located(argv)],
        env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def rounds_as_then() -> bool:
    """Whether programs of XLA give nearly the same here: they do with AVX2 and with what is newer,
    to the last bits, which are those of the kernels that are chosen for a CPU."""
    cpu = Path("/proc/cpuinfo")
    return jax.__version__ == EXPECTED["jax"] and cpu.exists() and " avx2 " in cpu.read_text()


def as_now(meta: dict) -> dict:
    """With today's keys in the config, without the version that wrote it, the control rate, which
    runs did not keep then, and what a run may change."""
    told = ("code_version", "control_hz")
    provenance = {k: v for k, v in meta["provenance"].items() if k not in told}
    config = tiny.configs.upgrade(meta["config"]) | {"compile_effort": "full"}
    return meta | {"provenance": provenance, "config": config}


def assert_same(workdir: str, expected: dict) -> None:
    """A run has come to what it came to with the earlier version, but for what sums are rounded by:
    1e-9 of a value, where a policy's program is another one or the CPU is."""
    found = tiny.result(Path(workdir))
    meta = found["meta"]
    meta["assets"] = {name: digest(as_then(name, data)) for name, data in meta["assets"].items()}
    assert as_now(meta) == as_now(expected["meta"])
    assert found["step"] == expected["step"] == 4
    assert found["arrays"].keys() == expected["arrays"].keys()
    assert len(found["metrics"]) == len(expected["metrics"]) == 4
    for row, then in zip(found["metrics"], expected["metrics"], strict=True):
        assert row.keys() == then.keys()
        for name in ("loss", "param_norm", "learning_rate"):
            near = 1e-6 if rounds_as_then() else 1e-3
            np.testing.assert_allclose(row[name], then[name], rtol=near, err_msg=name)


def as_then(name: str, data: bytes) -> bytes:
    """An asset without the name of its codec, which came later."""
    if name != "action_bins.json":
        return data
    values = json.loads(data)
    values.pop("kind", None)
    return json.dumps(values).encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_same_policy(workdir: str, expected: dict) -> None:
    policy = lapa_jax.load_policy(workdir)
    assert policy.params_hash == expected["params_hash"]
    acts = policy.config.stage == "action_finetuning"
    predict = policy.predict_action if acts else policy.predict_latent
    values = np.asarray(predict(IMAGE, EXPECTED["instruction"]))
    np.testing.assert_array_equal(values, np.array(expected["values"], values.dtype))
    found = policy.predict(IMAGE, EXPECTED["instruction"])
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_allclose(found.probabilities, expected["probabilities"], rtol=1e-5)


@pytest.mark.parametrize("name", COMMANDS["configs"])
def test_a_config_is_what_it_was(name):
    _, spec, *overrides = located(COMMANDS["configs"][name])
    then = json.loads(Path("configs", f"{name}.json").read_text())
    now = tiny.configs.to_dict(tiny.configs.load(spec, overrides))
    # Since then, and a run may change it.
    assert now.pop("compile_effort") == ("least" if "quick=True" in spec else "full")
    assert now | {"compile_effort": "full"} == tiny.configs.upgrade(then)
    if name in COMMANDS["runs"]:
        assert then == json.loads(Path(name, "config.json").read_text())


@pytest.mark.parametrize("name", COMMANDS["runs"])
def test_a_step_holds_what_it_held(name):
    expected = EXPECTED["data"][name]
    told = json.loads(tiny.succeed("data", "batch", "--workdir", name, "--step", 0, "--json"))
    assert told == {key: expected[key] for key in ("fingerprint", "examples")}
    load = lapa_jax.load_quantizer if name == "quantizer" else lapa_jax.load_policy
    config, fields = load(name).config, expected["fields"]
    with Loader(config.data, fields=fields, global_batch=8, seed=config.seed) as loader:
        assert loader.fingerprint(0) == expected["fingerprint"]
        batch = loader.batch(0)
    assert digest(batch["frames"].tobytes()) == expected["frames"]
    for key in set(fields) & {"instruction", "action", "latent_action"}:
        assert batch[key].tolist() == [example[key] for example in expected["examples"]]


def test_an_index_and_its_labels():
    expected, index = EXPECTED["corpus"], load_index(CORPUS, split="train")
    assert index.hash == expected["index_hash"]
    stored = np.load(f"{CORPUS}/labels/{tiny.LABEL_SET}/train.npy")
    assert stored.tolist() == expected["labels"] and len(stored) == index.num_frames
    assert "sound" in tiny.succeed("data", "verify", CORPUS)


def test_labels_made_again_are_the_same(own):
    *argv, name = COMMANDS["label"]
    assert name == tiny.LABEL_SET
    tiny.succeed(*argv, "again")
    old, new = (Path(CORPUS, "labels", x) for x in (name, "again"))
    assert sorted(x.name for x in old.iterdir()) == sorted(x.name for x in new.iterdir())
    assert (old / "train.npy").read_bytes() == (new / "train.npy").read_bytes()
    then, now = (json.loads((x / "train.manifest.json").read_text())["content"] for x in (old, new))
    assert (then.pop("format"), now.pop("format")) == (1, 2)
    assert (now.pop("dtype"), now.pop("shape")) == ("int16", [1])  # what format 1 always has
    for made in (then, now):
        del made["provenance"]["code_version"]
    assert then == now


def test_a_quantizer_says_what_it_said():
    expected, quantizer = EXPECTED["quantizer"], lapa_jax.load_quantizer("quantizer")
    assert quantizer.params_hash == expected["params_hash"]
    index = load_index(CORPUS, split="train")
    steps = round(quantizer.config.data.corpora.robot.window_seconds * tiny.FPS)

    def frames(rows: np.ndarray) -> np.ndarray:
        found = []
        for row in rows:
            episode = int(index.episode_of_rows(np.array([row]))[0])
            data = index.shards[int(index.shard_of_episode[episode])].read_bytes()
            start = int(index.frame_offset[row])
            found.append(simplejpeg.decode_jpeg(data[start : start + int(index.frame_length[row])]))
        return np.stack(found)

    rows = np.array(expected["rows"])
    first, last = frames(rows), frames(rows + steps)
    assert digest(first.tobytes() + last.tobytes()) == expected["frames"]
    np.testing.assert_array_equal(quantizer.encode(first, last), expected["z"])
    later = np.asarray(quantizer.decode(first[:3], np.array(expected["z"])[:3]))
    np.testing.assert_allclose(later.mean((1, 2)), expected["decoded_means"], rtol=1e-5)


@pytest.mark.parametrize("name", ["latent_vla", "action_vla"])
def test_a_policy_says_what_it_said(name):
    assert_same_policy(name, EXPECTED[name])


@pytest.mark.parametrize("name", ["quantizer", "latent_vla"])
def test_a_stopped_run_continues(own, name):
    output = alone(COMMANDS["runs"][name])
    assert f"{name} continues at step 2 of 4" in output
    assert_same(name, EXPECTED["continued"][name])


def test_a_finished_run_stays_as_it_is(own):
    tiny.succeed(*located(COMMANDS["runs"]["action_vla"]))
    assert_same("action_vla", EXPECTED["finished"]["action_vla"])


def test_a_run_starts_from_an_earlier_one(own):
    *argv, workdir = COMMANDS["runs"]["action_vla"]
    alone([*argv, "again"])
    assert_same("again", EXPECTED["finished"][workdir])
    told = [Path(x, "init_from.json").read_text() for x in (workdir, "again")]
    assert told[0] == told[1]


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_is_imported(own, form):
    tiny.succeed("import", "--format", form, "--source", f"export/{form}", "--out", "imported")
    assert_same_policy("imported", EXPECTED["action_vla"])


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_is_what_it_was(own, form):
    old = Path("export", form).rename("old")
    tiny.succeed(*COMMANDS["export"][form])
    new = Path("export", form)
    # A model card came later, and the files that modeling_lapa.py imports.
    later = {"README.md"} | (set(hf.FILES) if form == "hf" else set())
    assert {x.name for x in old.iterdir()} | later == {x.name for x in new.iterdir()}
    for path in (*old.glob("*.json"), *old.glob("*.safetensors"), *old.rglob("*.model")):
        then, now = path.read_bytes(), (new / path.relative_to(old)).read_bytes()
        if path.name == RUN_CONFIG[form]:
            assert tiny.configs.upgrade(json.loads(then)) == json.loads(now)
        elif (form, path.name) == ("hf", "config.json"):
            then, now = json.loads(then), json.loads(now)
            own, ours = then.pop("lapa"), now.pop("lapa")
            assert then == now and own.pop("limits") == ours["heads"][own["head"]]["limits"]
            assert own.items() <= ours.items()
        elif path.name != "parity.json":
            assert then == now, path


def test_a_policy_is_served(copied):
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "PNG")
    message = {
        "image": base64.b64encode(file.getvalue()).decode(),
        "instruction": EXPECTED["instruction"],
    }
    with tempfile.TemporaryFile("w+") as output:
        flags = ["--port", "0", "--batch_sizes", "1"]
        process = tiny.command(["serve", "--workdir", str(copied / "action_vla"), *flags], output)
        try:
            url, told, deadline = None, "", time.monotonic() + 120
            while not url and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                output.seek(0)
                told = output.read()
                url = re.search(r"served at (http://\S+)", told)
            assert url, told
            while requests.get(f"{url[1]}/healthz", timeout=60).status_code != 200:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            found = requests.post(f"{url[1]}/act", json=message, timeout=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert found.status_code == 200, found.text
    np.testing.assert_array_equal(
        np.array(found.json()["a"], np.float32),
        np.array(EXPECTED["action_vla"]["values"], np.float32),
    )


def test_status_of_earlier_runs():
    _, told, _ = tiny.lapa("status", ".")
    for name, step in (("quantizer", 2), ("latent_vla", 2), ("action_vla", 4)):
        assert re.search(rf"^{name} +\w+ +{step} +4 ", told, re.MULTILINE), told
