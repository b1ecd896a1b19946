"""Memory of a command and of all processes that it starts, from Linux's /proc."""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

INTERVAL = 0.2  # seconds between two looks


def run_and_watch(command: Sequence[str], folder: str | Path) -> tuple[float, float]:
    """Run a command in a folder; its seconds and the peak memory of its processes together in GB.

    A page that several of them share counts once (PSS). Not a number where there is no /proc. Raises RuntimeError when
    the command fails.
    """
    started, peak = time.perf_counter(), 0.0
    words = list(map(str, command))
    with tempfile.TemporaryFile() as errors:  # not a pipe, which could fill up
        run = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        while run.poll() is None:
            peak = max(peak, sum(map(_proportional_gb, _process_tree(run.pid))))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - started
        if run.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {errors.read().decode(errors='replace')}")
    return seconds, peak or float("nan")


def _process_tree(pid: int) -> list[int]:
    """A process and its descendants; one that ends meanwhile may be missing."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(descendant for child in children for descendant in _process_tree(int(child)))]


def private_mb(pid: int) -> float:
    """Memory in MB that a process shares with no other one; not a number where there is no /proc."""
    kilobytes = _rollup(pid)
    return sum(kilobytes[name] for name in ("Private_Clean", "Private_Dirty")) / 1e3 if kilobytes else float("nan")


def _proportional_gb(pid: int) -> float:
    """PSS of one process in GB, 0 when it has ended."""
    return _rollup(pid).get("Pss", 0) / 1e6


def _rollup(pid: int) -> dict[str, int]:
    """Linux's summary of a process's memory in kB; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.endswith("kB"))
    return {name.rstrip(":"): int(value) for name, value, _ in pairs}
