"""scripts/setup.sh, with a stand-in for Python."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_an_environment_whose_making_failed_is_made_again(tmp_path):
    """Where pip cannot be put into it (python3-venv is missing), venv leaves a folder with Python alone."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("")
    program = tmp_path / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    shutil.copy(shutil.which("true"), program)
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$2" != venv ] || touch .venv/bin/activate\n')
    python.chmod(0o755)
    for _ in range(2):
        subprocess.run(["bash", str(tmp_path / "scripts/setup.sh")], check=True,
                       env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)})
    made = [line for line in (tmp_path / "calls").read_text().splitlines() if line == "-m venv .venv"]
    assert len(made) == 1, "once, and not again when it is whole"


def test_an_environment_of_another_python_is_named_with_what_mends_it(tmp_path):
    """The repository's own is to be removed, since it goes before $PYTHON; any other is to be left."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    own, other = tmp_path / ".venv", tmp_path / "other"
    for environment in (own, other):
        (environment / "bin").mkdir(parents=True)
        (environment / "bin/activate").touch()
        (environment / "bin/python").write_text('#!/bin/sh\n[ "$1" != --version ] || echo Python 3.13.1\nexit 1\n')
        (environment / "bin/python").chmod(0o755)
    for variables, fix in (({}, "remove .venv and set PYTHON="), ({"VIRTUAL_ENV": str(other)}, "leave the active")):
        done = subprocess.run(["bash", str(tmp_path / "scripts/setup.sh")], capture_output=True, text=True,
                              env={"PATH": "/usr/bin:/bin"} | variables)
        assert done.returncode == 2 and "is Python 3.13.1, needed is 3.11 or 3.12; " + fix in done.stderr
