"""Who may import whom (docs/design.md, section 3), and what importing must not load."""

import ast
import graphlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("lapa_jax", "data_pipelines", "experiments", "launch")

DATA = ("data_pipelines",)
KEYS = "data_pipelines.keys"
NORMALISE = "data_pipelines.normalise"
MODELS = ("lapa_jax.nn", "lapa_jax.parallel")
WORLD = ("lapa_jax.latent", "lapa_jax.policy", *MODELS)
STAGES = ("lapa_jax.world", *WORLD, "data_pipelines.rlds.schema", NORMALISE)
RUNS = (
    *("lapa_jax.stages", *STAGES, "lapa_jax.training", "lapa_jax.machine"),
    *("lapa_jax.config", "lapa_jax.settings", "lapa_jax.version", *DATA),
)
USES = ("lapa_jax.runs", *RUNS)
EVIDENCE = ("lapa_jax.envs", "lapa_jax.diagnostics", "lapa_jax.report", *USES)
TRAIN = ("lapa_jax.evidence", *EVIDENCE)
STUDIES = ("lapa_jax.train", *TRAIN, "experiments")

# room or file → prefixes of ours that it may import besides itself: what lies on lower floors.
ALLOWED = {
    "data_pipelines.keys": (),
    "data_pipelines.processes": (),
    "data_pipelines.normalise": (),
    "data_pipelines.progress": (),
    "data_pipelines.storage": (),
    "data_pipelines.sidecar": ("data_pipelines.storage",),
    "data_pipelines.rlds": ("data_pipelines.sidecar", "data_pipelines.storage"),
    "data_pipelines.index": (
        *("data_pipelines.rlds", "data_pipelines.sidecar", "data_pipelines.progress"),
    ),
    "data_pipelines.loader": ("data_pipelines.index", KEYS),
    "data_pipelines.convert": ("data_pipelines.loader", "data_pipelines.processes"),
    "data_pipelines.checks": ("data_pipelines.loader", NORMALISE),
    "data_pipelines.bench": ("data_pipelines.loader",),
    "lapa_jax.__init__": (
        *("lapa_jax.version", "lapa_jax.runs.loaded", "lapa_jax.serving.adapters"),
    ),
    "lapa_jax.__main__": ("lapa_jax.cli",),
    "lapa_jax.version": (),
    "lapa_jax.settings": (
        *("lapa_jax.envs", "lapa_jax.stages", *STAGES, "lapa_jax.training"),
        *("data_pipelines.loader", KEYS),
    ),
    "lapa_jax.parallel": (),
    "lapa_jax.diagnostics": (),
    "lapa_jax.report": ("data_pipelines.storage",),
    "lapa_jax.envs": DATA,
    "lapa_jax.arena": (
        *("lapa_jax.envs", "lapa_jax.report", "lapa_jax.diagnostics.statistics"),
        *("lapa_jax.serving.wire", *DATA),
    ),
    "lapa_jax.machine": ("lapa_jax.parallel",),
    "lapa_jax.nn": ("lapa_jax.parallel", KEYS),
    "lapa_jax.training": (
        *("lapa_jax.parallel", "lapa_jax.nn.registry"),
        *("data_pipelines.storage", "data_pipelines.progress", KEYS),
        "data_pipelines.rlds.tfrecord",
    ),
    "lapa_jax.config": ("data_pipelines.storage",),
    "lapa_jax.latent": MODELS,
    # where codecs are fitted
    "lapa_jax.policy": (*MODELS, NORMALISE, "data_pipelines.checks.statistics"),
    "lapa_jax.world": WORLD,
    "lapa_jax.world.imagination": ("lapa_jax.runs", *RUNS),  # of what a run holds
    "lapa_jax.world.verifier": ("lapa_jax.diagnostics", "lapa_jax.runs", *RUNS),
    "lapa_jax.world.action_map": ("lapa_jax.diagnostics", "lapa_jax.runs", *RUNS),
    "lapa_jax.stages": STAGES,
    "lapa_jax.aot": USES,
    "lapa_jax.runs": RUNS,
    "lapa_jax.evidence": EVIDENCE,
    "lapa_jax.serving": ("lapa_jax.envs", *USES),
    "lapa_jax.serving.play": ("lapa_jax.serving", "lapa_jax.arena.results", *USES),
    "lapa_jax.interop": USES,
    "lapa_jax.train": TRAIN,
    "lapa_jax.studies": STUDIES,
    "lapa_jax.benchmarks": ("lapa_jax.serving", "lapa_jax.interop", "lapa_jax.aot", *STUDIES),
    "lapa_jax.cli": ("lapa_jax.config", "lapa_jax.machine", "lapa_jax.version"),  # verbs by name
    "lapa_jax.verbs": (
        *("lapa_jax.studies", "lapa_jax.benchmarks", "lapa_jax.serving", "lapa_jax.interop"),
        *("lapa_jax.cli", "lapa_jax.aot", "lapa_jax.arena", *STUDIES),
    ),
    "experiments": (
        *("lapa_jax.settings", "lapa_jax.config", "lapa_jax.stages", *STAGES, "lapa_jax.training"),
    ),
    "experiments.studies": ("lapa_jax.studies", *STUDIES),
    "launch": (
        *("lapa_jax.training.run_files", "lapa_jax.machine.tpu_shapes"),
        *("lapa_jax.machine.xla_flags", "lapa_jax.settings", "lapa_jax.config"),
        *("lapa_jax.parallel.mesh", "lapa_jax.train"),
    ),
}
# Where the floors of data_pipelines are named by the next lower one alone.
for room in ("rlds", "index", "loader", "convert", "checks", "bench"):
    for lower in [name for name in ALLOWED[f"data_pipelines.{room}"] if name in ALLOWED]:
        ALLOWED[f"data_pipelines.{room}"] += ALLOWED[lower]


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at module level) for every import of a file; of `from .x` too, which
    packages without subpackages use."""
    tree = ast.parse(path.read_text())
    top_level = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = [file_of(path).rpartition(".")[0]] * (node.level == 1)
            parts = here + [node.module] * (node.module is not None)
            names = [".".join([*parts, alias.name]) for alias in node.names]
        else:
            continue
        found += [(name, id(node) in top_level) for name in names]
    return found


def sources(room: str) -> list[Path]:
    """Without torch_files, which are written beside exported weights and never imported here."""
    path = ROOT / room.replace(".", "/")
    found = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else []
    found += sorted(path.rglob("*.py"))
    return [path for path in found if path.parent.name != "torch_files"]


@pytest.mark.slow
@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_it_may(room):
    may = (room, *ALLOWED[room])
    inner = {path for other in ALLOWED if other.startswith(f"{room}.") for path in sources(other)}
    bad = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(room)
        if path not in inner
        for module, _ in imports_of(path)
        if module.split(".")[0] in TOP
        and not any(module == p or module.startswith(p + ".") for p in may)
    ]
    assert not bad, "\n".join(bad)


def test_every_file_has_a_rule():
    under = {path for room in ALLOWED for path in sources(room)}
    bare = {path for top in TOP for path in sources(top)} - under
    assert {str(path.relative_to(ROOT)) for path in bare} <= {"data_pipelines/__init__.py"}


def test_the_loop_is_short_and_has_few_collaborators():
    path = ROOT / "lapa_jax/train.py"
    modules = set()
    for name, _ in imports_of(path):
        if name.split(".")[0] in TOP:
            file = ROOT / name.replace(".", "/")
            own = file.is_dir() or file.with_suffix(".py").is_file()
            modules.add(name if own else name.rpartition(".")[0])
    assert len(modules) <= 7, modules
    assert len(path.read_text().splitlines()) <= 250


@pytest.mark.slow
def test_no_files_import_each_other_in_a_circle():
    files = {file_of(path): path for top in TOP for path in sources(top)}
    graph = {
        name: {
            found
            for module, _ in imports_of(path)
            for found in (module, module.rpartition(".")[0])
            if found in files and found != name
        }
        for name, path in files.items()
    }
    for name in graph:  # `from package import module` names the module, not the package's face
        graph[name] -= {found for found in graph[name] if name.startswith(found + ".")}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def file_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "heavy", ["tensorflow", "tensorflow_datasets", "torch", "mujoco", "metaworld", "apache_beam"]
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "lapa_jax",
        "lapa_jax.cli",
        "lapa_jax.train",
        "lapa_jax.studies.demo",
        "data_pipelines.loader",
    ],
)
def test_import_stays_light(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'tensorflow', 'torch', 'mujoco', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_configs_load_without_a_backend():
    code = (
        "import sys, importlib\n"
        "from jax._src import xla_bridge\n"
        "for name in ('teacher', 'image_tokenizer', 'quantizer', 'dynamics',"
        " 'latent_vla', 'action_vla'):\n"
        "    module = importlib.import_module(f'experiments.{name}.tabletop')\n"
        "    assert module.get_config('quick=True').steps > 0\n"
        "heavy = {'tensorflow', 'torch'} & set(sys.modules)\n"
        "assert not heavy and not xla_bridge.backends_are_initialized(), heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_steps_simulators_loads_without_jax():
    code = (
        "import sys, lapa_jax.arena.worker, lapa_jax.envs.demonstrations, lapa_jax.envs.metaworld\n"
        "import lapa_jax.envs.language_table, lapa_jax.envs.libero, lapa_jax.envs.simpler\n"
        "heavy = {'jax', 'flax', 'mujoco', 'ml_collections', 'tensorflow', 'torch', 'pybullet'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_goes_with_exported_weights_needs_nothing_of_ours():
    files = list((ROOT / "lapa_jax/interop/torch_files").glob("*.py"))
    here = "lapa_jax.interop.torch_files."
    modules = {module for path in files for module, _ in imports_of(path)}
    imported = {module.split(".")[0] for module in modules if not module.startswith(here)}
    theirs = {"numpy", "safetensors", "sentencepiece", "torch", "transformers"}
    assert files and imported <= theirs | sys.stdlib_module_names


def test_an_installation_takes_two_names_and_has_every_package(monkeypatch):
    """`launch` is ROS 2's name, and anybody's `experiments`: these lie inside of lapa_jax there."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **settings: given.update(settings))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    assert {name.split(".")[0] for name in given["packages"]} == {"lapa_jax", "data_pipelines"}
    folders = {given["package_dir"].get(x, x.replace(".", "/")) for x in given["packages"]}
    there = {str(path.parent.relative_to(ROOT)) for top in TOP for path in sources(top)}
    assert there <= folders
    for package, patterns in given["package_data"].items():
        assert all(list((ROOT / package.replace(".", "/")).glob(x)) for x in patterns), package
