"""`lapa completion`: a script that lets a shell complete verbs, flags, names of configs and files.

    lapa completion bash > ~/.local/share/bash-completion/completions/lapa
    lapa completion zsh >> ~/.zshrc

Make it anew after an update: it knows what is there now.
"""

import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence

from lapa_jax import cli
from lapa_jax import config as configs
from lapa_jax.verbs import data, flags, text

SCRIPT = """\
_lapa() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=""
    local verb=${COMP_WORDS[1]}
    [[ $verb == data && $COMP_CWORD -gt 2 ]] && verb="data ${COMP_WORDS[2]}"
    [[ $COMP_CWORD -eq 1 ]] && verb=""
    case "$verb" in
%s
    esac
    case "$prev" in
        --config | config | sweep) words="$words %s" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur") $(compgen -f -- "$cur"))
}
complete -o filenames -F _lapa lapa
"""
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa completion", __doc__, "lapa completion bash")
    parser.add_argument("shell", choices=("bash", "zsh"))
    args = parser.parse_args(argv)
    verbs = {"": sorted(cli.VERBS), "data": sorted(data.VERBS)}
    verbs |= {verb: flags_of(told[0]) for verb, told in cli.VERBS.items() if verb != "data"}
    verbs |= {f"data {verb}": flags_of(told[0]) for verb, told in data.VERBS.items()}
    names = list(configs.shipped_files("get_config", "get_sweep"))
    text.show((ZSH if args.shell == "zsh" else "") + script(verbs, names))
    return 0


def flags_of(module: str) -> list[str]:
    """The flags that a verb's help tells."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*[a-z]", told.getvalue())))


def script(verbs: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """For bash: what may follow each verb ("": lapa itself), and names of configs."""
    cases = [f'        "{verb}") words="{" ".join(words)}" ;;' for verb, words in verbs.items()]
    return SCRIPT % ("\n".join(cases), " ".join(names))
