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
        # From a loader worker the message arrives below that worker's traceback, which ends with it.
        message = str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
