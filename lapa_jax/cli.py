"""`lapa VERB ...`: each verb is a module of this package with a `main(argv)`."""

import faulthandler
import importlib
import logging as py_logging
import os
import sys
from collections.abc import Callable

from lapa_jax.machine import allocator
from lapa_jax.version import __version__

# verb → (module, what it does, an example)
VERBS = {
    "demo": (
        "lapa_jax.verbs.demo",
        "the whole method on the tabletop world, small, with a report",
        "lapa demo",
    ),
    "train": (
        "lapa_jax.train",
        "train any stage: teacher, image_tokenizer, quantizer, dynamics, latent_pretraining, ...",
        "lapa train --config quantizer/tabletop:quick=True --workdir runs/quantizer",
    ),
    "label": (
        "lapa_jax.verbs.label",
        "latent actions of a corpus by a quantizer, or its image tokens, as sidecar files",
        "lapa label --workdir runs/quantizer --corpus data/robot --name laq",
    ),
    "evaluate": (
        "lapa_jax.verbs.evaluate",
        "diagnostics of a quantizer; token accuracy and closed-loop success of a policy, also of "
        "one behind a server (--benchmark)",
        "lapa evaluate --workdir runs/quantizer",
    ),
    "rollout": (
        "lapa_jax.verbs.rollout",
        "imagined videos of given latent actions, of a video's or a policy's, and how far they can "
        "be trusted",
        "lapa rollout --workdir runs/quantizer --corpus data/heldout --out rollouts",
    ),
    "serve": (
        "lapa_jax.verbs.serve",
        "a policy behind WebSocket (openpi's protocol) and REST, with a page to try it",
        "lapa serve --workdir runs/action_vla",
    ),
    "play": (
        "lapa_jax.verbs.play",
        "latent actions as controls: a page that shows what a quantizer or dynamics model imagines",
        "lapa play --workdir runs/quantizer --frame first.png",
    ),
    "plan": (
        "lapa_jax.verbs.plan",
        "what a training will cost: FLOPs, memory, disk, hours, and what to look at when",
        "lapa plan --config quantizer/paper --topology v5e-16",
    ),
    "sweep": (
        "lapa_jax.verbs.sweep",
        "a grid of quantizer runs, with a table, CSV and heat maps",
        "lapa sweep sweeps/codebook --workdir runs/sweep --dry_run",
    ),
    "study": (
        "lapa_jax.verbs.study",
        "several runs that answer one question, as a file says: arms, seeds, rows of results",
        "lapa study my_study.py --workdir runs/my_study",
    ),
    "bench": (
        "lapa_jax.verbs.bench",
        "how fast training steps and decoding run, beside what the device can do",
        "lapa bench policy",
    ),
    "configs": (
        "lapa_jax.verbs.configs",
        "the shipped configs and sweeps: what each shows, what it costs, its arguments",
        "lapa configs",
    ),
    "config": (
        "lapa_jax.verbs.config",
        "a config as it would run: all its keys, what they mean and what they may be",
        "lapa config action_vla/tabletop:quick=True --config.steps=200",
    ),
    "status": (
        "lapa_jax.verbs.status",
        "what runs are doing, from their files alone",
        "lapa status runs",
    ),
    "doctor": (
        "lapa_jax.verbs.doctor",
        "is this machine ready to train? devices, versions, disk, collectives",
        "lapa doctor --expect gpu --dir runs",
    ),
    "compile": (
        "lapa_jax.verbs.compile",
        "compile a training step for a TPU slice or GPU hosts that are not there: does it fit?",
        "lapa compile --config quantizer/paper --topology v5e-16",
    ),
    "import": (
        "lapa_jax.verbs.importer",
        "foreign weights as a run: quantizers (laq_pt), policies (lapa_stream, hf, hf_llama), "
        "image tokenizers (vqgan_pickle), teachers (dinov2), what was exported (safetensors)",
        "lapa import --format laq_pt --source laq_openx.pt --image_size 256 --out runs/laq_openx",
    ),
    "export": (
        "lapa_jax.verbs.export",
        "a run's weights in a foreign format, checked: policies for PyTorch (hf), plain arrays "
        "(safetensors), quantizers for PyTorch (laq_torch) and in the original's form (laq_pt)",
        "lapa export --format hf --workdir runs/action_vla --out policy",
    ),
    "completion": (
        "lapa_jax.verbs.completion",
        "a script that lets bash or zsh complete verbs, flags and names of configs",
        "lapa completion bash > ~/.local/share/bash-completion/completions/lapa",
    ),
    "data": (
        "lapa_jax.verbs.data",
        "collect, convert, index, inspect data; show the batch of a step",
        "lapa data collect --out data/tabletop --episodes 100 --families reach --views robot",
    ),
}

# Verbs whose programs run over and over.
STEADY = ("demo", "train", "label", "evaluate", "sweep", "study", "bench", "rollout")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; a user error becomes one line on stderr and exit code 2."""
    whole = argv is None  # the process is ours
    argv = sys.argv[1:] if whole else argv
    if argv == ["--version"]:
        sys.stdout.write(f"lapa_jax {__version__}\n")
        return 0
    if whole and argv and argv[0] in STEADY:
        allocator.take_huge_pages()
    return dispatch("lapa", VERBS, list(map(_at_home, argv)), run)


def _at_home(argument: str) -> str:
    """With the home directory for the "~" that a value begins with: shells leave it in
    --flag=~/file."""
    flag, equals, value = argument.partition("=")
    if not (equals and flag.startswith("--")):
        flag, equals, value = "", "", argument
    return flag + equals + os.path.expanduser(value)


def dispatch(
    program: str,
    verbs: dict[str, tuple[str, str, str]],
    argv: list[str],
    call: Callable[[str, list[str]], int],
) -> int:
    """`call(module, the rest)` of the verb that `argv` begins with; without one tells them all."""
    wide = max(map(len, verbs)) + 1
    lines = [f"usage: {program} VERB [flags]     ({program} VERB --help tells the flags)", ""]
    for verb, (_, text, example) in verbs.items():
        lines += [f"  {verb:<{wide}} {text}", f"  {'':<{wide}} {example}"]
    usage = "\n".join(lines) + "\n"
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage)
        return 0
    verb, *rest = argv
    if verb not in verbs:
        sys.stderr.write(f"{program}: unknown verb {verb!r}\n\n{usage}")
        return 2
    return call(verbs[verb][0], rest)


def run(module: str, argv: list[str]) -> int:
    """Calls `module.main(argv)`; errors that name a bad input are shown without a traceback."""
    from absl import flags, logging

    from lapa_jax import config

    # At SIGABRT (a hang: launch/supervise.py) and crashes the stacks of all threads are shown.
    faulthandler.enable(sys.__stderr__)
    flags.FLAGS.mark_as_parsed()  # its log warns of flags that nobody has
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_not_chatter)
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
    try:
        config.shipped()
        return importlib.import_module(module).main(argv) or 0
    except BrokenPipeError:  # of `lapa ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not (message := _message(error)):
            raise
        sys.stderr.write(f"lapa: {message}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("lapa: interrupted; the same command goes on from what was saved\n")
        return 130


def _not_chatter(record: py_logging.LogRecord) -> bool:
    """Drops what libraries tell at INFO: Orbax dozens of lines a checkpoint, JAX of backends; and
    the tracebacks of gcsfs, which raises what it logs."""
    if record.name.startswith("gcsfs"):
        record.exc_info = record.exc_text = None
    ours = record.name == "absl" and "orbax" not in record.pathname
    return ours or record.levelno > py_logging.INFO


def _message(error: Exception) -> str | None:
    """What tells a user enough without a traceback; None where an error may be a fault of ours."""
    modules, frame = [], error.__traceback__
    while frame:
        modules.append(frame.tb_frame.f_globals.get("__name__", ""))
        frame = frame.tb_next
    module = modules[-1]
    ours = module.split(".")[0] in ("lapa_jax", "data_pipelines", "experiments", "launch")
    told = isinstance(error, ValueError | OSError | RuntimeError | ArithmeticError | AssertionError)
    if (ours and told) or (isinstance(error, OSError) and error.filename):
        return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    if any(name.startswith("gcsfs.") for name in modules):
        return (
            f"a bucket does not answer as asked ({type(error).__name__}: {error}). Does it exist, "
            "and may this machine use it? `lapa doctor --bucket gs://BUCKET/PATH` tells"
        )
    if module == "jax._src.xla_bridge":  # with nothing but "AssertionError" for cuda
        asked = os.environ.get("JAX_PLATFORMS")
        said = str(error).partition(" (set JAX_PLATFORMS")[0]
        return (
            f"JAX finds no device with JAX_PLATFORMS={asked}{said and ': '}{said}. "
            "Unset it, or see what `lapa doctor` says"
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
