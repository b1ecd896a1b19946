"""tools/generate_gt_cache.py as the tests call it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.generate_gt_cache import main

ROOT = Path(__file__).resolve().parents[1]


def generate(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Run the tool; its exit code, output and error output."""
    command = [sys.executable, "tools/generate_gt_cache.py", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run the tool in this process."""
    monkeypatch.setattr(sys, "argv", ["generate_gt_cache.py", *map(str, arguments)])
    main()
