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
