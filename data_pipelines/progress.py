"""How far a long piece of work is: a bar on a terminal; in a log, a line now and then.

What is waited for before the first piece, such as XLA, is named, and its time is left out of the
speed and of the time left.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import tqdm

COMPILING = "compiling"  # what XLA does before the first step of a program
FIRST_SECONDS = 5.0  # until the first line of a log, to have measured something


class Progress:
    """`total` pieces of work (None: not known), `done` of them already; entered, or closed.

    unit: of a piece; "B": bytes. show: whether anything is told. line_every_seconds: of lines where
    `stream` (standard error) is no terminal; the last piece has a line in any case.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        unit: str,
        done: int = 0,
        show: bool = True,
        line_every_seconds: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._name, self._total, self._unit, self._show = name, total, unit, show
        self.done, self._fields, self._waits = done, "", False
        self._clock, self._every, self._began = clock, line_every_seconds, clock()
        self._count_from()
        self._bar = None
        if show and self._stream.isatty():
            self._bar = tqdm.tqdm(
                desc=name,
                total=total,
                initial=done,
                unit=unit,
                unit_scale=unit == "B",
                dynamic_ncols=True,
                file=self._stream,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def waits(self, what: str = COMPILING) -> None:
        """Tells what the next piece waits for; that piece counts neither for the speed nor for the
        time left."""
        self._waits = True
        if self._bar is not None:
            self._bar.set_postfix_str(what)
        elif self._show:
            self._line(what)

    def update(self, pieces: int = 1, **fields: Any) -> None:
        """So many more are done. fields: what else to show from now on, as loss="0.1"."""
        self.done += pieces
        if fields:
            self._fields = ", ".join(f"{key} {value}" for key, value in fields.items())
        waited, self._waits = self._waits, False
        if waited:
            self._count_from()
        if self._bar is not None:
            if fields or waited:
                self._bar.set_postfix_str(self._fields, refresh=False)
            if waited:
                self._bar.n = self._bar.initial = self._bar.last_print_n = self.done
                self._bar.unpause()
                self._bar.refresh()
            else:
                self._bar.update(pieces)
        elif self._show:
            now, last = self._clock(), self._is_done
            if last or now >= self._next_line:
                self._next_line = now + self._every
                self._line(f"{self._fields}, " * bool(self._fields) + self._left(now))

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    @property
    def _is_done(self) -> bool:
        return self._total is not None and self.done >= self._total

    def _count_from(self) -> None:
        """Speed is measured from here on."""
        self._start, self._first = self._clock(), self.done
        self._next_line = self._start + min(FIRST_SECONDS, self._every)

    def _line(self, told: str) -> None:
        done, total = (
            tqdm.tqdm.format_sizeof(n, "B") if self._unit == "B" and n is not None else n
            for n in (self.done, self._total)
        )
        of = "" if total is None else f"/{total}"
        unit = "" if self._unit == "B" else f"{self._unit} "
        self._stream.write(f"{self._name}: {unit}{done}{of}, {told}\n")
        self._stream.flush()

    def _left(self, now: float) -> str:
        counted = self.done - self._first
        if self._is_done or self._total is None or not counted:
            return f"{tqdm.tqdm.format_interval(now - self._began)} taken"
        seconds = (now - self._start) / counted * (self._total - self.done)
        return f"{tqdm.tqdm.format_interval(seconds)} left"
