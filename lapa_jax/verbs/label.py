"""`lapa label`: the latent actions, image tokens or actions of a corpus beside its index."""

import dataclasses
from typing import Annotated

import jax
from jax.experimental import multihost_utils

from lapa_jax.parallel import distributed
from lapa_jax.runs import label
from lapa_jax.runs.loaded import load
from lapa_jax.verbs import flags, text

WHAT = "Write the latent actions, image tokens or actions of a corpus beside its index."
LATENT_ACTIONS = "latent_actions"
KEYS = {
    LATENT_ACTIONS: "label_set",
    "image_tokens": "image_token_set",
    "actions": "action_set",
}  # of a corpus, by what is labelled
EXAMPLE = """lapa label --workdir runs/quantizer --corpus data/robot --name laq
  lapa label --what image_tokens --workdir runs/vqgan --corpus data/robot --name vqgan
  lapa label --what actions --workdir runs/idm --corpus data/robot --name idm"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is labelled, and by what.

    workdir: run of a quantizer, image tokenizer or inverse dynamics model
    corpus: directory of the shards (indexed)
    name: name of the set
    sidecar_dir: where index and labels lie
    image_key: the camera (default: the only one indexed)
    """

    what: str = dataclasses.field(default=LATENT_ACTIONS, metadata={"choices": tuple(KEYS)})
    workdir: str
    corpus: str
    name: str
    split: str = "train"
    sidecar_dir: str = ""
    image_key: str = ""
    window_seconds: Annotated[float, "[0, 1e4]", "0: that of the quantizer's training"] = 0.0
    fps: Annotated[float, "[0, 1e4]", "0: from the episodes' metadata"] = 0.0
    index: Annotated[int | None, "[0, 1e6]", "this host's number, from 0 (default: JAX's)"] = None
    count: Annotated[int | None, "[1, 1e6]", "hosts that share the corpus (default: JAX's)"] = None


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa label", WHAT, EXAMPLE)
    flags.add(parser, Options)
    distributed.add_flags(parser)
    args = parser.parse_args(argv)
    options = flags.read(args, Options)
    if options.index is None and options.count is None:
        distributed.initialize_from(args)
        share = label.Share(jax.process_index(), jax.process_count())
    else:
        share = label.Share(options.index or 0, options.count or 1)
    with distributed.leaving_on_error():
        _label(options, share)
        if share.index == 0:
            text.show(
                "next: lapa train of a policy with "
                f"--config.data.corpora.<name>.{KEYS[options.what]}={options.name}"
            )
        if jax.process_count() > 1:
            # JAX ends processes that wait long for another to end: all end at one time.
            multihost_utils.sync_global_devices(f"labelled {options.name}")
    return 0


def _label(options: Options, share: label.Share) -> None:
    run = load(options.workdir)
    corpus = dict(
        path=options.corpus,
        split=options.split,
        sidecar_dir=options.sidecar_dir,
        image_key=options.image_key,
    )
    if options.what != "image_tokens":
        pairs_of = {"fps": options.fps, "window_seconds": options.window_seconds}
        of_pairs = label.label if options.what == LATENT_ACTIONS else label.label_actions
        of_pairs(run, options.name, corpus | pairs_of, share)
    elif options.window_seconds or options.fps:
        raise ValueError("--window_seconds and --fps are of --what latent_actions and actions")
    else:
        label.label_images(run, options.name, corpus, share)
