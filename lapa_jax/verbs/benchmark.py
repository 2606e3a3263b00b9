"""`lapa evaluate --benchmark NAME`: a policy behind a server in an environment.

Workers, a process and an environment each, ask the policy by openpi's protocol: a server of this
project, or any other. The same command goes on where it ended. Exit code 3: some episodes ended in
errors, which are neither successes nor failures. See docs/benchmarks.md.
"""

import argparse
import sys

from lapa_jax import envs
from lapa_jax.envs.env import EnvSpec
from lapa_jax.envs.execution import Execution
from lapa_jax.verbs import flags
from lapa_jax.verbs.text import show, table


def main(argv: list[str]) -> int:
    first = argparse.ArgumentParser("lapa evaluate", add_help=False, allow_abbrev=False)
    first.add_argument("--benchmark", required=True)
    first.add_argument("--list", action="store_true")
    name = first.parse_known_args(argv)[0].benchmark
    if name not in envs.ENVS:
        raise ValueError(f"--benchmark {name}: known are {', '.join(sorted(envs.ENVS))}")
    try:
        from lapa_jax.arena import evaluation, results
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error}: pip install websockets msgpack") from error

    parser = flags.parser(
        "lapa evaluate",
        __doc__,
        f"lapa evaluate --benchmark {name} --server ws://127.0.0.1:8000 --out results/{name}",
    )
    parser.add_argument("--benchmark", required=True, help=", ".join(sorted(envs.ENVS)))
    parser.add_argument("--list", action="store_true", help="tasks, cameras and actions; no more")
    kind, _ = envs.ENVS[name]
    flags.add(parser.add_argument_group(f"the environment {name}"), kind)
    flags.add(parser, evaluation.Options)
    flags.add(parser.add_argument_group("how chunks of actions are acted on"), Execution)
    args = parser.parse_args(argv)
    settings = vars(flags.read(args, kind))
    env = envs.make({"name": name, **settings})
    if args.list:
        here = evaluation.python_of(env) == sys.executable  # else the workers say
        show(described(env.spec, env.available() if here else ""))
        return 0
    options, how = flags.read(args, evaluation.Options), flags.read(args, Execution)
    result = evaluation.evaluate(env, {"name": name, **settings}, options, how)
    rows = [["–" if x is None else x for x in row] for row in results.rows(result)]
    notes = results.notes(env.spec, result)
    sys.stderr.write("\n".join([table(rows, left=(0,)), *notes, options.out]) + "\n")
    show(result)
    return 3 if result["all"]["errors"] else 0


def described(spec: EnvSpec, missing: str) -> str:
    """What `--list` prints."""
    bounds = zip(spec.actions, spec.action_low, spec.action_high, spec.action_units, strict=True)
    actions = [["action", "from", "to", "unit"]]
    actions += [[name, f"{low:g}", f"{high:g}", unit] for name, low, high, unit in bounds]
    height, width = spec.image_size
    lines = [
        f"{spec.name}: {len(spec.tasks)} tasks, {spec.control_hz:g} actions a second, "
        f"{spec.horizon} at most",
        f"cameras: {', '.join(spec.cameras)}, {height} x {width}; views: {', '.join(spec.views)}",
        f"state: {', '.join(spec.state) or 'none'}",
        *([f"cannot run here: {missing}"] if missing else []),
        "",
        table(actions, left=(0, 3)),
        "",
        *spec.tasks,
    ]
    return "\n".join(lines) + "\n"
