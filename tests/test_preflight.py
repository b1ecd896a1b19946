import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def preflight(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "test_training_setup.py", "--preset", "tiny", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_five_checks_pass_on_a_sound_setup(synthetic_world, caches):
    result = preflight("--dataroot", synthetic_world, "--gt-cache-train", caches["train"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert [f"[{n}/5]" in result.stdout for n in range(1, 6)] == [True] * 5
    assert "Gradient statistics" in result.stdout and result.stdout.endswith("all checks passed\n")


def test_a_failed_check_is_named_and_the_exit_code_says_so(synthetic_world, caches):
    result = preflight("--dataroot", synthetic_world, "--gt-cache-train", caches["train"], "--pc-range", "100x50")
    assert result.returncode == 1
    assert "[4/5] backward: loss" in result.stdout and "[5/5] data: FAILED" in result.stdout
    assert str(caches["train"]) in result.stdout and "all checks passed" not in result.stdout
