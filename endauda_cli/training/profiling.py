"""Where the time of a few steps goes: a trace of them, and a table of the dearest operators."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile, schedule

from endauda_cli.errors import EndaudaError
from endauda_cli.progress import Note, Reporter
from endauda_cli.workspace import write_text

if TYPE_CHECKING:
    from pathlib import Path

    import torch

TRACE_FILE, OPERATORS_FILE = "trace.json.gz", "operators.txt"
WARM_UP = 10
"""Steps that are not looked at: caches fill, and libraries choose their algorithms."""
OPERATORS = 30
"""Rows of the table."""


class Profile:
    """Looks at some steps of a run, and writes what it saw into the run's folder; the run goes on.

    Args:
        out: the folder.
        steps: how many to look at.
        left: steps that the run has before it; the warm-up is shorter where they are few.
        device: where it trains.
        report: told where the trace lies.
    """

    def __init__(self, out: Path, steps: int, left: int, device: torch.device, report: Reporter) -> None:
        self.out, self.steps, self.report, self.on_card = out, steps, report, device.type == "cuda"
        self.written, self.seen = False, 0
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to stderr where the bars are
        self.warm_up = warm_up = max(1, min(WARM_UP, left - steps))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_card else [])]
        # The last step of the warm-up is with the profiler, whose own beginning is slow.
        plan = schedule(skip_first=warm_up - 1, wait=0, warmup=1, active=steps, repeat=1)
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self.profiler.start()

    def stepped(self) -> None:
        """After each step."""
        if not self.written:
            self.seen += 1
            self.profiler.step()
            if self.written:
                self.profiler.stop()

    def close(self) -> None:
        """Also where the run ended before all was seen."""
        if not self.written:
            self.profiler.stop()
        if not self.written:
            self.report(Note("--profile: the run had too few steps left to look at any", "warning"))

    def _write(self, seen: profile) -> None:
        self.written = True
        trace, operators = self.out / TRACE_FILE, self.out / OPERATORS_FILE
        by = "self_cuda_time_total" if self.on_card else "self_cpu_time_total"
        try:
            write_text(operators, seen.key_averages().table(sort_by=by, row_limit=OPERATORS) + "\n")
            seen.export_chrome_trace(str(trace))
        except (EndaudaError, OSError, RuntimeError) as error:
            self.report(Note(f"--profile: {error}; the run goes on without", "warning"))
            return
        steps = self.seen - self.warm_up
        self.report(
            Note(
                f"--profile: {steps} steps are in {trace}, which ui.perfetto.dev and chrome://tracing show; the "
                f"dearest operators are in {operators.name} beside it"
            )
        )
