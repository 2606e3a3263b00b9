"""`lapa configs`: the shipped configs, sweeps and studies, what each shows and what it costs.

A name stands wherever a file does, from any directory: `lapa train --config action_vla/tabletop`.
"""

import ast
import textwrap

from lapa_jax import config as configs
from lapa_jax.verbs import flags, text

FUNCTIONS = {
    "get_config": "lapa train --config",
    "get_sweep": "lapa sweep",
    "get_study": "lapa study",
}


def main(argv: list[str]) -> int:
    flags.parser("lapa configs", __doc__, "lapa configs").parse_args(argv)
    for function, use in FUNCTIONS.items():
        text.show(f"{use} NAME[:args]\n")
        for name, path in configs.shipped_files(function).items():
            claim, cost, arguments = told(path.read_text("utf-8"), function)
            text.show(f"  {name}")
            for line in filter(None, (claim, cost, f"Arguments: {arguments}")):
                text.show(textwrap.indent(textwrap.fill(line, 92), " " * 6))
    text.show("\n`lapa config NAME[:args]` prints all keys of one.")
    return 0


def told(source: str, function: str) -> tuple[str, str, str]:
    """(what a config file shows, "Cost: ...", its arguments), by its docstrings."""
    module = ast.parse(source)
    claim, _, rest = (ast.get_docstring(module) or "").partition("\n\n")
    cost = next((part for part in rest.split("\n\n") if part.startswith("Cost:")), "")
    made = next(x for x in module.body if isinstance(x, ast.FunctionDef) and x.name == function)
    return tuple(" ".join(one.split()) for one in (claim, cost, ast.get_docstring(made) or "none"))
