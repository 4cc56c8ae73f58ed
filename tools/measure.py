"""How long something took, and how much memory the notebook kernels below this process held at most, all together."""

import contextlib
import os
import re
import threading
import time
from pathlib import Path
from typing import Self

import psutil


def held(process: psutil.Process) -> tuple[float, float]:
    """(memory now, most so far) in GB. On Linux pages that processes share are divided among them."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        with contextlib.suppress(psutil.Error):  # not Linux
            return (process.memory_info().rss / 1e9,) * 2
        return 0.0, 0.0  # it has just ended
    now, most = re.search(r"^Pss: +(\d+)", rollup, re.M), re.search(r"^VmHWM:\s+(\d+)", status, re.M)
    return float(now[1]) * 1.024e-6 if now else 0.0, float(most[1]) * 1.024e-6 if most else 0.0


def kernels() -> list[psutil.Process]:
    """The notebook kernels below this process, and all that they have started."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ipykernel_launcher" in process.cmdline():
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return list(found.values())


class Watch:
    """A context: `seconds` since its start, `peak_gb` of the kernels started within it and of what these start."""

    def __init__(self, every: float = 0.5) -> None:
        self.every, self.peak_gb, self.seconds = every, 0.0, 0.0
        self.course: list[tuple[float, float]] = []  # (moment, GB held then)

    def __enter__(self) -> Self:
        self.start, self.stop = time.perf_counter(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.stop.set()
        self.thread.join()
        self.seconds = time.perf_counter() - self.start

    def _watch(self) -> None:
        while not self.stop.wait(self.every):
            found = [held(process) for process in kernels()]
            if found:
                self.course.append((time.perf_counter(), sum(now for now, _ in found)))
                self.peak_gb = max(self.peak_gb, sum(now for now, _ in found), *(most for _, most in found))
