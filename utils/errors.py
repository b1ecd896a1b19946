"""How a user's mistake reaches the user: one line, exit code 2."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend; the message names the file, the value and the fix in one line."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command-line entry point; a UserError becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
