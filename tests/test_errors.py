"""utils/errors.py: a tool that is stopped says so in one line or nothing, and its exit code tells why."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from utils.errors import UserError, naming_killed_workers, run_cli

ROOT = Path(__file__).resolve().parents[1]


def fail(error):
    def main():
        raise error

    return main


def test_a_mistake_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run_cli(fail(UserError("Traceback of a worker\nutils.errors.UserError: file: bad; mend it\n")))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: file: bad; mend it\n"


def test_an_interrupt_is_one_line_and_code_130(capsys):
    with pytest.raises(SystemExit) as caught:
        run_cli(fail(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_ends_a_tool_and_its_workers():
    """The pool's worker holds the pipe open for as long as it lives."""
    tool = (
        "import sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from utils.errors import run_cli\n"
        "def main():\n"
        "    with ProcessPoolExecutor(1) as pool:\n"
        "        pool.submit(time.sleep, 0).result()\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "run_cli(main)\n"
    )
    command = [sys.executable, "-c", tool]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "", "interrupted\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError):
        run_cli(fail(RuntimeError("a defect")))


@pytest.mark.parametrize("lines", [1, 100_000])  # found when Python ends, and while the tool prints
def test_a_reader_that_went_away_ends_the_tool_quietly(lines):
    tool = f"from utils.errors import run_cli; run_cli(lambda: [print('line', i) for i in range({lines})])"
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(
        [sys.executable, "-c", tool], cwd=ROOT, stdout=reader.stdin, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_worker_that_was_killed_is_one_line():
    with pytest.raises(UserError, match="one of 3 worker processes was killed, .*; give fewer --num-workers"):
        with naming_killed_workers(3), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(os._exit, 1).result()
