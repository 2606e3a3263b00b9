"""Who may import whom (docs/design.md, section 3), and what importing must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("lapa_jax", "data_pipelines", "experiments", "launch")

# room → prefixes of ours that it may import besides itself. A file directly under lapa_jax is a
# verb, or what verbs share, and may import everything; so may what `lapa bench` measures.
ALLOWED = {
    "lapa_jax.stages": (
        "lapa_jax.models",
        "lapa_jax.tokens",
        "lapa_jax.parallel",
        "data_pipelines.schema",
    ),
    "lapa_jax.models": ("lapa_jax.parallel", "lapa_jax.tokens.modality"),
    "lapa_jax.training": ("lapa_jax.parallel",),
    "lapa_jax.aot": ("lapa_jax.parallel",),
    "lapa_jax.benchmarks": ("lapa_jax", "data_pipelines", "experiments"),
    "lapa_jax.parallel": (),
    "lapa_jax.tokens": (),
    "lapa_jax.diagnostics": (),
    "lapa_jax.report": ("lapa_jax.diagnostics",),
    "lapa_jax.envs": (),
    "lapa_jax.interop": ("lapa_jax.models", "lapa_jax.tokens"),
    "lapa_jax.serving": ("lapa_jax.api", "lapa_jax.tokens", "data_pipelines.convert.decode"),
    "data_pipelines": (),
    "experiments": (),
    "launch": (),
}


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at module level) for every import of a file."""
    tree = ast.parse(path.read_text())
    top_level = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, id(node) in top_level) for name in names]
    return found


def sources(room: str) -> list[Path]:
    """Without torch_files, which are written beside exported weights and never imported here."""
    found = sorted((ROOT / room.replace(".", "/")).rglob("*.py"))
    return [path for path in found if path.parent.name != "torch_files"]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_it_may(room):
    may = (room, *ALLOWED[room])
    bad = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(room)
        for module, _ in imports_of(path)
        if module.split(".")[0] in TOP
        and not any(module == p or module.startswith(p + ".") for p in may)
    ]
    assert not bad, "\n".join(bad)


def test_every_room_has_a_rule():
    rooms = {
        f"lapa_jax.{p.name}"
        for p in (ROOT / "lapa_jax").iterdir()
        if p.is_dir() and any(p.glob("*.py"))
    }
    assert rooms <= ALLOWED.keys(), f"rooms without a rule: {rooms - ALLOWED.keys()}"


@pytest.mark.parametrize(
    "heavy", ["tensorflow", "tensorflow_datasets", "torch", "mujoco", "apache_beam"]
)
def test_heavy_packages_are_imported_only_inside_functions(heavy):
    bad = [
        str(path.relative_to(ROOT))
        for top in TOP
        for path in sources(top)
        for module, at_top in imports_of(path)
        if at_top and module.split(".")[0] == heavy
    ]
    assert not bad


@pytest.mark.parametrize(
    "module",
    ["lapa_jax", "lapa_jax.cli", "lapa_jax.train", "lapa_jax.demo", "data_pipelines.loader"],
)
def test_import_stays_light(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'tensorflow', 'torch', 'mujoco', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_configs_load_without_jax():
    code = (
        "import sys, importlib\n"
        "for name in ('teacher', 'quantizer', 'latent_vla', 'action_vla'):\n"
        "    module = importlib.import_module(f'experiments.{name}.tabletop')\n"
        "    assert module.get_config('quick=True').steps > 0\n"
        "assert 'jax' not in sys.modules and 'lapa_jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_goes_with_exported_weights_needs_nothing_of_ours():
    files = list((ROOT / "lapa_jax/interop/torch_files").glob("*.py"))
    imported = {module.split(".")[0] for path in files for module, _ in imports_of(path)}
    theirs = {"numpy", "safetensors", "sentencepiece", "torch", "transformers"}
    assert files and imported <= theirs | sys.stdlib_module_names
