"""Records of nuScenes' JSON tables and map layers, checked as they are read.

What is wrong with one reaches the user as one line with the file, the token of the record and the remedy. Whole
columns are checked at once; the record at fault is looked for only when a column fails.
"""

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

# Larger than any coordinate in metres or size in pixels; GEOS fails on numbers near the end of float64.
LARGEST = 1e7
_shown = reprlib.Repr()
_shown.maxstring = 80  # a token is shown whole
_TYPE_NAMES = {str: "a text", int: "a whole number", list: "a list", bool: "true or false"}


def read_json(path: Path, what: str, fix: str) -> Any:
    """Content of a JSON file. Raises UserError when it cannot be read or is not JSON; `what` it should be."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, a {what} is expected; {fix}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it a readable {what} or {fix}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a {what}, {path.stat().st_size} bytes ({error}); {fix}") from error


class Records:
    """A list of records with tokens. Everything that reads a field raises UserError, naming the first bad record."""

    def __init__(self, records: Any, place: str, fix: str, null_token: bool = False):
        """`place` and `fix` are the beginning and the end of messages; raises for anything but records with tokens.

        null_token: a token may also be null.
        """
        self._place = place
        self._fix = fix
        self._null_token = null_token
        if type(records) is not list:
            raise UserError(f"{place} holds {_shown.repr(records)}, a list of records is expected; {fix}")
        if not set(map(type, records)) <= {dict}:
            number = next(i for i, record in enumerate(records) if type(record) is not dict)
            shown = _shown.repr(records[number])
            raise UserError(f"{place} record number {number} is {shown}, an object with a token is expected; {fix}")
        self.records = records
        self.tokens = self._values("token", {str, type(None)} if null_token else {str})

    def values(self, field: str, kind: type) -> list:
        """The field of every record, all of this type."""
        return self._values(field, {kind})

    def _values(self, field: str, kinds: set[type]) -> list:
        found = [record.get(field, ...) for record in self.records]  # a field that is missing is not null
        if not set(map(type, found)) <= kinds:
            wrong = next(i for i, value in enumerate(found) if type(value) not in kinds)
            expected = next(_TYPE_NAMES[kind] for kind in kinds if kind in _TYPE_NAMES)
            raise self.error(wrong, field, f"{expected} is expected")
        return found

    def numbers(self, field: str, shape: tuple[int, ...] = (), positive: bool = False) -> np.ndarray:
        """The field of every record, float64 [len(records), *shape], finite and below LARGEST."""
        found = [record.get(field) for record in self.records]
        array = _number_array(found, shape, positive)
        if array is None:
            wrong = next(i for i, value in enumerate(found) if _number_array([value], shape, positive) is None)
            kind = "positive " * positive + "finite"
            size = "x".join(map(str, shape))
            expected = f"{size} {kind} numbers are expected" if shape else f"a {kind} number is expected"
            raise self.error(wrong, field, expected)
        return array

    def follow(self, field: str, find: Callable[[str], Any], target: str) -> list:
        """What `find` has for the token in every record's field; it raises KeyError for a token not in `target`."""
        found = []
        for index, token in enumerate(self.values(field, str)):
            try:
                found.append(find(token))
            except KeyError:
                raise self._dangling(index, field, token, target) from None
        return found

    def those_of(self, others: "Records", field: str, target: str) -> "Records":
        """The records that the others' fields refer to, in the order of the others; `target` is the name of these."""
        row_of = {token: row for row, token in enumerate(self.tokens)}
        tokens = others._values(field, {str, type(None)} if None in row_of else {str})
        for index, token in enumerate(tokens):
            if token not in row_of:
                raise others._dangling(index, field, token, target)
        records = [self.records[row_of[token]] for token in tokens]
        return Records(records, self._place, self._fix, self._null_token)

    def follow_lists(self, field: str, row_of: Mapping[str, int], target: str) -> list[list[int]]:
        """Rows of the tokens in every record's list of tokens."""
        lists = self.values(field, list)
        try:
            return [[row_of[token] for token in tokens] for tokens in lists]
        except (KeyError, TypeError):  # TypeError: a list or an object in a token's place
            for index, tokens in enumerate(lists):
                for token in tokens:
                    if not isinstance(token, str) or token not in row_of:
                        raise self._dangling(index, field, token, target) from None
            raise

    def error(self, index: int, field: str, expected: str) -> UserError:
        """To be raised for a field of the record at `index`."""
        record = self.records[index]
        found = f"is {_shown.repr(record[field])}" if field in record else "is missing"
        return self._complaint(index, f"{field} {found}, {expected}")

    def _dangling(self, index: int, field: str, token: Any, target: str) -> UserError:
        return self._complaint(index, f"{field} refers to {_shown.repr(token)}, which is not there in {target}")

    def _complaint(self, index: int, text: str) -> UserError:
        token = self.records[index].get("token")
        name = token if isinstance(token, str) else f"number {index}"
        return UserError(f"{self._place} record {name}: {text}; {self._fix}")


def _number_array(values: Sequence, shape: tuple[int, ...], positive: bool) -> np.ndarray | None:
    """Values as float64 [len(values), *shape], or None when one is something else."""
    if not values:
        return np.zeros((0, *shape))
    if shape == () and not set(map(type, values)) <= {int, float}:  # numpy takes true for 1
        return None
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of several lengths, whole numbers beyond float64
        return None
    if array.dtype.kind not in "iuf" or array.shape != (len(values), *shape):
        return None
    array = array.astype(np.float64)
    good = (np.abs(array) < LARGEST) & (not positive or array > 0)  # false for NaN as well
    return array if good.all() else None
