"""Every --help ends with examples whose flags its own parser takes; the work itself is not done."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import test_training_setup
import train_map_detection
from training import flags, preflight

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted(path.stem for path in ROOT.glob("tools/*.py") if "run_cli(main)" in path.read_text())
SCRIPTS = ["train_map_detection.py", "test_training_setup.py", *(f"tools/{name}.py" for name in TOOLS)]


def parse(script: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What the script makes of its flags."""
    if script == "train_map_detection.py":
        return flags.parse_args(train_map_detection.__doc__, argv)
    if script == "test_training_setup.py":
        return preflight.parse_args(test_training_setup.__doc__, argv)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).parse_args()


def examples(help_text: str) -> list[str]:
    """The commands after the last flag, under `Example:` or `Examples:`, each on one line."""
    _, _, below = help_text.replace("\\\n", " ").rpartition("\nExample")
    assert not re.search(r"^  -", below, re.MULTILINE), "flags come after the examples"
    return [line.strip() for line in below.splitlines() if re.match(r" *(python|torchrun) ", line)]


def help_of(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as end:
        parse(script, ["--help"], monkeypatch)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_example_of_the_help_is_one_that_the_parser_takes(script, monkeypatch, capsys):
    assert len(SCRIPTS) >= 11
    found = examples(help_of(script, monkeypatch, capsys))
    assert found, f"{script} --help has no example"
    for example in found:
        words = shlex.split(example.partition("(")[0], comments=True)
        assert script in words, example
        assert vars(parse(script, words[words.index(script) + 1:], monkeypatch)), example


def test_a_flag_that_the_parser_does_not_know_would_be_found(monkeypatch):
    with pytest.raises(SystemExit):
        parse("tools/plot_schedule.py", ["--no-such-flag"], monkeypatch)


def test_the_help_of_training_is_in_groups_and_names_defaults_that_say_something(monkeypatch, capsys):
    text = help_of("train_map_detection.py", monkeypatch, capsys)
    for group in ("data", "model", "training", "output"):
        assert f"\n{group}:\n" in text
    assert "None" not in text and "(default: False)" not in text
    words = " ".join(text.split())
    assert "passes over the training split (default: 24)" in words
    assert "left-right mirrored sample (default: 0.0)" in words
    assert words.count("fp16 on a GPU, fp32 on a CPU") == 1
