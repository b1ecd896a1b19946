"""The table of train_map_detection.py's flags in TRAINING_GUIDE.md, made from the parser.

Examples:
  python tools/flag_table.py --write   # after a flag was changed
  python tools/flag_table.py --check   # exit code 2 when the guide says something else than the parser
"""

import argparse
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training.flags import build_parser  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import replacing  # noqa: E402

BEGIN, END = "<!-- flags: made by tools/flag_table.py --write -->", "<!-- end of flags -->"


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="put the table between its marks in the guide")
    what.add_argument("--check", action="store_true", help="compare, change nothing")
    parser.add_argument("--guide", default=ROOT / "TRAINING_GUIDE.md", type=Path, help="default: the project's")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.pop("NUSCENES_DATAROOT", None)  # the default of --dataroot is not this machine's
    text = args.guide.read_text()
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not end or BEGIN in old + after or END in before + after:
        raise UserError(f"{args.guide}: expected once {BEGIN} and after it {END}; put them where the table goes")
    wanted = f"{before}{BEGIN}\n{flag_tables(build_parser())}{END}{after}"
    if args.write:
        with replacing(args.guide) as file:
            file.write(wanted.encode())
    elif text != wanted:
        raise UserError(f"{args.guide}: its flags are not those of the parser; run python tools/flag_table.py --write")


def flag_tables(parser: argparse.ArgumentParser) -> str:
    """Markdown: a heading and a table for each group of flags."""
    parts = []
    for group in parser._action_groups:
        rows = [f"| `{_call(action)}` | {' | '.join(_default_and_meaning(action))} |\n"
                for action in group._group_actions if action.dest != "help"]
        if rows:
            title = f"{group.title[0].upper()}{group.title[1:]}"
            parts.append(f"\n### {title}\n\n| flag | default | meaning |\n|---|---|---|\n{''.join(rows)}")
    return "".join(parts) + "\n"


def _call(action: argparse.Action) -> str:
    """The flag as it is written, with its values where they have names of their own."""
    metavar = action.metavar or ()
    return " ".join([action.option_strings[0], *([metavar] if isinstance(metavar, str) else metavar)])


def _default_and_meaning(action: argparse.Action) -> tuple[str, str]:
    """As cells; a default that depends on others stands in the help text, which then leaves it out."""
    meaning = action.help or ""
    found = re.search(r" ?\(default: ([^()]*)\)|^default: (.*)$", meaning)
    if found:
        default, meaning = found[1] or found[2], meaning.replace(found[0], "")
    elif action.nargs == 0:
        default = "off"
    else:
        default = "" if action.default in (None, "") else f"`{_plain(action.default)}`"
    if action.choices:
        meaning = "; ".join(filter(None, [meaning, ", ".join(f"`{one}`" for one in action.choices)]))
    return _escaped(default), _escaped(meaning)


def _plain(value: object) -> str:
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


if __name__ == "__main__":
    run_cli(main)
