"""The tool that types a document's commands, on a made document whose commands are quick; what it plans for ours."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.try_documents import DATAROOT, FAILING, INTERRUPTED, Step, clean_environment, plan_steps

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools/try_documents.py"
# Saves a checkpoint and waits for Ctrl-C; with RESUME=auto it ends by itself.
TRAINING = """\
[ -z "$RESUME" ] || exit 0
mkdir -p "$OUTPUT_DIR"
trap 'exit 130' INT
sleep 0.3
touch "$OUTPUT_DIR/checkpoint_epoch_1.pth"
while :; do sleep 0.05; done
"""
# Stands in for the Python of the environment that a document's commands have made.
WORLD_MAKER = '#!/bin/sh\nmkdir -p data/nuscenes\necho "$@" > data/nuscenes/made\n'


@pytest.fixture
def try_document(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Commits a README.md with these commands, tries it, and returns exit code and output."""
    repository, temporary = tmp_path / "repository", tmp_path / "temporary"
    repository.mkdir()
    temporary.mkdir()
    environment = os.environ | {
        "TMPDIR": str(temporary), "VIRTUAL_ENV": str(tmp_path / "active"), "SECRET": "x",
        "PATH": f"{tmp_path / 'active/bin'}:{os.environ['PATH']}",
    }  # fmt: skip

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=Somebody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)

    def run(commands: str, *flags: object, left: int = 0) -> tuple[int, str]:
        (repository / "train.sh").write_text(TRAINING)
        (repository / "maker").write_text(WORLD_MAKER)
        (repository / "maker").chmod(0o755)
        (repository / "README.md").write_text(f"```bash\n{commands}\n```\n")
        git("init", "--quiet")
        git("add", "--all")
        git("commit", "--quiet", "--message", "all of it")
        (repository / "not_committed").touch()
        command = [sys.executable, TOOL, "README.md", "--repository", repository, *flags]
        result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
        assert len(list(temporary.iterdir())) == left, "left behind"
        return result.returncode, result.stdout + result.stderr

    return run


def test_commands_run_as_written_in_one_shell_of_a_clone_and_an_empty_home(try_document):
    code, output = try_document(
        "export PLACE=here   # for the next\n"
        'test "$PLACE" = here && test "$GIVEN" = "a b" && \\\n    test -f README.md\n'
        "test ! -e not_committed\n"
        'test -z "$(ls -A "$HOME")$VIRTUAL_ENV$SECRET" && case "$PATH" in */active/bin*) false;; esac\n'
        "cd .. && read -r line || cd clone",
        "--set", "GIVEN=a b",
    )  # fmt: skip
    assert code == 0, output
    assert "$ export PLACE=here   # for the next\n  ok: exit code 0, 0 s\n" in output
    assert "1 files of" in output and "5 commands in 0.0 min, all ended as they should" in output


@pytest.mark.parametrize(("failing", "status"), [("sh -c 'echo why >&2; exit 3'", 3), ("echo why; exit 4", 4)])
def test_the_first_command_that_fails_ends_it_with_what_was_printed(failing, status, try_document):
    code, output = try_document(f"true\n{failing}\necho after")
    assert code == 1 and f"FAILED: exit code {status}" in output and "  | why\n" in output
    assert "echo after" not in output


def test_a_training_that_is_resumed_later_is_interrupted_first(try_document):
    command = "OUTPUT_DIR=outputs/first bash train.sh"
    code, output = try_document(f"{command}\nRESUME=auto {command}\ntest -e outputs/first/checkpoint_epoch_1.pth")
    assert code == 0 and output.count("Ctrl-C") == 1 and "ok: exit code 130" in output, output


def test_a_world_is_made_before_the_first_command_that_needs_it(try_document):
    commands = f"mkdir -p .venv/bin\ncp maker .venv/bin/python\ntest -s {DATAROOT}/made\ncat {DATAROOT}/made"
    code, output = try_document(commands, "--val-scenes", 7, "--keep", left=1)
    assert code == 0, output
    kept = Path(re.search(r"^kept: (.*)$", output, re.MULTILINE)[1])
    made = (kept / "clone" / DATAROOT / "made").read_text()
    assert made.startswith("tools/make_synthetic_nuscenes.py") and "--val-scenes 7" in made
    assert (kept / "output.txt").read_text() == made, "made once, and printed by the last command"


def test_what_is_left_running_is_ended(try_document, tmp_path):
    code, output = try_document("sleep 600 & echo $! > ../../../pid")
    assert code == 0, output
    status = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    assert not status.exists() or status.read_text().split()[2] == "Z", "its entry may wait for a reader"


@pytest.mark.parametrize(("flags", "words"), [
    (["--set", "EPOCHS"], "error: --set EPOCHS: "),
    (["--venv", "nowhere"], "error: --venv nowhere: "),
    (["--repository", "nowhere"], "error: --repository nowhere: "),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(flags, words, try_document):
    code, output = try_document("true", *flags)
    assert code == 2 and output.startswith(words) and output.count("\n") == 1


@pytest.mark.parametrize(("document", "interrupted"), [("README.md", 0), ("STAGE2_TRAINING_README.md", 1)])
def test_no_command_of_the_documents_is_left_out(document, interrupted):
    steps = plan_steps((ROOT / document).read_text(), ["--train-scenes", 3])
    ours = [step for step in steps if step.note == "stands in for the dataset"]
    assert len(ours) == 1 and ours[0].command.endswith("--with-test-set --train-scenes 3")
    assert all(DATAROOT not in step.command for step in steps[: steps.index(ours[0])])
    assert len(steps) > 6 and sum(step.exit_code == INTERRUPTED for step in steps) == interrupted
    others = [step for step in steps if step.exit_code not in (0, INTERRUPTED)]
    assert {step.command for step in others} <= set(FAILING)
    assert Step("bash scripts/quickstart.sh") not in others


def test_the_environment_is_that_of_somebody_who_has_just_logged_in(tmp_path):
    given = {"PATH": "/a/env/bin:/usr/bin:/b/env/bin", "VIRTUAL_ENV": "/a/env", "CONDA_PREFIX": "/b/env", "LANG": "C",
             "PYTHONPATH": "/x", "NUSCENES_DATAROOT": "/d", "https_proxy": "p", "PIP_INDEX_URL": "i", "HOME": "/y"}
    made = clean_environment(given, tmp_path, ["EPOCHS=1", "LANG=de=at"])
    assert made == {"PATH": "/usr/bin", "LANG": "de=at", "https_proxy": "p", "PIP_INDEX_URL": "i", "EPOCHS": "1",
                    "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
