"""Models and corpora on the Hugging Face hub, by its library: folders pushed, and pulled again."""

import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from absl import logging

PREFIX = "hf://"
# Not of the corpus or the model: hidden files, what is being written, locks.
_LEFT_OUT = [".*", "**/.*", "*.incomplete", "*.lock", "*.tmp"]


class Address(NamedTuple):
    """`kind` is "model" or "dataset"; `path` is of a file or folder in the repository, or empty."""

    kind: str
    repo: str
    revision: str | None = None
    path: str = ""


def parse(text: str, kind: str = "model") -> Address:
    """Of ORG/NAME, and of hf://ORG/NAME@REVISION/PATH or hf://datasets/ORG/NAME..., where revision
    and path may be absent. Raises ValueError."""
    found = re.fullmatch(
        r"(?:hf://)?(datasets/)?([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.*))?", text.rstrip("/")
    )
    parts = (found[4] or "").split("/") if found else []
    if not found or ".." in parts or any(x in found[2] for x in ("..", "--")):
        raise ValueError(
            f"{text!r} is no address on the hub: ORG/NAME, or hf://ORG/NAME@REVISION/PATH"
        )
    return Address("dataset" if found[1] else kind, found[2], found[3], found[4] or "")


def pull(address: Address, into: str | Path | None = None) -> Path:
    """The folder or file on this machine: in `into`, or in the library's cache. Raises RuntimeError
    with what the library says, FileNotFoundError for a path that the repository lacks."""
    logging.info("asking the hub for %s", address.repo)
    only = [address.path, f"{address.path}/*"] if address.path else None
    try:
        folder = _library().snapshot_download(
            address.repo,
            repo_type=address.kind,
            revision=address.revision,
            local_dir=None if into is None else str(into),
            allow_patterns=only,
        )
    except Exception as error:  # of several HTTP libraries
        raise RuntimeError(f"{address.repo} was not pulled from the hub: {_line(error)}") from error
    path = Path(folder) / address.path
    if not path.exists():
        raise FileNotFoundError(f"{address.repo} on the hub has no {address.path}")
    return path


def push(folder: str | Path, address: Address, card: str | None = None) -> str:
    """The URL. Makes the repository, a private one, unless it is there; `card` becomes its
    README.md where the folder has none. Raises RuntimeError with what the library says."""
    api = _library().HfApi()
    into = {"repo_id": address.repo, "repo_type": address.kind}
    try:
        url = api.create_repo(**into, private=True, exist_ok=True)
        api.upload_folder(**into, folder_path=str(folder), ignore_patterns=_LEFT_OUT)
        if card is not None and not (Path(folder) / "README.md").exists():
            api.upload_file(**into, path_in_repo="README.md", path_or_fileobj=card.encode())
    except Exception as error:  # of several HTTP libraries
        again = f"hf upload {address.repo} {folder} --repo-type {address.kind}"
        raise RuntimeError(
            f"{folder} was not pushed to {address.repo}: {_line(error)}. It stays; to try again: "
            f"{again}"
        ) from error
    return str(url)


def target(text: str, kind: str = "model") -> Address:
    """Where to push; checked, with the library, before anything is done. Raises ValueError."""
    _library()
    found = parse(text, kind)
    if found.revision or found.path or found.kind != kind:
        raise ValueError(f"{text!r} must be ORG/NAME: a {kind} is pushed as a whole repository")
    return found


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            "the hub needs huggingface_hub: pip install huggingface_hub (and `hf auth login` for "
            "what is private)"
        ) from error
    return huggingface_hub
