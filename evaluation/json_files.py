"""JSON files of vectors, read with every line as an array at once and written whole."""

import json
import os
import reprlib
from functools import partial
from itertools import chain

import numpy as np

from utils.errors import UserError
from utils.files import replacing


def read_json(path: str | os.PathLike) -> object:
    """The content of a JSON file in which lines, under "pts" or listed under "vectors", are float64 arrays [n, d].

    They become arrays while the file is parsed: as nested lists they take five times the memory. A line that is not
    equally long lists of numbers stays as it is. Raises UserError for a file that cannot be read, is not JSON, or has
    a name twice in one object, where one of the two values would be lost.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a JSON file; give the path of one") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8, expected JSON; write it again as UTF-8") from None
    if not text or text.isspace():
        raise UserError(f"{path}: empty, expected a JSON file; write it again")
    if text.startswith("\ufeff"):
        raise UserError(f"{path}: begins with a byte order mark, expected plain UTF-8; write it again without")
    try:
        return json.loads(text, object_pairs_hook=partial(_compact_object, path))
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path}: nested too deeply, expected the few levels of vectors; write it again") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}), expected a whole JSON file; write it again") from None


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Write a file that holds no NaN and appears whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(content, allow_nan=False).encode())


def shown(value: object) -> str:
    """A value from a file for an error line, shortened however long or deeply nested it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def _compact_object(path: str | os.PathLike, pairs: list[tuple[str, object]]) -> dict:
    """One JSON object, its lines as arrays."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = max(content, key=names.count)
        raise UserError(f"{path}: {shown(twice)} twice in one object, expected once; write the file again")
    if "pts" in content:
        content["pts"] = _as_array(content["pts"])
    if isinstance(content.get("vectors"), list):
        content["vectors"] = [_as_array(line) for line in content["vectors"]]
    return content


def _as_array(line: object) -> object:
    """float64 array [n, d] of equally long lists of numbers, anything else as it is."""
    try:
        # numpy would also take strings and booleans for numbers.
        if {*map(type, chain.from_iterable(line))} <= {int, float}:
            return np.array(line, np.float64)
    except (TypeError, ValueError, OverflowError):  # no lists, of unequal length, beyond float64
        pass
    return line
