"""What every benchmark shares: timing, memory, and the written result."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from data.records import SampleRecord
from utils.files import without_nan, write_json
from utils.machine import machine

SAMPLES = {"mini_train": 323, "train": 28_130}  # key frames of nuScenes' splits


def timed(work: Callable, *arguments: object) -> tuple[object, float]:
    """What work(*arguments) returns, and the seconds it took."""
    started = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - started


def rounds(
    work: Mapping[str, Callable[[], object]], warmup: int, repeats: int
) -> tuple[dict[str, np.ndarray], Callable[[str, str], dict[str, float]]]:
    """Seconds [repeats] of several works that take turns, so that noise of the machine meets all alike.

    Also returns a function of two names: the spread of how many times longer the first took than the second, round by
    round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(warmup + repeats):
        for name, each in work.items():
            taken = timed(each)[1]
            if number >= warmup:
                seconds[name].append(taken)
    found = {name: np.array(values) for name, values in seconds.items()}
    return found, lambda slower, faster: spread(found[slower] / found[faster])


@contextmanager
def recorded_calls(module: ModuleType, names: Iterable[str]) -> Iterator[list[Callable[[], object]]]:
    """Inside it, functions of a module are called as ever, and each call is kept so that it can be made again.

    To make them all again takes what the library's own work takes, without the code that asks for it: a limit. What
    such a call calls in its turn is part of it.
    """
    calls: list[Callable[[], object]] = []
    running = False

    def keeping(function: Callable) -> Callable:
        def keep(*arguments: object, **named: object) -> object:
            nonlocal running
            if running:
                return function(*arguments, **named)
            calls.append(partial(function, *arguments, **named))
            running = True
            try:
                return function(*arguments, **named)
            finally:
                running = False

        return keep

    originals = {name: getattr(module, name) for name in names}
    for name, function in originals.items():
        setattr(module, name, keeping(function))
    try:
        yield calls
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


def make_again(calls: Iterable[Callable[[], object]]) -> None:
    """Make recorded calls, one after the other."""
    for call in calls:
        call()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, 10th and 90th percentile and count of repeated measurements."""
    values = np.asarray(values, np.float64)
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {
        "median": float(median),
        "mean": float(values.mean()),
        "p10": float(low),
        "p90": float(high),
        "count": len(values),
    }


def copies_of(records: Sequence[SampleRecord], count: int) -> list[SampleRecord]:
    """The records over and over, each copy under a token of its own."""
    return [replace(records[index % len(records)], sample_token=f"{index:032x}") for index in range(count)]


def private_memory_mb() -> float:
    """Memory of this process that no file backs, in MB; not a number where Linux's /proc is not there."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")), float("nan"))


def write_result(path: str | None, stage: str, settings: dict, result: dict) -> None:
    """Write {"stage", "settings", "machine", "result"} as JSON when a path is given; what has no value is null."""
    if path:
        write_json(path, without_nan({"stage": stage, "settings": settings, "machine": machine(), "result": result}))
