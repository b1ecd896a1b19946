"""The commands that Markdown documents tell their readers to type."""

import re
import shlex

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # (language, content) of each block


def fenced_commands(text: str) -> list[str]:
    """The commands of the bash blocks as written: with their comments, and over several lines where they are."""
    blocks = "".join(block for language, block in FENCE.findall(text) if language == "bash")
    lines = re.findall(r"(?:.*\\\n)*.*\n", blocks)
    return [line.rstrip() for line in lines if without_comments(line)]


def without_comments(command: str) -> str:
    """The command on one line, spaced and quoted in one way, so that two can be compared."""
    return shlex.join(shlex.split(command.replace("\\\n", " "), comments=True))
