"""A mark for tests that compile: they are skipped where torch would not find what it needs."""

import pytest
import torch

from models.compilation import missing_for_compiling

_MISSING = missing_for_compiling(torch.device("cpu"))
needs_compiler = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))
