"""Where the optional reference data lies, and the marker of the tests that read it."""

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference data (../shared/reference) is not on this machine"
)
