"""Config files that are found, told and completed, and what is said of those that are wrong."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny

from data_pipelines.convert.report import Report
from lapa_jax import cli, settings
from lapa_jax import config as configs
from lapa_jax.verbs import completion
from lapa_jax.verbs.data import convert
from lapa_jax.version import __version__

GOOD = "from experiments.quantizer import tabletop\ndef get_config(arg=None):\n    config = "
GOOD += "tabletop.get_config(arg)\n"
DEF = "def get_config(arg=None):\n    "
FILES = {
    "syntax": ("def get_config(:\n", r"syntax.py, line 1: invalid syntax"),
    "nothing": ("", r"nothing.py: has no function get_config\(arg\)"),
    "value": ("get_config = 3\n", r"value.py: has no function get_config\(arg\)"),
    "none": (DEF + "pass\n", "get_config gives a NoneType, not a ConfigDict"),
    "plain": (DEF + "return {}\n", "get_config gives a dict, not a ConfigDict"),
    "name": (DEF + "return x\n", "name.py, line 2: NameError: name 'x' is not defined"),
    "key": (GOOD + "    config.data.steps.x = 3\n", "key.py, line 4: AttributeError: .*'steps'?"),
    "locked": (GOOD + "    config.lock().stpes = 1\n", 'line 4: .*Did you mean "steps" instead'),
    "path": (
        GOOD + "    from pathlib import Path\n    from experiments import base\n"
        "    config.data.corpora = {'a': base.corpus(Path('x'))}\n    return config\n",
        r"data.corpora.a.path=PosixPath\('x'\), a pathlib.PosixPath, must be a plain value",
    ),
    "module": ("import no_such_module\n", "module.py, line 1: ModuleNotFoundError: .*no_such_mod"),
    "zero": ("\0", "zero.py: source code string cannot contain null bytes"),
    "bytes": ("# \udcff\n", "bytes.py"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_wrong_is_told_with_its_line(tmp_path, name):
    source, told = FILES[name]
    path = tmp_path / f"{name}.py"
    path.write_text(source, errors="surrogateescape")
    with pytest.raises(ValueError, match=told) as error:
        configs.load(str(path))
    assert str(path) in str(error.value) and len(str(error.value)) < 400


def test_a_value_where_a_group_of_keys_is_meant_is_refused_by_its_key():
    config = configs.load("quantizer/tabletop")
    values = config.to_dict()
    for wrong in (3, "tabletop", [1]):
        values["evaluation"]["env"] = wrong
        with pytest.raises(ValueError, match="evaluation.env"):
            settings.check(configs.from_dict(values))


def test_what_a_spec_may_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no repository here
    (tmp_path / "mine.py").write_text(GOOD + "    return config\n")
    alone = GOOD.replace("arg=None", "").replace("arg", "")
    (tmp_path / "alone.py").write_text(alone + "    return config\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    shipped = configs.load(f"{tiny.ROOT}/experiments/quantizer/tabletop.py:quick=True")
    for spec in ("quantizer/tabletop", "experiments/quantizer/tabletop.py", "mine.py", "~/mine.py"):
        assert configs.load(f"{spec}:quick=True") == shipped
    assert configs.load("alone.py").steps == 900
    with pytest.raises(ValueError, match="takes no arguments, but 'quick=True' is given"):
        configs.load("alone.py:quick=True")
    assert configs.call("sweeps/window:quick=True", "get_sweep")["grid"]
    (tmp_path / "config.json").write_text("{}")
    for spec, told in (
        ("quantizer/tabletp", "did you mean quantizer/tabletop"),
        ("experiments/tabletop.py", "did you mean .*/tabletop"),
        ("quantizer", "no config of that name is shipped; did you mean quantizer/"),
        ("mime.py", r"mime.py does not exist, .*; did you mean mine.py\?"),
        (".", "is a folder"),
        ("", "`lapa configs` lists"),
        ("config.json", "is no Python file"),
        ("quantizer/tabletop:qick=1", "'qick' is unknown; known"),
        ("quantizer/videos:window=wide", "window='wide' must be a number, as 0.5"),
        ("quantizer/videos:size=97", "cannot be cut .*: `lapa data convert --size 96` makes"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            configs.load(spec)


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        ((64, 64), ""),
        ((50, 50), ""),
        ((100, 100), ""),
        ((48, 64), " '--config.data.image_size=(48, 64)'"),
        ((60, 90), " '--config.data.image_size=(60, 90)' --config.model.patch_size=6"),
    ],
)
def test_what_follows_a_conversion_can_run(size, flags):
    told = convert._training(Report("data", "train", "video", 1), size, None)
    assert told.endswith(f" --workdir RUN{flags}")
    _, spec, _, _, *overrides = shlex.split(told)
    settings.check(configs.load(spec, overrides))


def test_home_is_found_in_keys_and_flags(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides = ["--config.init_from=~/run", "--config.evaluation.corpora=('~/a', 'b~')"]
    config = configs.load("quantizer/tabletop:data=~/data", overrides)
    assert config.init_from == "/home/me/run" and config.evaluation.corpora == ("/home/me/a", "b~")
    assert config.data.corpora.robot.path == "/home/me/data/robot"
    seen = []
    monkeypatch.setattr(cli, "run", lambda module, argv: seen.extend(argv) or 0)
    cli.main(["status", "~/runs", "--dir=~/x", "--n=3", "a=~/y", "--"])
    assert seen == ["/home/me/runs", "--dir=/home/me/x", "--n=3", "a=~/y", "--"]


def test_version():
    assert tiny.lapa("--version")[:2] == (0, f"lapa_jax {__version__}\n")


def test_shipped_configs_are_listed_with_claim_cost_and_arguments():
    code, out, _ = tiny.lapa("configs")
    names = configs.shipped_files("get_config", "get_sweep")
    blocks = re.split(r"\n  (?=\w)", out)
    assert code == 0 and len(names) >= 12
    for name in names:
        (block,) = [b for b in blocks if b.startswith(f"{name}\n")]
        assert "Cost: " in block and "Arguments: " in block and "docs/performance.md;" not in block


def test_a_config_is_told_with_what_its_keys_mean():
    code, out, _ = tiny.lapa("config", "action_vla/tabletop:quick=True", "--config.steps=200")
    lines = dict(line.split(" = ", 1) for line in out.splitlines())
    assert code == 0 and len(lines) > 110
    assert lines["steps"].split("#")[0].strip() == "200"
    assert "# decay of the first moment (a number in [0, 1))" in lines["optimizer.b1"]
    assert "one of ['adamw', " in lines["optimizer.name"]
    code, _, err = tiny.lapa("config", "action_vla/tabletop", "--config.seed=-1")
    assert code == 2 and "seed=-1 must be an integer in [0, 4294967295]" in err


def test_bash_completes_verbs_flags_and_configs(tmp_path):
    flags = completion.flags_of("lapa_jax.verbs.data.collect")
    assert {"--out", "--no-actions", "--episodes"} <= set(flags)
    verbs = {"": ["train", "trace"], "train": ["--config", "--workdir"], "data": ["collect"]}
    text = completion.script(verbs | {"data collect": flags}, ["quantizer/tabletop"])
    Path(tmp_path / "lapa.sh").write_text(text)
    script = "source ./lapa.sh\n"
    for words in ("tr", "train --c", "train --config q", "data c", "data collect --epi", "train l"):
        script += f"COMP_WORDS=(lapa {words}); COMP_CWORD={words.count(' ') + 1}; _lapa\n"
        script += 'echo "${COMPREPLY[@]}"\n'
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    wanted = "train trace|--config|quantizer/tabletop|collect|--episodes|lapa.sh"
    assert run.stdout.split("\n")[:-1] == wanted.split("|") and not run.stderr
