"""From the flags of `lapa play` to a server."""

import argparse
import hashlib
import socket
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.index import CorpusIndex, load_index
from lapa_jax.runs.corrections import Corrections
from lapa_jax.runs.loaded import load_policy
from lapa_jax.serving import start
from lapa_jax.serving.play import first, meanings
from lapa_jax.serving.play.app import LIMITS, Server
from lapa_jax.serving.play.player import Player
from lapa_jax.serving.play.saves import Saves
from lapa_jax.world.imagination import (
    Imagination,
    check_policy,
    corrected,
    open_imagination,
    quantizers_of,
)


def prepare(args: argparse.Namespace, token: str) -> tuple[start.Uvicorn, socket.socket]:
    """A compiled server, and the socket that it is to run on, bound and not listening yet. Raises
    ValueError and OSError for flags and files that do not fit."""
    names = start.names_of(args.host, token)
    if bool(args.frame) == (args.episode is not None):
        raise ValueError("give what to start from: --frame FILE, or --corpus DIR with --episode N")
    if args.episode is not None and not args.corpus:
        raise ValueError(f"--episode {args.episode} is of a --corpus: name one")
    if args.instruction and not args.policy:
        raise ValueError(f"--instruction {args.instruction!r} is for a --policy: name one")
    if args.corrections and not args.policy:
        raise ValueError(f"--corrections {args.corrections} are of what a --policy says: name one")
    if args.step and args.episode is None:
        raise ValueError(f"--step {args.step} is of an --episode of --corpus: name one")
    bound = start.bind(args.host, args.port, LIMITS.read_seconds)
    try:
        return start.Uvicorn(build(args), token, names), bound
    except BaseException:
        bound.close()
        raise


def build(args: argparse.Namespace) -> Server:
    """The server of parsed arguments."""
    imagination = open_imagination(args.workdir)
    index = None
    if args.corpus:
        view = dict(split=args.split, image_key=args.image_key)
        index = load_index(args.corpus, sidecar_dir=args.sidecar_dir or None, **view)
    frame, told = _first(args, imagination, index)
    found = meanings.meanings(imagination, index) if index else {}
    metadata = describe(imagination, frame, told, found)
    policy, instruction, saves = None, "", None
    if args.policy:
        policy, instruction = load_policy(args.policy), args.instruction.strip()
        instruction = instruction or told.get("instruction", "")
        check_policy(imagination, policy)
        if not instruction:
            raise ValueError(f"--policy {args.policy} is told what to do: give --instruction")
        checkpoint = {"step": policy.step, "params_hash": policy.params_hash}
        metadata["policy"] = {"checkpoint": checkpoint, "instruction": instruction}
    if args.corrections:
        corpus = Corrections(args.corrections, corrected(imagination, policy))
        metadata["policy"]["saved"] = corpus.path.name
        told_of = {key: metadata[key] for key in ("stage", "checkpoint", "start")}
        saves = Saves(corpus, instruction, told_of | {"policy": checkpoint})
    logging.info("compiling a step of %s", imagination.model.workdir)
    player = Player(imagination, frame, policy, instruction)
    return Server(player, metadata, steps=args.steps, saves=saves)


def _first(
    args: argparse.Namespace, imagination: Imagination, index: CorpusIndex | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """(the frame, where it is from as JSON)."""
    size = imagination.image_size
    if args.frame:
        return first.of_file(args.frame, size, args.resizing), {"file": Path(args.frame).name}
    frame = first.of_corpus(index, args.episode, args.step, size, args.resizing)
    told = {"corpus": index.directory.name, "episode": args.episode, "step": args.step}
    if instruction := index.instruction(args.episode):
        told["instruction"] = instruction
    return frame, told


def describe(
    imagination: Imagination, frame: np.ndarray, told: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """What /metadata says: what z are, which run and which frame it is, what is known of z."""
    run = imagination.model
    z = {"codes": imagination.codes, "length": imagination.length, "width": imagination.width}
    if not imagination.codes:
        spread = {"mean": np.zeros(imagination.shape), "std": np.ones(imagination.shape)}
        source = ""  # nobody knows how they are spread
        if "mean" in found:
            spread, source = {key: found[key] for key in spread}, found["label_set"]
        elif (own := imagination.statistics) is not None:
            spread, source = {"mean": own.mean, "std": own.std}, "the training"
        z["spread_of"] = source
        z |= {key: np.broadcast_to(x, imagination.shape).tolist() for key, x in spread.items()}
    return {
        "stage": run.config.stage,
        "checkpoint": {"step": run.step, "params_hash": run.params_hash},
        "quantizers": sorted(quantizers_of(run)),
        "image_size": list(imagination.image_size),
        "window_seconds": imagination.window_seconds,
        "z": z,
        "start": told | {"hash": hashlib.blake2b(frame.tobytes(), digest_size=8).hexdigest()},
        "meanings": {key: found[key] for key in found if key not in ("mean", "std")},
    }
