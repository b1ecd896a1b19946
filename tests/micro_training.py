"""Training as it is, but with the micro model in the place of --preset tiny, and with the faults that FAULTS asks for.

    python tests/micro_training.py --preset tiny --dataroot D
    FAULTS=SIGKILL:1:3 torchrun --nproc-per-node 2 tests/micro_training.py --preset tiny --dataroot D

FAULTS=WHAT:RANK:PLACE,... happen to that rank in the middle of that optimizer step, counted from 0 over the whole run,
or of the PLACE `validation`, or at the PLACE `start`, before the network is built; once, also when torchrun starts the
ranks again.
MICRO_DROPOUT is the decoder's (default 0.1), and CLOCK_JUMPS=1 moves the date up to a year at every look at the clock.
"""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models.flags  # noqa: E402
import train_map_detection  # noqa: E402
import training.trainer  # noqa: E402
import training.validation  # noqa: E402
from tests.micro import micro_config  # noqa: E402
from utils.errors import run_cli  # noqa: E402


def poison(model: nn.Module) -> None:
    """Give one weight the value NaN."""
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = float("nan")


def poison_gradient(model: nn.Module) -> None:
    """Give one gradient of the next backward pass the value NaN; the loss stays finite."""
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda gradient: gradient * float("nan"))


def limit_files(num_bytes: int) -> None:
    """Let no file grow beyond that size, as on a disk with so much space left; the system then raises an OSError."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))


def break_file(path: str) -> None:
    """Cut off the second half of a file."""
    os.truncate(path, os.path.getsize(path) // 2)


def terminate_launcher() -> None:
    """SIGTERM to torchrun, and no step more until it has passed the signal on."""
    watch = signal.getsignal(signal.SIGTERM).__self__
    os.kill(os.getppid(), signal.SIGTERM)
    while not watch.received:
        time.sleep(0.01)


def leave_no_space() -> None:
    """Let no file grow at all; what is printed goes nowhere, as it may be a file as well."""
    limit_files(1)
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def kill_worker() -> None:
    """What the system does to a loader's worker when memory runs out."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        os.kill(int(file.read().split()[0]), signal.SIGKILL)


FAULTS: dict[str, Callable[[nn.Module], None]] = {
    "SIGTERM": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda _: os.kill(os.getpid(), signal.SIGINT),
    "SIGHUP": lambda _: os.kill(os.getpid(), signal.SIGHUP),
    "SIGKILL": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSTOP": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "SIGINT-to-group": lambda _: os.killpg(0, signal.SIGINT),
    "SIGTERM-to-launcher": lambda _: terminate_launcher(),
    "nan": poison,
    "nan-gradient": poison_gradient,
    "no-space-for-checkpoints": lambda _: limit_files(100_000),
    "no-space": lambda _: leave_no_space(),
    "space-again": lambda _: limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1]),
    "break-file": lambda _: break_file(os.environ["FILE_TO_BREAK"]),
    "kill-worker": lambda _: kill_worker(),
}


def faults_at(place: str) -> list[Callable[[nn.Module], None]]:
    """What FAULTS asks for at this place on this rank."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return []
    asked = [each.split(":") for each in os.environ.get("FAULTS", "").split(",") if each]
    return [FAULTS[what] for what, rank, where in asked if (rank, where) == (os.environ.get("RANK", "0"), place)]


def happen_in_next_forward(network: nn.Module, place: str) -> None:
    """Arrange the faults of this place for when the network is next called."""
    faults = faults_at(place)

    def happen(module: nn.Module, _: object) -> None:
        handle.remove()
        for fault in faults:
            fault(module)

    handle = network.register_forward_pre_hook(happen)


class FaultyStep(training.trainer.TrainStep):
    def __call__(self, batches: list[dict], step: int):
        happen_in_next_forward(self.network, str(step))
        return super().__call__(batches, step)


def faulty_predict(model: nn.Module, *others):
    happen_in_next_forward(model, "validation")
    return _predict(model, *others)


def faulty_trainer(*arguments) -> training.trainer.Trainer:
    for fault in faults_at("start"):
        fault(None)
    return training.trainer.Trainer(*arguments)


_predict = training.validation.predict
_time = time.time


def jumping_time() -> float:
    """The date, up to a year before or after the true one."""
    return _time() + random.uniform(-3e7, 3e7)


class JumpingDate(datetime):
    @classmethod
    def now(cls, tz=None) -> datetime:
        return cls.fromtimestamp(jumping_time(), tz)


def main() -> None:
    dropout = float(os.environ.get("MICRO_DROPOUT", "0.1"))
    config = micro_config(decoder=replace(micro_config().decoder, dropout=dropout))
    models.flags.PRESETS = {"tiny": config}
    train_map_detection.Trainer = faulty_trainer
    training.trainer.TrainStep = FaultyStep
    training.validation.predict = faulty_predict
    if os.environ.get("CLOCK_JUMPS"):
        time.time, train_map_detection.datetime = jumping_time, JumpingDate
    run_cli(train_map_detection.main)


if __name__ == "__main__":
    main()
