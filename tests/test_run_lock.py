"""A run's folder belongs to one live process."""

import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.run_lock import RunLock

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import os, sys, time
from utils.run_lock import RunLock
with RunLock(sys.argv[1]):
    running, tell = os.pipe()
    child = os.fork()  # as a loader worker, which outlives a killed run
    if child == 0:
        os.write(tell, b"!")
        time.sleep(30)
        os._exit(0)
    os.read(running, 1)  # what a fork does first in the child is done
    print(child, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A live process that holds the folder until it reads a line, and its child's id."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    yield process, child
    os.kill(child, signal.SIGKILL)  # sleeps until then
    process.kill()
    process.communicate()


def test_a_folder_in_use_names_who_uses_it(holder, tmp_path):
    process, _ = holder
    before = (tmp_path / "run.lock").read_bytes()
    with pytest.raises(UserError) as caught, RunLock(tmp_path):
        pass
    assert str(caught.value) == (f"{tmp_path}: in use by process {process.pid} on host {socket.gethostname()}; "
                                 "wait for it to end or choose another --output-dir")
    assert (tmp_path / "run.lock").read_bytes() == before
    process.stdin.write("end\n")
    process.stdin.flush()
    assert process.wait() == 0
    with RunLock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / "run.lock").read_text()


def test_kill_9_releases_it_even_if_a_forked_worker_lives_on(holder, tmp_path):
    process, child = holder
    process.kill()
    process.wait()
    os.kill(child, 0)
    with RunLock(tmp_path):
        pass


def test_it_is_held_once_and_released_also_by_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), RunLock(tmp_path):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} on host"), RunLock(tmp_path):
                pass
            raise KeyError


def test_a_shorter_name_leaves_nothing_of_a_longer_one(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "a-host-with-a-long-name")
    with RunLock(tmp_path):
        pass
    monkeypatch.setattr(socket, "gethostname", lambda: "b")
    with RunLock(tmp_path):
        assert (tmp_path / "run.lock").read_text() == f"process {os.getpid()} on host b"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_in_the_file_system_the_run_goes_on_with_a_warning(code, tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    ran = False
    with caplog.at_level(logging.WARNING), RunLock(tmp_path):
        ran = True
    assert ran and caplog.messages == [
        f"{tmp_path / 'run.lock'}: cannot be locked ({os.strerror(code)}), let no other run use the folder"
    ]


def test_a_place_that_takes_no_lock_file_is_one_line(tmp_path):
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(UserError, match=r"run\.lock: cannot be locked \(Is a directory\); choose another"):
        RunLock(tmp_path).__enter__()
    with pytest.raises(UserError, match="No such file or directory"), RunLock(tmp_path / "none"):
        pass
