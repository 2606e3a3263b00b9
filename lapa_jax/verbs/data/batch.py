"""`lapa data batch`: the examples of a training step and where they come from."""

from __future__ import annotations

from typing import Any

from data_pipelines.loader import Loader, open_mixture
from lapa_jax import config as configs
from lapa_jax import settings, stages
from lapa_jax.report.corpus import contact_sheet
from lapa_jax.runs.start import stage_for
from lapa_jax.runs.usable import usable
from lapa_jax.verbs import data, flags, text


def main(argv: list[str]) -> int:
    parser = data.parser("batch", __doc__)
    parser.add_argument(
        "--step",
        type=flags.number(int, "[0, 1e9]"),
        required=True,
        help="from 0: K leads from step K to step K + 1",
    )
    parser.add_argument("--workdir", help="a run: its config, in the place of --config")
    parser.add_argument(
        "--hosts",
        type=flags.number(int, "[1, 1e9]"),
        default=1,
        help="number of hosts (default: 1)",
    )
    parser.add_argument(
        "--host",
        type=flags.number(int, "[0, 1e9]"),
        help="only what this host gets (default: all hosts)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--png", metavar="FILE", help="write a contact sheet")
    parser.add_argument(
        "--max_examples",
        type=flags.number(int, "[1, 1e9]"),
        default=16,
        help="examples on the sheet (default: 16)",
    )
    args, config = configs.parse(parser, argv, or_workdir=True)
    settings.check(config)
    fields = stages.get(config.stage).fields_of(config)
    shared = dict(fields=fields, global_batch=config.global_batch, seed=config.seed)
    host, hosts = (0, 1) if args.host is None else (args.host, args.hosts)
    if args.hosts < 1 or config.global_batch % args.hosts:
        raise ValueError(
            f"config.global_batch={config.global_batch} is not a multiple of --hosts {args.hosts}"
        )
    per_host = config.global_batch // args.hosts
    mixture = open_mixture(config.data, fields)
    if config.data.unusable_episodes == "leave_out":
        mixture = usable(mixture, stage_for(config, mixture, args.workdir))
    with Loader(config.data, host=host, num_hosts=hosts, mixture=mixture, **shared) as loader:
        values = loader.batch(args.step)
        records = loader.describe(args.step)
        fingerprint = loader.fingerprint(args.step)
    records = records[host * len(values["position"]) :][: len(values["position"])]
    for number, record in enumerate(records):
        record["host"] = host + number // per_host
        for key in ("action", "latent_action"):
            if key in values:
                record[key] = values[key][number].tolist()
    if args.json:
        text.show({"fingerprint": fingerprint, "examples": records})
    else:
        text.show("\n".join(_example_line(record) for record in records))
    if args.png:
        if "frames" not in values:
            raise ValueError(f"stage {config.stage!r} loads no frames for --png")
        shown = records[: args.max_examples]
        contact_sheet(
            args.png, values["frames"][: len(shown)], [_caption(record) for record in shown]
        )
    return 0


def _example_line(record: dict[str, Any]) -> str:
    parts = [
        f"{record['position']:>8}",
        f"host {record['host']}",
        record["corpus"],
        str(record["episode_id"] or record["episode"]),
        "steps " + ",".join(str(step) for step in record["steps"]),
    ]
    if "action" in record:
        parts.append("a=" + _numbers(record["action"]))
    if "latent_action" in record:
        parts.append("z=" + _numbers(record["latent_action"]))
    parts.append(record["instruction"] or "(no instruction)")
    parts += [f"REPLACED: {reason}" for reason in record["bad"]]
    return "  ".join(parts)


def _caption(record: dict[str, Any]) -> str:
    episode = str(record["episode_id"] or record["episode"])
    lines = [f"{record['corpus']}  {_short(episode, 28)}  {record['steps']}"]
    lines.append(_short(record["instruction"] or "(no instruction)", 50))
    if "latent_action" in record:
        lines.append("z = " + _numbers(record["latent_action"]))
    if "action" in record:
        lines.append("a = " + _numbers(record["action"]))
    return "\n".join(lines + [f"REPLACED: {_short(reason, 40)}" for reason in record["bad"]])


def _numbers(values: list | float) -> str:
    if not isinstance(values, list):
        return f"{values:.3g}"
    return "[" + " ".join(_numbers(value) for value in values) + "]"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
