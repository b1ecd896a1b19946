"""What a user without permissions meets, also where the tests run as root."""

import contextlib
import os
from collections.abc import Iterator

import pytest

_NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """File accesses of the block are those of a user to whom the tests' closed files are closed."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(_NOBODY)
    except OSError:
        pytest.skip("this machine lets root be nobody else")
    try:
        yield
    finally:
        os.seteuid(0)
