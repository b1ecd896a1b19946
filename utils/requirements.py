"""Whether Python and the installed packages are what requirements.txt asks for; needs the standard library alone."""

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from utils.checklist import Caution
from utils.errors import UserError

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
PYTHONS = ((3, 11), (3, 12))  # as in scripts/setup.sh
# What training from caches does without.
NEEDED_FOR = {
    "nuscenes-devkit": "ground-truth caches, synthetic worlds and predictions without a cache",
    "shapely": "ground-truth caches, synthetic worlds, diagnoses and pictures",
    "opencv-python-headless": "ground-truth caches and synthetic worlds",
}


def check_python() -> str:
    """The version of this Python. Raises UserError when it is none of PYTHONS."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in PYTHONS:
        wanted = [".".join(map(str, version)) for version in PYTHONS]
        raise UserError(f"{found} at {sys.executable}, expected {' or '.join(wanted)}; install it and run "
                        f"PYTHON=python{wanted[0]} bash scripts/setup.sh")
    return f"{found} at {sys.executable}"


def check_packages() -> str:
    """What is installed. Raises UserError when training lacks a package or has one that is too old.

    Raises Caution when only what training does without is missing or too old, or a package is newer than was tried.
    """
    failures, cautions, found = [], [], []
    for name, specifier in required_packages():
        installed = _installed(name)
        problem = _problem(installed, specifier)
        if not problem:
            found.append(f"{name} {installed}")
        elif name in NEEDED_FOR:
            cautions.append((f"{name} {problem} (needed for {NEEDED_FOR[name]} only)", name + specifier))
        elif problem.startswith("is newer"):
            cautions.append((f"{name} {problem}", name + specifier))
        else:
            failures.append((f"{name} {problem}", name + specifier))
    problems = failures + cautions
    if problems:
        install = shlex.join([sys.executable, "-m", "pip", "install", *(wanted for _, wanted in problems)])
        text = f"{', '.join(problem for problem, _ in problems)}; {install}"
        raise UserError(text) if failures else Caution(text)
    return ", ".join(found)


def required_packages() -> Iterator[tuple[str, str]]:
    """(name, version specifier such as ">=1.26,<2") of each line of requirements.txt."""
    for line in REQUIREMENTS.read_text().splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)([^#;]*)", line)
        if match:
            yield match[1], match[2].replace(" ", "")


def _installed(name: str) -> str:
    """The version, empty when the package is not there."""
    try:
        return version(name) or ""
    except PackageNotFoundError:
        return ""


def _problem(installed: str, specifier: str) -> str:
    """What is wrong with an installed version, empty when nothing is."""
    if not installed:
        return "is not installed"
    for bound in specifier.split(","):
        if bound.startswith(">=") and _release(installed) < _release(bound[2:]):
            return f"is too old: {installed}, expected {specifier}"
        if bound.startswith("<") and _release(installed) >= _release(bound[1:]):
            return f"is newer than was tried: {installed}, expected {specifier}"
    return ""


def _release(text: str) -> tuple:
    """The numbers of a version without what follows them: (2, 4, 1) of 2.4.1+cu124, (2,) of 2.0."""
    numbers = [int(number) for number in re.match(r"[0-9.]*[0-9]", text)[0].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
