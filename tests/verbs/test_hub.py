"""What is pushed to the Hugging Face hub, and pulled: its library is replaced at its boundary."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import tiny
from tiny import lapa, succeed
from tiny_policy import make_policy

from lapa_jax.interop import hub
from lapa_jax.runs import loaded

library = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Repositories as folders; every call must fit the library's own signature."""
    there = tmp_path / "hub"

    def checked(of, stand_in):
        def call(*args, **kwargs):
            inspect.signature(of).bind(*args, **kwargs)
            return stand_in(*args, **kwargs)

        return call

    def create_repo(api, repo_id, *, repo_type, private, exist_ok):
        assert private and exist_ok
        (there / repo_type / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def upload_folder(api, *, repo_id, repo_type, folder_path, ignore_patterns):
        ignored = shutil.ignore_patterns(*ignore_patterns)
        shutil.copytree(
            folder_path, there / repo_type / repo_id, ignore=ignored, dirs_exist_ok=True
        )

    def upload_file(api, *, repo_id, repo_type, path_in_repo, path_or_fileobj):
        (there / repo_type / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def snapshot_download(repo_id, *, repo_type, revision, local_dir, allow_patterns):
        found = there / repo_type / repo_id
        if not found.exists():
            raise library.errors.LocalEntryNotFoundError("no such repository\nand more")
        if local_dir is None:
            return str(found)
        shutil.copytree(found, local_dir, dirs_exist_ok=True)
        return local_dir

    for stand_in in (create_repo, upload_folder, upload_file):
        real = getattr(library.HfApi, stand_in.__name__)
        monkeypatch.setattr(library.HfApi, stand_in.__name__, checked(real, stand_in))
    real = library.snapshot_download
    monkeypatch.setattr(library, "snapshot_download", checked(real, snapshot_download))
    return there


def test_a_model_goes_to_the_hub_and_comes_back(remote, tmp_path):
    run = make_policy(tmp_path / "run", "action")
    told = succeed(
        "export", "--format", "safetensors", "--workdir", run, "--out", tmp_path / "out",
        "--push", "lab/policy",
    )  # fmt: skip
    assert "https://hub/lab/policy" in told
    card = (remote / "model/lab/policy/README.md").read_text()
    hashed = json.loads((tmp_path / "out" / "parity.json").read_text())["params_hash"]
    for text in (
        "---\n# license: state one here\npipeline_tag: robotics\ntags:\n- robotics\n",
        "a policy that predicts the action from images and instructions",
        "| stage | action_finetuning |", "| training | by others: these weights were imported |",
        "| imported | format random, source random |", "| config | sha256 ",
        hashed,
        "tensors_that_differ | 0 (at most 0)", "## Limits", "bound them before a robot",
        "lapa import --format safetensors",
    ):  # fmt: skip
        assert text in card, text
    assert str(tmp_path) not in card
    back = tmp_path / "back"
    succeed("import", "--format", "safetensors", "--source", "hf://lab/policy@main", "--out", back)
    assert loaded.load(back).params_hash == hashed
    arguments = ["import", "--format", "safetensors", "--out", tmp_path / "x", "--source"]
    for source, message in (
        (
            "hf://lab/other",
            "lab/other was not pulled from the hub: LocalEntryNotFoundError: no",
        ),
        ("hf://lab/policy/x", "lab/policy on the hub has no x"),
        ("hf://policy", "'hf://policy' is no address on the hub"),
    ):
        code, _, error = lapa(*arguments, source)
        assert code == 2 and message in error and not (tmp_path / "x").exists(), error


def test_a_corpus_goes_to_the_hub_and_comes_back(remote, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "robot", episodes=3)
    (corpus / ".secret").write_text("x")
    told = succeed("data", "push", corpus, "lab/squares")
    assert "https://hub/lab/squares" in told
    there = remote / "dataset/lab/squares"
    card = (there / "README.md").read_text()
    assert "3 episodes" in card and "red square" in card and "lapa data pull lab/squares" in card
    assert str(tmp_path) not in card and not (there / ".secret").exists()
    assert not (corpus / "README.md").exists()
    succeed("data", "pull", "lab/squares", "--out", tmp_path / "again")
    for path in (x for x in corpus.rglob("*") if x.is_file() and x.name[0] != "."):
        assert (tmp_path / "again" / path.relative_to(corpus)).read_bytes() == path.read_bytes()
    code, _, error = lapa("data", "pull", "lab/squares", "--out", corpus)
    assert code == 2 and "is not empty, and not from the hub" in error
    shard = next(corpus.glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    code, _, error = lapa("data", "push", corpus, "lab/broken")
    assert code == 2 and shard.name in error and not (remote / "dataset/lab/broken").exists()


@pytest.mark.parametrize(
    "text, found",
    [
        ("a/b", ("model", "a/b", None, "")),
        ("hf://a/b@v1.0/c/d.pt", ("model", "a/b", "v1.0", "c/d.pt")),
        ("hf://datasets/a/b", ("dataset", "a/b", None, "")),
        ("hf://a/b/../../c", None),
        ("a", None),
        ("hf://a/b c", None),
        ("https://huggingface.co/a/b", None),
    ],
)
def test_addresses(text, found):
    if found:
        assert hub.parse(text) == found
        return
    with pytest.raises(ValueError, match="no address on the hub"):
        hub.parse(text)


def test_what_cannot_be_pushed(tmp_path, monkeypatch):
    """Said before anything is exported."""
    arguments = ["export", "--workdir", tmp_path, "--out", tmp_path / "x", "--push"]
    for form, to, message in (
        ("laq_pt", "a/b", "--format laq_pt is a file"),
        ("hf", "a/b@v1", "must be ORG/NAME"),
        ("hf", "hf://datasets/a/b", "must be ORG/NAME"),
    ):
        code, _, error = lapa(*arguments, to, "--format", form)
        assert code == 2 and message in error, error
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    code, _, error = lapa(*arguments, "a/b", "--format", "hf")
    assert code == 2 and "pip install huggingface_hub" in error
    assert not Path(tmp_path / "x").exists()
