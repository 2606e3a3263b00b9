"""`lapa import`: foreign weights → a run directory that every other verb reads.

The directory holds a checkpoint of step 0 with the parameters and the config that describes them;
training starts from it through `init_from`.
"""

import sys
from pathlib import Path

from data_pipelines import storage
from lapa_jax.interop import hub
from lapa_jax.interop.formats import FORMATS
from lapa_jax.interop.imported import write_run
from lapa_jax.nn.module import flatten
from lapa_jax.verbs import flags

EXAMPLE = """lapa import --format laq_pt --source laq_openx.pt --image_size 256 --code_length 4 \\
    --out runs/laq_openx
  lapa import --format dinov2 --source model.safetensors --out runs/dinov2
  lapa import --format vqgan_pickle --source vqgan --out runs/vqgan
  lapa import --format lapa_stream --source params --size 7b --tokenizer tokenizer.model \\
    --out runs/lapa_7b"""
WAYS = {name: one.read for name, one in FORMATS.items() if one.read}


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa import", __doc__, EXAMPLE)
    choices = {name: (way.what, way.options) for name, way in WAYS.items()}
    flags.add_choice(parser, "format", choices)
    parser.add_argument(
        "--source",
        required=True,
        help="the file or directory to read, or hf://ORG/NAME[@REVISION][/PATH] on the hub",
    )
    parser.add_argument("--out", required=True, help="a new run directory")
    args = parser.parse_args(argv)
    options = flags.read_choice(args, "format", choices)
    out = Path(args.out)
    storage.make_directory(out.parent)
    if out.exists() and any(storage.given_folder(out, "a new directory").iterdir()):
        raise ValueError(f"--out {out} is not empty: imports go to a new directory")
    source = Path(args.source)
    if args.source.startswith(hub.PREFIX):
        source = hub.pull(hub.parse(args.source))
    found = WAYS[args.format].call(source, options)
    write_run(out, found, source=args.source, source_format=args.format)
    flat = flatten(found.params)
    count = sum(x.size for x in flat.values())
    sys.stdout.write(f"{args.source} -> {out}: {len(flat)} tensors, {count} values\n")
    return 0
