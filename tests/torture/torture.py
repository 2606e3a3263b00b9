"""Trains a stage under random faults and compares it with the same run that nothing disturbs.

    python tests/torture/torture.py --stage quantizer --faults 100 --seed 0 --out DIR

Everything is compared bitwise: parameters, moving average, optimizer state, variables, the data's
fingerprint and every line of metrics.jsonl at the end; and at each restart the checkpoint that is
used. Faults are drawn from the seed; when they strike within a step depends on the machine.
"""

import argparse
import collections
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # of tiny, when this is the program

import tiny  # noqa: E402
from faults import DEVICES, EARLY, FAULTS, Supervised, TortureError  # noqa: E402

SAVE_EVERY_STEPS = 5
DELAY_STEPS = 8  # are trained from when a fault is due to when it strikes
END_STEPS = 60  # are left at least when the last fault is due: a busy driver strikes late
START_SECONDS = 5.0  # about what an attempt takes to its first step
STAGES = ("teacher", "quantizer", "latent_pretraining", "action_finetuning")
EXPECTED = {  # how an attempt ends that was training
    "kill": ("crashed",),
    "kill_in_save": ("crashed",),
    "terminate": ("preempted",),
    "interrupt": ("preempted",),
    "hang": ("hung",),
    # One process fails, the other waits for it: for longer than the supervisor here.
    "full_disk": ("crashed", "hung"),
    "flip": ("crashed",),
    "truncate": ("crashed",),
}


def arguments(stage: str, data: Path, steps: int, keep: int) -> list[str]:
    """Of a run on all devices, however many processes have them."""
    changes = dict(steps=steps, checkpoint__every_steps=SAVE_EVERY_STEPS, checkpoint__keep=keep)
    return tiny.arguments(stage, data, **changes, optimizer__ema_decay=0.9)


def undisturbed(stage: str, data: Path, steps: int, workdir: Path) -> None:
    """The run to compare with; it keeps every checkpoint."""
    train = ["train", *arguments(stage, data, steps, keep=10**6), "--workdir", str(workdir)]
    with open(workdir.with_suffix(".log"), "w") as log:
        process = tiny.command(train, log, DEVICES)
        try:
            code = process.wait(3600)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if code:
        raise TortureError(f"the undisturbed run ended with {code}: see {log.name}")


class Finished(Exception):
    """The run has come to its end."""


class Torture:
    """One stage: `faults` of the kinds of `plan` strike while it trains."""

    def __init__(self, stage: str, data: Path, folder: Path, plan: list[str], seed: int, mean: int):
        """`mean`: steps between two faults."""
        self.stage, self.plan, self.rng = stage, plan, random.Random(f"{stage} {seed}")
        self.steps = mean * len(plan)
        self.reference = folder / "undisturbed"
        self.run = Supervised(
            arguments(stage, data, self.steps, keep=4), folder / "run", folder / "run.log"
        )
        self.record: list[dict[str, Any]] = []
        self.found: list[str] = []  # damaged files that were named
        self.harmless: list[str] = []  # damaged files of steps that were used: no array was wrong
        self.unread: list[str] = []  # damaged files of steps that nobody needed
        self.compared = self.lost = self.restarts = 0
        self.restart_seconds: list[float] = []
        self._judged = 0

    def go(self) -> dict[str, Any]:
        """Figures. Raises TortureError where the run is not what it would have been."""
        began = time.monotonic()
        try:
            self.run.start(processes=1)
            with contextlib.suppress(Finished):  # a run of quick steps may end before the last
                for number, kind in enumerate(self.plan):
                    self._strike(kind, len(self.plan) - number)
            code = self.run.wait()
            if code:
                raise TortureError(f"in the end the supervisor ended with {code}")
        finally:
            self.run.kill()
        self._judge()
        for step in sorted(self.run.damaged):
            self._drop(step)
        compare(self.run.workdir, self.reference)
        return {
            "stage": self.stage,
            "steps": self.steps,
            "faults": dict(collections.Counter(entry["kind"] for entry in self.record)),
            "restarts": self.restarts,
            "steps_lost": self.lost,
            "checkpoints_compared": self.compared,
            "damage_found": len(self.found),
            "damage_harmless": self.harmless,
            "damage_unread": len(self.unread),
            "restart_seconds": [round(x, 1) for x in sorted(self.restart_seconds)],
            "seconds": round(time.monotonic() - began),
            "record": self.record,
        }

    def _strike(self, kind: str, left: int) -> None:
        """Waits for a moment, does it, and waits for the next attempt."""
        run, rng = self.run, self.rng
        attempt, early = run.attempt, kind in EARLY and rng.random() < 0.3
        if early:
            until = time.monotonic() + rng.uniform(0, START_SECONDS)
            self._wait(lambda: time.monotonic() > until or run.first_step(attempt) is not None)
        else:
            self._wait(lambda: run.first_step(attempt) is not None)
            self._judge()
            _, first = run.first_step(attempt)
            room = self.steps - END_STEPS - first
            share = room // left - DELAY_STEPS
            target = first + rng.randint(0, max(0, min(2 * share, room)))
            self._wait(lambda: run.step() >= target)
            time.sleep(rng.uniform(0, 0.1))
        entry = {"kind": kind, "early": early, "step": run.step(), "processes": run.processes}
        if kind == "other_processes":
            self._judge()
            entry |= FAULTS[kind](run, rng)
            self._judged = 0
            for step, (file, _) in run.damaged.items():
                run.damaged[step] = (file, 0)
        else:
            entry |= FAULTS[kind](run, rng)
            run.wait_for(lambda: run.attempt > attempt)
            outcome = entry["outcome"] = run.ended(attempt)
            if not early and outcome not in EXPECTED[kind]:
                raise TortureError(f"{entry}: not {EXPECTED[kind]}")
        self.restarts += 1
        self.record.append(entry)
        sys.stderr.write(f"{self.stage}: {len(self.record)}/{len(self.plan)} {entry}\n")

    def _wait(self, ready) -> None:
        """... for the attempt that runs, which must not end by itself."""
        run, attempt = self.run, self.run.attempt
        run.wait_for(lambda: ready() or run.ended(attempt) is not None)
        if run.ended(attempt) == "finished":
            raise Finished
        if run.ended(attempt) is not None:
            tail = "\n".join(run.lines[-60:])
            raise TortureError(f"attempt {attempt} {run.ended(attempt)} by itself:\n{tail}")

    def _judge(self) -> None:
        """What the attempts since the last call have said of the checkpoints that they found."""
        run = self.run
        for attempt in range(self._judged + 1, run.attempt + 1):
            first, ended = run.first_step(attempt), run.ended(attempt)
            if first is None and ended is None:
                break
            self._judged = attempt
            damaged = {step for step, (_, before) in run.damaged.items() if before < attempt}
            named = {int(m[1]) for _, m in run.said(r"DAMAGED CHECKPOINT: .*/(\d+)$", attempt)}
            if named - damaged:
                raise TortureError(f"attempt {attempt} calls {named} damaged, not {damaged}")
            used = [int(m[1]) for _, m in run.said(r"continues at step (\d+) of", attempt)]
            if used:  # else killed before it had put the damaged steps aside
                self.found += [run.damaged.pop(step)[0] for step in sorted(named)]
                self._compare_used(used[0], used[0] in damaged)
            self.lost += sum(int(m[1]) for _, m in run.said(r"dropped (\d+) lines", attempt))
            if first is not None:
                started = run.said("^supervise: .* started", attempt)[0][0]
                self.restart_seconds.append(first[0] - started)
        for step in run.damaged.keys() - set(tiny.checkpoint.list_steps(run.checkpoints)):
            self._drop(step)

    def _drop(self, step: int) -> None:
        """A damaged step that no restart has found damaged, and none will."""
        file = self.run.damaged.pop(step)[0]
        if file not in self.harmless:
            self.unread.append(file)

    def _compare_used(self, step: int, damaged: bool) -> None:
        """A step that a restart has read, and found to be as its checksums say: are these the
        checksums of the undisturbed run?"""
        if damaged:
            file = self.run.damaged[step][0]
            if file not in self.harmless:
                self.harmless.append(file)
            if file.endswith("meta/metadata"):
                raise TortureError(f"step {step} was used with another {file}")
        elif step in self.run.damaged:
            return  # since then
        there = self.run.checkpoints / str(step) / "meta"
        if step % SAVE_EVERY_STEPS == 0 and there.exists():
            if checksums(self.run.workdir, step) != checksums(self.reference, step):
                raise TortureError(f"step {step} is not that of the undisturbed run")
            self.compared += 1


def checksums(workdir: Path, step: int) -> dict:
    """Of every array, as the checkpoint says; restoring has compared them with the arrays."""
    document = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return json.loads(document["payload"])["arrays"]


def compare(workdir: Path, reference: Path) -> None:
    """Raises TortureError unless two runs have come to the same, bitwise."""
    found, expected = tiny.result(workdir), tiny.result(reference)
    for result in (found, expected):
        del result["meta"]["config"]["checkpoint"]  # how many are kept
    arrays = [p for p, value in expected["arrays"].items() if found["arrays"].get(p) != value]
    if arrays or found["arrays"].keys() != expected["arrays"].keys():
        raise TortureError(f"arrays differ: {arrays[:10]}")
    for row, other in zip(found["metrics"], expected["metrics"], strict=True):
        if row != other:
            raise TortureError(f"metrics differ:\n{row}\n{other}")
    if found != expected:
        raise TortureError("meta differs: data fingerprint, assets or provenance")


def make_plan(faults: int, rng: random.Random) -> list[str]:
    """Every kind as often as the others, in random order; two processes never for long, since they
    take much longer to start."""
    switches = faults // (2 * len(FAULTS)) or 1
    kinds = [kind for kind in FAULTS if kind != "other_processes"]
    plan = [kinds[i % len(kinds)] for i in range(faults - 2 * switches)]
    rng.shuffle(plan)
    stretch = len(plan) // switches
    for place in reversed(range(0, stretch * switches, stretch)):
        length = min(rng.randint(2, 6), stretch - 1)
        first = place + rng.randint(0, stretch - length)
        plan[first : first + length] = [
            "other_processes",
            *plan[first : first + length],
            "other_processes",
        ]
    return plan


def torture(
    stage: str, data: Path, folder: Path, faults: int, seed: int, mean: int
) -> dict[str, Any]:
    """Both runs of a stage, in `folder`, and their comparison; see `Torture`."""
    folder.mkdir(parents=True)
    # Shells start what is in the background with it ignored, and so would our processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    one = Torture(stage, data, folder, make_plan(faults, random.Random(seed)), seed, mean)
    undisturbed(stage, data, one.steps, one.reference)
    result = one.go()
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: all")
    parser.add_argument("--faults", type=int, default=100, help="of each stage (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps_per_fault", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    data = options.out / "data"
    tiny.write_labels(tiny.write_corpus(data / "robot"))
    tiny.os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.out / "compiled"))
    failed = False
    for stage in options.stage or STAGES:
        try:
            result = torture(
                *(stage, data, options.out / stage, options.faults, options.seed),
                options.steps_per_fault,
            )
        except TortureError as error:
            sys.stderr.write(f"{stage} FAILED: {error}\n")
            failed = True
            continue
        del result["record"]
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
