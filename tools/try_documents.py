#!/usr/bin/env python3
"""Type the commands of a document as a new user would: a fresh clone, an empty home folder, one shell for all.

What is cloned is the last commit. The commands run as written, in the document's order, with a synthetic world where
the dataset would be. A training that the document resumes later gets Ctrl-C once it has saved. Ends with exit code 1
at the first command that does not end as it should, and leaves nothing behind. Needs no package, only git and bash.

A world this small is trained in fewer steps than the usual warm-up has, hence WARMUP_STEPS.

Examples:
  python tools/try_documents.py README.md --set WARMUP_STEPS=50                    (the quickstart's: full size)
  python tools/try_documents.py README.md --set TRAIN_SCENES=6 VAL_SCENES=2 EPOCHS=1 WARMUP_STEPS=1
  python tools/try_documents.py STAGE2_TRAINING_README.md --set PRESET=tiny EPOCHS=2 WARMUP_STEPS=1
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.command_line import documented_parser  # noqa: E402
from utils.documents import fenced_commands, without_comments  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.shell_session import ShellSession  # noqa: E402

DATAROOT = "data/nuscenes"  # where the documents have the dataset
INTERRUPTED = 130
# Of the environment: what pip and git need to reach the network, and which GPUs to take.
KEPT = re.compile(r"PATH|LANG|LC_\w+|TMPDIR|PIP_\w+|(https?|all|no)_proxy|SSL_CERT_\w+|CUDA_VISIBLE_DEVICES", re.I)
# Commands that cannot succeed in an empty home folder: what they are, how they then end, the last line, and why.
FAILING = {
    "python test_training_setup.py": (
        1, "2 failed: BLIP-2 weights, LLM weights", "the weights of preset base are not in an empty home folder"
    ),
}  # fmt: skip
TAIL_LINES = 30


@dataclass(frozen=True)
class Step:
    """A command and how it has to end."""

    command: str
    exit_code: int = 0
    last_line: str = ""  # what the last line of its output begins with
    note: str = ""  # why it is not simply a command of the document that succeeds
    checkpoints: str = ""  # folder of the run that Ctrl-C ends as soon as a checkpoint is in it


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("document", help="README.md or STAGE2_TRAINING_README.md; others hold commands for clusters")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="more of the shell's environment")
    parser.add_argument("--repository", type=Path, default=ROOT, help="what is cloned (default: this one)")
    parser.add_argument("--train-scenes", type=int, default=3, help="of the synthetic world (default: %(default)s)")
    parser.add_argument("--val-scenes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--samples-per-scene", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--venv", type=Path, help="use this environment; nothing is installed if it has everything")
    parser.add_argument("--keep", action="store_true", help="leave clone, home folder and output of the commands")
    args = parser.parse_args()
    for setting in args.set:
        if not re.match(r"\w+=", setting):
            raise UserError(f"--set {setting}: NAME=VALUE is expected; write for instance EPOCHS=1")
    if args.venv and not (args.venv / "bin" / "activate").is_file():
        raise UserError(f"--venv {args.venv}: no bin/activate in it; give the folder of a virtual environment")
    return args


def plan_steps(text: str, world: Sequence[object]) -> list[Step]:
    """What to type for a document: its commands, and before the first that needs the dataset, what stands in for it.

    world: flags of tools/make_synthetic_nuscenes.py.
    """
    steps: list[Step] = []
    commands = fenced_commands(text)
    bare = [without_comments(command) for command in commands]
    for index, command in enumerate(commands):
        if DATAROOT in command and all(DATAROOT not in earlier for earlier in bare[:index]):
            made = f".venv/bin/python tools/make_synthetic_nuscenes.py --out {DATAROOT} --with-test-set"
            steps.append(Step(" ".join([made, *map(str, world)]), note="stands in for the dataset"))
        folder = re.search(r"\bOUTPUT_DIR=(\S+)", bare[index])
        if folder and f"RESUME=auto {bare[index]}" in bare[index:]:
            note = "Ctrl-C after the first checkpoint, since it is resumed later"
            steps.append(Step(command, INTERRUPTED, note=note, checkpoints=folder[1]))
        elif bare[index] in FAILING:
            steps.append(Step(command, *FAILING[bare[index]]))
        else:
            steps.append(Step(command))
    return steps


def clean_environment(environment: Mapping[str, str], home: Path, settings: Sequence[str]) -> dict[str, str]:
    """The environment of somebody who has just logged in, and to whom the Hugging Face hub is closed.

    settings: NAME=VALUE each; they win.
    """
    kept = {name: value for name, value in environment.items() if KEPT.fullmatch(name)}
    active = [f"{environment[name]}/bin" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environment.get(name)]
    kept["PATH"] = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part not in active)
    return kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1"} | dict(setting.split("=", 1) for setting in settings)


def clone(repository: Path, target: Path) -> None:
    """Clone the last commit and print what it is. Raises UserError where git cannot."""

    def git(*arguments: object) -> str:
        result = subprocess.run(["git", *map(str, arguments)], capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"--repository {repository}: {result.stderr.strip()}; give the folder of a git repository")
        return result.stdout.strip()

    git("clone", "--quiet", repository, target)
    changed = len(git("-C", repository, "status", "--porcelain").splitlines())
    print(f"commit {git('-C', target, 'log', '-1', '--format=%h %s')}")
    if changed:
        print(f"{changed} files of {repository} are changed or new since that commit and are not tried")


def has_checkpoint(run: Path) -> bool:
    return any(run.glob("checkpoint_*.pth"))


def run_steps(steps: Sequence[Step], session: ShellSession, folder: Path, log: Path) -> bool:
    """Whether all of them ended as they should; stops at the first that does not, and shows the end of its output."""
    for step in steps:
        print(f"\n$ {step.command}" + (f"\n  ({step.note})" if step.note else ""), flush=True)
        printed = log.stat().st_size
        started = time.monotonic()
        saved = partial(has_checkpoint, folder / step.checkpoints) if step.checkpoints else None
        code = session.run(step.command, interrupt=saved)
        output = log.read_bytes()[printed:].decode(errors="replace").rstrip().splitlines()
        good = code == step.exit_code and (output or [""])[-1].startswith(step.last_line)
        print(f"  {'ok' if good else 'FAILED'}: exit code {code}, {time.monotonic() - started:.0f} s", flush=True)
        if not good:
            print("\n".join(f"  | {line}" for line in output[-TAIL_LINES:]))
            return False
    return True


def main() -> None:
    args = parse_args()
    work = Path(tempfile.mkdtemp(prefix="try_documents_"))
    home, folder, log = work / "home", work / "clone", work / "output.txt"
    session = None
    try:
        clone(args.repository, folder)
        if not (folder / args.document).is_file():
            raise UserError(f"{args.document}: not in that commit; give a document of the repository")
        world = ["--train-scenes", args.train_scenes, "--val-scenes", args.val_scenes,
                 "--samples-per-scene", args.samples_per_scene]  # fmt: skip
        steps = plan_steps((folder / args.document).read_text(), world)
        home.mkdir()
        if args.venv:
            (folder / ".venv").symlink_to(args.venv.resolve())
        started = time.monotonic()
        with open(log, "wb") as file:
            session = ShellSession(folder, clean_environment(os.environ, home, args.set), file)
        good = run_steps(steps, session, folder, log)
    finally:
        if session:
            session.close()
        if args.keep:
            print(f"\nkept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    count = f"{args.document}: {len(steps)} commands in {(time.monotonic() - started) / 60:.1f} min"
    print(f"\n{count}, {'all ended as they should' if good else 'the last one FAILED'}")
    sys.exit(not good)


if __name__ == "__main__":
    run_cli(main)
