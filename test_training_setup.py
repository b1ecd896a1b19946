#!/usr/bin/env python3
"""Preflight on your machine: is everything there, and does what you are about to train work at all?

One line for each check, in the order in which one explains the next: ok, warning, skipped, or FAILED with what mends
it. First what training needs around it (Python, packages, GPU, disk, dataset, map expansion, caches, weights; nothing
is fetched), then five checks of the model: model, parameter groups, forward, backward, data.
Exit code 0 when none failed, 1 when one did, 2 for a wrong flag.

Examples:
  python test_training_setup.py --preset tiny                                   (made-up data only)
  python test_training_setup.py --dataroot data/nuscenes
  python test_training_setup.py --dataroot data/nuscenes --gt-cache-train F.safetensors --gt-cache-val G.safetensors
"""

from utils.checklist import Checklist
from utils.errors import UserError, run_cli
from utils.requirements import check_packages, check_python


def main() -> None:
    checklist = Checklist()
    try:
        from training import preflight  # here, since it needs the packages of which a missing one is to be named
    except Exception as error:  # a broken package raises all sorts of things
        explain_failed_import(checklist, error)
        return
    preflight.run(checklist, preflight.parse_args(__doc__))


def explain_failed_import(checklist: Checklist, error: Exception) -> None:
    """Says what is missing; the error itself only where all packages seem to be there."""

    def check_imports() -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{text}; python -m pip install --force-reinstall the package that it names") from error

    checklist.run("Python", check_python)
    checklist.run("packages", check_packages, ["Python"])
    checklist.run("imports", check_imports, ["Python", "packages"])
    checklist.run("all other checks", str, ["imports"])
    checklist.finish()


if __name__ == "__main__":
    run_cli(main)
