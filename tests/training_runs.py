"""Real processes that train the micro model, and what their folders hold afterwards."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("--preset", "tiny", "--epochs", "2", "--num-workers", "0", "--warmup-steps", "2", "--lr-decoder", "1e-3",
         "--log-interval", "1", "--mirror", "0.5", "--keep-last", "0", "--rank-timeout", "60")
# Of metrics.jsonl, what depends on how fast and where a run went.
_MEASURED = {"seconds_per_step", "data_seconds", "samples_per_s", "memory_gb", "seconds"}


@dataclass
class Run:
    """The processes of a run, by rank, and the files that their standard output and error go to."""

    processes: list[multiprocessing.Process]
    outputs: list[Path]

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes once all have ended, negative for a signal; what still runs after that time is killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        late = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        self.kill()
        assert not late, f"ranks {late} still ran after {seconds} s: {self.said()}"
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """SIGKILL to all that run, also to stopped ones."""
        for process in self.processes:
            process.kill()
            process.join()

    def said(self, rank: int = 0) -> str:
        """Standard output and error of a rank."""
        return self.outputs[rank].read_text()


def fork_server() -> multiprocessing.context.ForkServerContext:
    """A server that has done the imports, which take longer than what is tested, and has no threads to lose."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.micro_training"])
    return server


def start(world: Path, folder: Path, *flags: str, ranks: int = 1, **environment: str) -> Run:
    """Start a run in its output folder, as the script or torchrun would.

    The processes are forked from a server that has done the imports, which take longer than the training.
    """
    server = fork_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    run = Run([], [])
    for rank in range(ranks):
        variables = environment | {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                          "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        run.outputs.append(folder.parent / f"{folder.name}.{time.monotonic_ns()}.out")
        arguments = (all_flags(world, folder, flags), variables, run.outputs[-1])
        run.processes.append(server.Process(target=_train, args=arguments))
        run.processes[-1].start()
    return run


def train(world: Path, folder: Path, *flags: str, ranks: int = 1, **environment: str) -> tuple[list[int], str]:
    """Run to the end; the exit codes by rank and what rank 0 said."""
    run = start(world, folder, *flags, ranks=ranks, **environment)
    return run.wait(), run.said()


def torchrun(world: Path, folder: Path, *flags: str, restarts: int = 0, **environment: str) -> tuple[int, str]:
    """Two ranks under torchrun to the end; its exit code and what all of them said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               f"--max-restarts={restarts}", "tests/micro_training.py", *all_flags(world, folder, flags)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment | {"OMP_NUM_THREADS": "1"}, timeout=240,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def all_flags(world: Path, folder: Path, flags: Sequence[str]) -> list[str]:
    """The flags of a run; those given come last and win."""
    return [*FLAGS, "--dataroot", str(world), "--output-dir", str(folder), *flags]


def metrics(folder: Path) -> list[dict]:
    """The records of a run without what was measured of its speed and memory."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in _MEASURED} for record in records]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder: what it holds and when it was last changed."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def assert_same_up_to_rounding(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Weights after the same training, of which sums were taken in another order.

    Adam makes a step of any gradient, also of one that is little more than rounding: of a weight in ten thousand.
    """
    assert ours.keys() == theirs.keys()
    differences = torch.cat([(value - theirs[name]).abs().flatten() for name, value in ours.items()])
    assert (differences > 1e-6).double().mean() < 1e-4 and differences.max() < 1e-5, differences.topk(5)


def assert_same_result(folder: Path, other: Path) -> None:
    """The final checkpoints are the same to the last bit but for the flags of the two runs; the records too."""
    finals = [load_checkpoint(each / "final_model.pth") for each in (folder, other)]
    for final in finals:
        del final["args"], final["digest"]
    assert finals[0].keys() == finals[1].keys()
    for key in finals[0]:
        assert_same(finals[0][key], finals[1][key], key)
    assert metrics(folder) == metrics(other)


def assert_same(a: object, b: object, place: str) -> None:
    """Equal in every type, key, value and bit."""
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), place
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_same(a[key], b[key], f"{place}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{place}[{index}]")
    else:
        assert repr(a) == repr(b), place


def one_error_line(said: str, *words: str) -> None:
    """The run ended with a single line, with these words, in place of a traceback."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    for word in words:
        assert word in lines[0], (word, lines[0])


def _train(flags: list[str], environment: dict[str, str], output: Path) -> None:
    from tests import micro_training  # here, so that the test process itself imports nothing of it

    os.setsid()  # a process group of its own, as a shell gives to a job
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a process of its own
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a Python of its own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["train_map_detection.py", *flags]
    os.chdir(ROOT)
    torch.set_num_threads(1)
    micro_training.main()
