"""`lapa label`: the latent actions, or the image tokens, of a corpus beside its index."""

import argparse

import jax
from jax.experimental import multihost_utils

from lapa_jax.parallel import distributed
from lapa_jax.runs import label
from lapa_jax.runs import run as runs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa label",
        description="Write the latent actions, or the image tokens, of a corpus beside its index.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: lapa label --workdir runs/quantizer --corpus data/robot --name laq\n"
        "         lapa label --what image_tokens --workdir runs/vqgan --corpus data/robot "
        "--name vqgan",
    )
    parser.add_argument(
        "--what", choices=["latent_actions", "image_tokens"], default="latent_actions"
    )
    parser.add_argument("--workdir", required=True, help="run of a quantizer or image tokenizer")
    parser.add_argument("--corpus", required=True, help="directory of the shards (indexed)")
    parser.add_argument("--name", required=True, help="name of the set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--sidecar_dir", default="", help="where index and labels lie")
    parser.add_argument(
        "--image_key", default="", help="the camera (default: the only one indexed)"
    )
    parser.add_argument(
        "--window_seconds", type=float, default=0.0, help="0: that of the quantizer's training"
    )
    parser.add_argument("--fps", type=float, default=0.0, help="0: from the episodes' metadata")
    parser.add_argument("--index", type=int, help="this host's number, from 0 (default: JAX's)")
    parser.add_argument("--count", type=int, help="hosts that share the corpus (default: JAX's)")
    distributed.add_flags(parser)
    args = parser.parse_args(argv)
    if args.index is None and args.count is None:
        distributed.initialize_from(args)
        share = label.Share(jax.process_index(), jax.process_count())
    else:
        share = label.Share(args.index or 0, args.count or 1)
    with distributed.leaving_on_error():
        return _label(args, share)


def _label(args: argparse.Namespace, share: label.Share) -> int:
    run = runs.load(args.workdir)
    corpus = dict(
        path=args.corpus,
        split=args.split,
        sidecar_dir=args.sidecar_dir,
        image_key=args.image_key,
    )
    if args.what == "latent_actions":
        pairs_of = {"fps": args.fps, "window_seconds": args.window_seconds}
        label.label(run, args.name, corpus | pairs_of, share)
        return _together(args.name)
    if args.window_seconds or args.fps:
        raise ValueError("--window_seconds and --fps are of --what latent_actions")
    label.label_images(run, args.name, corpus, share)
    return _together(args.name)


def _together(name: str) -> int:
    """JAX ends processes that wait long for another to end: all end at one time."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"labelled {name}")
    return 0
