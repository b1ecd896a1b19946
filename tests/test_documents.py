"""Documents of the repository: links lead somewhere, commands parse, translations keep step, nothing stands twice."""

import argparse
import importlib
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.test_training_guide import anchors_of
from utils.documents import FENCE, fenced_commands, without_comments

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for pattern in ("*.md", "docs/**/*.md", "checkpoints/*.md")
                   for path in ROOT.glob(pattern))  # fmt: skip
TRANSLATIONS = {"README.md": "README.zh-CN.md", "STAGE2_TRAINING_README.md": "STAGE2_TRAINING_README.zh-CN.md"}
TRAINING_SCRIPTS = ("scripts/train_stage2.sh", "scripts/train_stage2_distributed.sh", "scripts/train_stage2.slurm")
MADE = ".venv/"  # by scripts/setup.sh, where no environment is active
# Programs that start a file of the repository, and which of their own flags take a value.
STARTERS = {"python": (), "bash": (), "sbatch": (), "source": (), "torchrun": ("--nproc-per-node", "--max-restarts")}


class Asked(Exception):
    """Raised in place of parsing; holds the parser of a tool."""


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def bare_commands(text: str) -> list[str]:
    """The commands of the bash blocks without comments, each on one line."""
    return [without_comments(command) for command in fenced_commands(text)]


def inline_commands(text: str) -> list[str]:
    """Commands in backquotes, which may be shortened: `python tools/report.py --run outputs/<run>`."""
    found = re.findall(rf"`((?:{'|'.join(STARTERS)}) [^`]*)`", FENCE.sub("", text))
    return [command for command in found if "/" in command or ".py" in command]


def take_apart(command: str) -> tuple[dict[str, str], str, list[str]]:
    """Variables, the file that is started ("" when none of the repository is), and what follows it."""
    words = shlex.split(command)
    variables = {}
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    if not words or words[0] not in STARTERS:
        return variables, "", words
    with_value = STARTERS[words.pop(0)]
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in with_value else 1 :]
    return (variables, words[0], words[1:]) if words else (variables, "", [])


@cache
def parser_of(path: str) -> argparse.ArgumentParser:
    """The parser of a Python file, caught when its main first parses."""

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Asked(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path])
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Asked) as caught:
            module.main()
    return caught.value.args[0]


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """All flags, those of subcommands included."""
    flags = set()
    for action in parser._actions:
        flags.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            flags.update(*(flags_of(stage) for stage in action.choices.values()))
    return flags


def script_variables(path: str) -> set[str]:
    """Variables that a training script reads: one for each flag of training, and its own."""
    flags = {flag[2:].upper().replace("-", "_") for flag in flags_of(parser_of("train_map_detection.py"))}
    own = re.findall(r"\$\{([A-Z_]+):[-?]", text_of(path))
    return flags | set(own) | {"NUSCENES_DATAROOT", "CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_somewhere(document):
    text = FENCE.sub("", text_of(document))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = ROOT / document if not path else (ROOT / document).parent / path
        assert file.exists(), f"{document}: {target}"
        assert not anchor or anchor in anchors_of(FENCE.sub("", file.read_text())), f"{document}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_blocks_are_parsed_by_what_they_start(document):
    for command in bare_commands(text_of(document)):
        variables, path, words = take_apart(command)
        if not path or path.startswith(MADE):
            continue
        assert (ROOT / path).is_file(), f"{document}: {command}"
        if path in TRAINING_SCRIPTS:
            assert set(variables) <= script_variables(path), f"{document}: {command}"
            path = "train_map_detection.py"
        if path.endswith(".py"):
            try:
                parser_of(path).parse_args(words)
            except SystemExit:
                pytest.fail(f"{document}: {command}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_text_name_files_and_flags_that_exist(document):
    for command in inline_commands(text_of(document)):
        _, path, words = take_apart(command)
        if path in TRAINING_SCRIPTS:
            path = "train_map_detection.py"
        assert not path or path.startswith(MADE) or (ROOT / path).is_file(), f"{document}: {command}"
        if path.endswith(".py"):
            own, _, passed_on = " ".join(words).partition(" -- ")  # to trainings, by tools/ablation.py
            for flags, parser in ((own, parser_of(path)), (passed_on, parser_of("train_map_detection.py"))):
                given = {word.partition("=")[0] for word in flags.split() if re.match(r"--[a-z]", word)}
                assert given <= flags_of(parser), f"{document}: {command}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_and_files_named_alone_are_those_of_some_program(document):
    programs = ("train_map_detection.py", "test_training_setup.py", *sorted(path.relative_to(ROOT).as_posix()
                for path in ROOT.glob("tools/*.py") if "run_cli(main)" in path.read_text()))  # fmt: skip
    known = set().union(*STARTERS.values(), *(flags_of(parser_of(program)) for program in programs))
    text = text_of(document)
    named = re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])(/|_|\.py)?", text)
    assert {flag for flag, rest_of_a_path in named if not rest_of_a_path} <= known
    for path in set(re.findall(r"(?:tools|scripts)/[a-z0-9_]+\.(?:py|sh|slurm)", text)):
        assert (ROOT / path).is_file(), f"{document}: {path}"


@pytest.mark.parametrize("command", [
    "python tools/none.py --run outputs/first", "python tools/report.py --run outputs/first --none",
    "python tools/generate_gt_cache.py --split none", "NONE=1 bash scripts/train_stage2.sh",
    "EPOCHS=1 \\\n    bash scripts/train_stage2.sh --none 1",
])  # fmt: skip
def test_a_wrong_command_is_found(command, tmp_path):
    document = tmp_path / "made.md"
    document.write_text(f"```bash\n{command}\n```\n")
    with pytest.raises((AssertionError, pytest.fail.Exception), match="made.md: "):
        test_commands_in_blocks_are_parsed_by_what_they_start(str(document))


def test_commands_are_found():
    """So that the tests above do not pass over an empty list."""
    for document in ("README.md", "STAGE2_TRAINING_README.md", "TRAINING_GUIDE.md"):
        started = {take_apart(command)[1] for command in bare_commands(text_of(document))}
        assert started & {"scripts/train_stage2.sh", "scripts/train_stage2_distributed.sh"}, document
    assert "tools/evaluate.py" in {take_apart(command)[1] for command in inline_commands(text_of("README.md"))}
    assert take_apart("A=1 torchrun --nproc-per-node 4 tools/x.py --b") == ({"A": "1"}, "tools/x.py", ["--b"])


def test_commands_are_those_that_a_reader_copies():
    text = "```bash\n# first\nA=1 \\\n    run 'b  c'   # why\n\ncd x\n```\n\n```\nno command\n```\n"
    text += "\n```bash\nlast\n```\n"
    assert fenced_commands(text) == ["A=1 \\\n    run 'b  c'   # why", "cd x", "last"]
    assert bare_commands(text) == ["A=1 run 'b  c'", "cd x", "last"]


@pytest.mark.parametrize("document", ["README.md", "STAGE2_TRAINING_README.md"])
def test_the_environment_is_active_before_its_python_is_called(document):
    """scripts/ find it by themselves; a shell in which nothing was activated may not even know `python`."""
    commands = bare_commands(text_of(document))
    calls = [index for index, command in enumerate(commands) if re.search(r"(^| )(python|torchrun) ", command)]
    installing = ("bash scripts/quickstart.sh", "bash scripts/setup.sh")
    installed = min(index for index, command in enumerate(commands) if command in installing)
    assert installed < commands.index("source .venv/bin/activate") < min(calls)


@pytest.mark.parametrize(("original", "translation"), TRANSLATIONS.items())
def test_a_translation_has_the_headings_and_commands_of_its_original(original, translation):
    def levels(text: str) -> list[int]:
        return [len(marks) for marks in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]

    def tables(text: str) -> list[int]:
        return [row.count("|") for row in re.findall(r"^\|.*$", FENCE.sub("", text), re.MULTILINE)]

    first, second = text_of(original), text_of(translation)
    assert levels(second) == levels(first)
    assert bare_commands(second) == bare_commands(first)
    assert tables(second) == tables(first), "rows and columns"
    assert [language for language, _ in FENCE.findall(second)] == [language for language, _ in FENCE.findall(first)]
    assert f"]({translation})" in first and f"]({original})" in second


@pytest.mark.parametrize("document", [*TRANSLATIONS, *TRANSLATIONS.values()])
def test_scores_and_commits_are_those_of_the_summary(document):
    """Numbers like 0.237, times like 11 min 51 s, and commits, which have seven digits."""
    figure = re.compile(r"(?<![\w.:/])(?:0\.\d{3}|\d+ min \d+ s|(?=[0-9a-f]*\d)[0-9a-f]{7})(?![\w.])", re.ASCII)
    figures = set(figure.findall(text_of(document)))
    assert figures <= set(figure.findall(text_of("TRAINING_SUMMARY.md")))
    assert len(figures) > 5 or not document.startswith("README")


def paragraphs(text: str) -> set[str]:
    """Paragraphs and rows of tables, blocks of commands left out, as one line each."""
    rows = re.sub(r"^(\|.*)$", r"\n\1\n", FENCE.sub("", text), flags=re.MULTILINE)
    return {" ".join(part.split()) for part in re.split(r"\n\s*\n", rows)}


def test_no_paragraph_stands_in_two_documents():
    seen: dict[str, str] = {}
    for document in DOCUMENTS:
        longest = 50 if document.endswith(".zh-CN.md") else 120  # characters; Chinese says more in one
        for paragraph in paragraphs(text_of(document)):
            if len(paragraph) > longest:
                assert paragraph not in seen, f"{document} and {seen[paragraph]}: {paragraph[:80]}"
                seen[paragraph] = document
    assert len(seen) > 50


def test_the_licence_is_apaches_and_the_citation_says_so():
    licence = text_of("LICENSE")
    for part in ("Version 2.0, January 2004", "END OF TERMS AND CONDITIONS", "9. Accepting Warranty"):
        assert part in licence
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0" and f"# {citation['title']}\n" in text_of("README.md")


def test_the_workflow_runs_what_continuous_integration_runs():
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    steps = workflow["jobs"]["tests"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci/run").is_file()
    assert {"push", "pull_request"} == set(workflow[True])  # YAML reads the key `on` as true
    form = yaml.safe_load(text_of(".github/ISSUE_TEMPLATE/bug_report.yml"))
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize("document", [*DOCUMENTS, "CITATION.cff"])
def test_no_document_names_a_folder_of_somebodys_machine(document):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/", text_of(document))
