"""Checks one after the other, a line each; needs the standard library alone, so it also runs where all else is missing.

A check returns what it found, or raises: UserError when it failed, with the fix; Caution for what may be meant;
Skipped when there is nothing to check.
"""

import sys
import traceback
from collections.abc import Callable, Sequence

from utils.errors import UserError


class Caution(Exception):
    """Something that may be meant, but mostly is not; the message names the fix."""


class Skipped(Exception):
    """There is nothing to check; the message says why."""


class Checklist:
    """Runs checks, prints a line for each, and skips those that need one without success."""

    def __init__(self):
        self.failed: list[str] = []  # names
        self.num_warnings = 0
        self._without: set[str] = set()  # names of the checks that failed or were skipped for lack of another

    def run(self, name: str, check: Callable[[], str], needs: Sequence[str] = (), number: str = "") -> None:
        """Run a check unless one of `needs` failed or was itself skipped for that; number stands before the name."""
        lacking = [need for need in needs if need in self._without]
        details = ""
        if lacking:
            self._without.add(name)
            status, text = "skipped", f"needs {lacking[0]}"
        else:
            try:
                status, text = "ok", check()
            except Skipped as reason:
                status, text = "skipped", str(reason)
            except Caution as caution:
                status, text = "warning", str(caution)
                self.num_warnings += 1
            except UserError as error:
                status, text = "FAILED", str(error)
            except OSError as error:
                status, text = "FAILED", f"{error}; make it readable"
            except Exception as error:  # whatever it is, it is what the user came to learn
                status, text = "FAILED", " ".join(f"{type(error).__name__}: {error}".split())
                details = "\n" + traceback.format_exc()
        if status == "FAILED":
            self.failed.append(name)
            self._without.add(name)
        print(f"{status:<8}{number}{name}: {text}{details}", flush=True)

    def has_passed(self, *names: str) -> bool:
        """Whether none of these failed or was skipped for lack of another."""
        return self._without.isdisjoint(names)

    def finish(self) -> None:
        """The last line; ends the program with exit code 1 when a check failed."""
        if self.failed:
            print(f"{len(self.failed)} failed: {', '.join(self.failed)}; mend the first one and run this again")
            sys.exit(1)
        print("all checks passed" + (f", {self.num_warnings} with a warning" if self.num_warnings else ""))
