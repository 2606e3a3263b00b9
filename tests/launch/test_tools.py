"""The launch tools: their dry runs, and real runs against programs that record their arguments."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest
import tiny

from lapa_jax.aot import topology
from lapa_jax.machine import xla_flags
from launch import gke, gpu_host, slurm, tpu_pod

TRAIN = ["lapa", "train", "--config", "experiments/latent_vla/paper.py:batch=512"]
TRAIN += ["--workdir", "/mnt/lapa/runs/x"]
IMAGE = "--image=europe-docker.pkg.dev/project/lapa/tpu:1"
PODS = {
    "create": ["create", "pod", "--accelerator=v5p-64", "--spot", "--zone=z", "--project=p"],
    "create-slices": ["create", "pod", "--accelerator=v5e-256", "--slices=2"],
    "install": ["install", "pod", IMAGE, "--nfs=10.0.0.2:/share", "--env_file=secrets.env"],
    "install-slices": ["install", "pod", IMAGE, "--env_file=secrets.env", "--slices=2"],
    "run": ["run", "pod", "--accelerator=v5p-64", IMAGE, "--", *TRAIN],
    "run-slices": ["run", "pod", "--accelerator=v5e-256", IMAGE, "--slices=2", "--", *TRAIN],
    "tail": ["tail", "pod", "--zone=z"],
    "stop": ["stop", "pod"],
    "delete": ["delete", "pod", "--zone=z"],
    "keep": ["keep", "pod", "--accelerator=v6e-256", "--spot", IMAGE, "--", *TRAIN],
}
GKE = {
    "run": ["run", "job", "--accelerator=v5p-64", IMAGE, "--claim=data", "--", *TRAIN],
    "run-slices": [
        *["run", "job", "--accelerator=tpu7x-128", "--slices=2", "--spot", IMAGE],
        *["--claim=data", "--secret=keys", "--namespace=ml", "--", *TRAIN],
    ],
    "tail": ["tail", "job"],
    "delete": ["delete", "job", "--namespace=ml"],
    "xpk": [
        *["xpk", "job", "--accelerator=v5e-256", "--cluster=c", "--zone=z", "--spot", IMAGE],
        *["--env_file=secrets.env", "--slices=2", "--", *TRAIN],
    ],
}
SLURM = {
    "gpu": ["--hardware=h100", "--nodes=8", "--partition=gpu", "--exact", "--", *TRAIN],
    "node": [
        *["--hardware=h200", "--process_per=node", "--env_file=secrets.env", "--account=a"],
        *["--", *TRAIN],
    ],
}
HOST = {
    "one": ["--hardware=h100", "--", *TRAIN],
    "eight": ["--hardware=b200", "--processes=8", "--exact", "--", *TRAIN],
}
TOOLS = {"tpu_pod": (tpu_pod, PODS), "gke": (gke, GKE), "slurm": (slurm, SLURM)}
TOOLS |= {"gpu_host": (gpu_host, HOST)}
CASES = [(tool, case) for tool, (_, cases) in TOOLS.items() for case in cases]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory with an environment file of mode 600."""
    monkeypatch.chdir(tmp_path)
    secrets = tmp_path / "secrets.env"
    secrets.write_text("# mine\nHF_TOKEN=hidden\n")
    secrets.chmod(0o600)
    return tmp_path


def dry(tool: str, arguments: list[str]) -> list[str]:
    """The arguments with --dry_run, which follows the action where there are actions."""
    at = 1 if tool in ("tpu_pod", "gke") else 0
    return [*arguments[:at], "--dry_run", *arguments[at:]]


def printed_by(tool: str, case: str, capsys) -> str:
    """What a dry run prints, with this directory as HERE."""
    module, cases = TOOLS[tool]
    assert module.main(dry(tool, cases[case])) == 0
    return capsys.readouterr().out.replace(os.getcwd(), "HERE")


@pytest.mark.parametrize(("tool", "case"), CASES)
def test_dry_runs_print_these_commands(tool, case, here, capsys):
    printed = printed_by(tool, case, capsys)
    assert "hidden" not in printed
    golden = tiny.ROOT / "tests" / "golden" / "launch" / f"{tool}-{case}.sh"
    if os.environ.get("LAPA_UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(printed)
    assert printed == golden.read_text(), "if this is meant: LAPA_UPDATE_GOLDEN=1, and review"


PAPER = ["lapa", "train", "--workdir", "/mnt/lapa/runs/x", "--config"]


@pytest.mark.parametrize(
    ("tool", "flags", "command", "said"),
    [
        (
            tpu_pod,
            "run pod --accelerator=v5p-128",
            [":hardware=v5p-64"],
            "laid out for v5p-64, and",
        ),
        (gke, "run j --claim=c --slices=2 --accelerator=v5p-64", [":hardware=v5p-64"], "2xv5p-64"),
        (slurm, "--hardware=h100 --nodes=4", [":hardware=h100-64"], "and h100-32 is asked for"),
        (gpu_host, "--hardware=h200", [":hardware=h100-8"], "and h200-8 is asked for"),
        (gpu_host, "--hardware=h100", ["", "--config.mesh.data=3"], "but there are 8"),
        (gpu_host, "--hardware=h100", [":batch=60"], "global_batch=60 must be a multiple"),
        (gpu_host, "--hardware=h100", ["", "--config.stepz=3"], "stepz"),
        (gpu_host, "--hardware=h100", ["", "--config.steps=-1"], "steps"),
        (slurm, "--hardware=h100 --nodes=0", [""], "0 is no whole number of at least 1"),
        (slurm, "--hardware=h100 --time=soon", [""], "--time soon"),
        (slurm, "--hardware=h100 --time=00:05:00", [""], "--time 00:05:00 is no longer than"),
        (slurm, "--hardware=h100", ["", "--config.steps", "10"], "written --config.key=value"),
        (slurm, "--hardware=h100", ["", "--confg.steps=10"], "unknown arguments"),
        (tpu_pod, "run pod --accelerator=v5p-64", ["", "--workdir=x"], "below /mnt/lapa/"),
        (gke, "run J_1 --claim=c --accelerator=v5p-64", [""], "J_1 must be"),
        (tpu_pod, "run pod --accelerator=v5p-65", [""], "known are v5p-8,"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(tool, flags, command, said, capsys):
    first, *rest = command
    config = f"experiments/latent_vla/paper.py{first}"
    flags = [*flags.split(), *([IMAGE] if tool in (tpu_pod, gke) else []), "--dry_run"]
    try:
        code = tool.main([*flags, "--", *PAPER, config, *rest])
    except SystemExit as exit:  # argparse
        code = exit.code
    told = capsys.readouterr()
    assert code == 2 and said in told.err.splitlines()[-1] and not told.out, told.err


def test_time_limits_are_those_of_sbatch():
    read = {"99": 5940, "10:30": 630, "1:00:01": 3601, "2-3": 183600, "1-0:10": 87000, "0": inf}
    assert {limit: slurm.seconds_of(limit) for limit in read} == read


def test_a_config_of_the_image_is_left_to_it(here, capsys):
    for spec in ("/mnt/lapa/mine.py", "mine.py:x=1"):
        assert gpu_host.main(["--hardware=h100", "--dry_run", "--", *PAPER, spec]) == 0
        told = capsys.readouterr()
        assert "is not checked here" in told.err and spec in told.out


def commands_of(file: Path) -> list[list[str]]:
    """The launch commands in the code blocks of a text, without continued lines and comments."""
    blocks = re.findall(r"```bash\n(.*?)```", file.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if line.startswith("python -m launch.")]
    return [shlex.split(line, comments=True)[2:] for line in lines]


@pytest.mark.parametrize("name", ["README.md", "launch/README.md"])
def test_commands_of_the_run_book_run(name, here, capsys):
    commands = commands_of(tiny.ROOT / name)
    assert len(commands) >= 2
    for module, *arguments in commands:
        main = importlib.import_module(module).main
        assert main(dry(module.removeprefix("launch."), arguments)) == 0, arguments
        assert capsys.readouterr().out


def test_only_training_is_supervised(here, capsys):
    for command, supervised in ((TRAIN, 1), (["lapa", "doctor"], 0)):
        arguments = ["run", "pod", "--accelerator=v5p-64", IMAGE, "--", *command]
        assert tpu_pod.main(dry("tpu_pod", arguments)) == 0
        out = capsys.readouterr().out
        assert out.count("launch.supervise") == supervised and shlex.join(command) in out


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.prefix) / "bin"))
    if found is None:
        pytest.skip(f"{name} is not installed: make test, or pip install -r requirements/dev.txt")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "case"), CASES)
def test_shellcheck_finds_nothing(tool, case, here, capsys):
    printed = printed_by(tool, case, capsys)
    scripts = [printed]
    if tool == "slurm":
        scripts.append(printed.partition("\n")[2].removesuffix("END\n"))
    # What is sent to other machines.
    words = shlex.split(printed) if tool == "tpu_pod" else []
    scripts += [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
    for number, script in enumerate(scripts):
        file = here / f"{number}.sh"
        file.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
    done = subprocess.run(
        # SC2016: expressions in single quotes are for the other machine.
        [program("shellcheck"), "--exclude=SC2016", *map(str, sorted(here.glob("*.sh")))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("tool", "case"), [c for c in CASES if "--" in TOOLS[c[0]][1][c[1]]])
def test_secrets_are_refused_on_command_lines(tool, case, here, capsys):
    module, cases = TOOLS[tool]
    leaking = [*cases[case], "--env", "WANDB_API_KEY=hunter2"]
    assert module.main(dry(tool, leaking)) == 2
    told = capsys.readouterr()
    assert "WANDB_API_KEY=..." in told.err
    assert "hunter2" not in told.out + told.err


def test_an_environment_file_that_others_can_read_is_refused(here, capsys):
    (here / "secrets.env").chmod(0o644)
    assert tpu_pod.main(dry("tpu_pod", PODS["install"])) == 2
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("tpu_pod", ["create", "pod", "--accelerator=tpu7x-64"], "GKE only"),
        ("tpu_pod", ["create", "pod", "--accelerator=h100-8"], "offer v4"),
        ("tpu_pod", ["run", "pod", "--accelerator=v5p-64", IMAGE], "behind --"),
        ("tpu_pod", ["delete", "pod", "--", "lapa"], "takes no command"),
        ("gke", ["run", "j", "--accelerator=v5p-66", IMAGE, "--claim=c", "--", "x"], "known are"),
        ("slurm", ["--hardware=v5p", "--", "x"], "is a TPU"),
        ("gpu_host", ["--hardware=h100", "--processes=3", "--", "x"], "must divide"),
        ("gpu_host", ["--hardware=h300", "--", "x"], "must be one of"),
    ],
)
def test_wrong_values_are_named(tool, arguments, said, here, capsys):
    assert TOOLS[tool][0].main(arguments) == 2
    assert said in capsys.readouterr().err


# --- Against programs that record their arguments ---

FAKE = """#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path({folder!r})
words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
stdin = sys.stdin.read() if words[0] == "sbatch" or words[-2:] == ["-f", "-"] else ""
with open(folder / "calls", "a") as file:
    file.write(json.dumps([words, stdin]) + chr(10))
answers = json.loads((folder / "answers").read_text())
for part, replies in answers.items():
    if part in " ".join(words) and replies:
        reply = replies.pop(0)
        (folder / "answers").write_text(json.dumps(answers))
        if reply is None:
            sys.exit("ERROR: there is none")
        print(reply)
"""


@pytest.fixture
def programs(here, monkeypatch):
    """gcloud, kubectl, sbatch and xpk; `answers` gives replies by a part of the command."""
    folder = here / "programs"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "sbatch", "xpk"):
        file = folder / name
        file.write_text(FAKE.format(python=sys.executable, folder=str(folder)))
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(tpu_pod, "POLL_SECONDS", 0.0)

    def answers(**replies: list) -> None:
        (folder / "answers").write_text(json.dumps(replies))

    def calls() -> list[tuple[list[str], str]]:
        return [tuple(json.loads(line)) for line in (folder / "calls").read_text().splitlines()]

    answers()
    return answers, calls


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "case"), [c for c in CASES if c[0] != "gpu_host"])
def test_what_runs_is_what_the_dry_run_prints(tool, case, programs, capsys):
    answers, calls = programs
    answers(**{"list": ["", "ACTIVE"], "inspect": ["absent"]})
    if case == "keep":
        answers(list=["ACTIVE", "ACTIVE"], inspect=["absent", "exited 0"])
    elif case.startswith("create"):
        answers(list=["ACTIVE"])
    module, cases = TOOLS[tool]
    printed = printed_by(tool, case, capsys)
    assert module.main(cases[case]) == 0
    made = [words for words, _ in calls() if not {"list", "create"} & set(words)]
    script = printed.partition(" <<'END'\n")
    expected = [shlex.split(line) for line in script[0].splitlines()]
    expected = [words for words in expected if not {"list", "create"} & set(words)]
    if case == "keep":
        made = made[:-1]  # the question that "exited 0" answers
    if not case.startswith("create"):
        assert made == expected
    if script[1]:
        stdin = calls()[-1][1].replace(os.getcwd(), "HERE")
        assert stdin.rstrip() == script[2].removesuffix("END\n").rstrip()


@pytest.mark.slow
def test_keep_makes_the_machines_again_when_they_are_taken_away(programs):
    answers, calls = programs
    answers(
        list=[
            "",
            "WAITING_FOR_RESOURCES",
            "ACTIVE",
            "ACTIVE",
            "SUSPENDED",
            "ACTIVE",
            "ACTIVE",
        ],
        inspect=["absent", "running 0", "absent", "exited 0"],
    )
    assert tpu_pod.main(PODS["keep"]) == 0
    acts = [
        act
        for words, _ in calls()
        for act in ("create", "docker run", "delete")
        if act in " ".join(words)
    ]
    assert acts == ["create", "docker run", "delete", "create", "docker run"]


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["exited 75", "exited 137"])
def test_keep_starts_a_job_again_that_was_stopped(answer, programs):
    answers, calls = programs
    answers(list=["ACTIVE", "ACTIVE"], inspect=[answer, "exited 0"])
    assert tpu_pod.main(PODS["keep"]) == 0
    assert sum("docker run" in " ".join(words) for words, _ in calls()) == 1


def test_keep_ends_when_the_supervisor_has_given_up(programs, capsys):
    answers, calls = programs
    answers(list=["ACTIVE"], inspect=["exited 1"])
    assert tpu_pod.main(PODS["keep"]) == 2
    assert "paid for until `delete`" in capsys.readouterr().err
    assert not any("docker run" in " ".join(words) for words, _ in calls())


def test_keep_asks_again_where_nobody_answers(programs):
    answers, calls = programs
    answers(list=["ACTIVE", None, "ACTIVE"], inspect=[None, "exited 0"])
    assert tpu_pod.main(PODS["keep"]) == 0
    told = [" ".join(words) for words, _ in calls()]
    assert not any("docker run" in line or "create" in line for line in told)


def test_keep_does_not_begin_where_gcloud_refuses(programs, capsys):
    answers, calls = programs
    answers(list=[None])
    assert tpu_pod.main(PODS["keep"]) == 2
    told = capsys.readouterr().err
    assert "ERROR: there is none" in told and "its message is above" in told
    assert len(calls()) == 1


def test_a_command_that_fails_ends_the_tool(programs, capsys):
    answers, _ = programs
    answers(delete=[None])
    assert tpu_pod.main(PODS["delete"]) == 1
    assert "non-zero exit status" in capsys.readouterr().err


# --- Manifests, flags, images ---


def test_jobsets_have_a_pod_for_every_host(here, capsys):
    printed = printed_by("gke", "run-slices", capsys)
    jobset = json.loads(printed.partition("\n")[2].removesuffix("END\n"))
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert slices["replicas"] * chips == topology.parse("tpu7x-128", 2).num_chips
    assert job["completions"] == job["parallelism"] == 16


@pytest.mark.parametrize("chip", gke.ACCELERATORS)
def test_slices_are_those_that_compile_knows(chip):
    sizes = re.findall(r"-(\d+)", _known_sizes(chip))
    assert len(sizes) > 6
    for size in sizes:
        _, shape, hosts, chips = gke.shape(f"{chip}-{size}")
        known = topology.parse(f"{chip}-{size}")
        assert shape == "x".join(map(str, known.shape))
        assert hosts * chips == known.num_chips


def _known_sizes(chip: str) -> str:
    with pytest.raises(ValueError, match="known are") as raised:
        gke.shape(f"{chip}-99999")
    return str(raised.value).partition("known are")[2]


def test_every_flag_says_what_it_does_and_who_says_so():
    every = {f for flags in xla_flags.FLAGS.values() for f in flags}
    for flag in every | {*xla_flags.SLICES, *xla_flags.EXACT}:
        assert len(flag.does) > 20 and re.match(r"[a-z.]+\.(org|com)/", flag.source), flag


def test_flags_add_up(capsys):
    assert xla_flags.environment("v5p-64") == {}
    both = xla_flags.environment("v5litepod-256", slices=2)["LIBTPU_INIT_ARGS"].split()
    assert len(both) == 3 and all(word.startswith("--xla_tpu_") for word in both)
    assert "nondeterministic" not in xla_flags.environment("h100")["XLA_FLAGS"]
    assert "nondeterministic" in xla_flags.environment("h100", exact=True)["XLA_FLAGS"]
    assert xla_flags.main(["h100-8"]) == 0
    assert "export XLA_FLAGS='--xla_gpu_" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is no TPU"):
        xla_flags.environment("h100", slices=2)


@pytest.mark.slow
def test_jaxlib_knows_the_flags_for_gpus():
    flags = xla_flags.environment("h100", exact=True)["XLA_FLAGS"]
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_libtpu_knows_the_flags_for_tpus():
    folder = Path(sys.prefix) / "aot"
    if not (folder / "libtpu").exists():
        pytest.skip("libtpu is not installed: make test does it")
    words = {
        str(flag)
        for chip in xla_flags.FLAGS
        if xla_flags.is_tpu(chip)
        for flag in xla_flags.flags(chip, slices=2)
    }
    code = (
        "from jax.experimental import topologies\n"
        "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
    )
    variables = {
        "LIBTPU_INIT_ARGS": " ".join(words),
        "PYTHONPATH": str(folder),
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


DOCKERFILES = sorted((tiny.ROOT / "launch" / "docker").glob("*.Dockerfile"))


def test_hadolint_finds_nothing():
    assert len(DOCKERFILES) == 2
    done = subprocess.run(
        [program("hadolint"), *map(str, DOCKERFILES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_images_copy_what_there_is(file):
    ignored = (tiny.ROOT / ".dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (.*) \S+$", file.read_text(), re.MULTILINE)
    sources = " ".join(copies).split()
    for source in sources:
        assert (tiny.ROOT / source).exists(), source
        assert f"!{source.partition('/')[0]}" in ignored, source
    packages = {p.parent.name for p in tiny.ROOT.glob("*/__init__.py")}
    assert packages <= set(sources)
