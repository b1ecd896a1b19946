"""Command-line parsers whose --help ends with the examples of a script's docstring."""

import argparse
import re


def documented_parser(
    doc: str, formatter: type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter
) -> argparse.ArgumentParser:
    """A parser that has the docstring as its description, and what begins with `Example` below the flags.

    formatter: one that leaves line breaks as they are.
    """
    parts = re.split(r"^(?=Examples?\b)", doc, maxsplit=1, flags=re.MULTILINE)
    description, examples = parts if len(parts) == 2 else (doc, None)
    return argparse.ArgumentParser(description=description.strip(), epilog=examples, formatter_class=formatter)
