"""Where files lie, and files that appear whole or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.errors import UserError

# What opening a file goes by, where the system can be asked about it.
_EFFECTIVE = os.access in os.supports_effective_ids


def default_dataroot() -> str:
    """The nuScenes folder where --dataroot is not given."""
    return os.environ.get("NUSCENES_DATAROOT") or "data/nuscenes"


def write_json(path: str | Path, content: object) -> None:
    """Indented, whole or not at all. Raises ValueError for numbers that JSON has not, UserError as `replacing`."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def without_nan(value: object) -> object:
    """The same with None, JSON's null, for floats that are not finite, also within dicts and lists."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_writable(*paths: str | Path | None, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise UserError when one of the files could not be made or replaced, before work is lost on it; makes nothing.

    None stands for a file that nobody asked for. None of them may be one of the inputs, which would be lost.
    """
    wanted = [Path(path) for path in paths if path is not None]
    for path in wanted:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path}: is not a file and cannot be replaced by one; choose another place")
        folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
            raise UserError(f"{path}: cannot be written, {folder} is not a writable folder; choose another place")
    places = [path.resolve() for path in wanted]
    read = {Path(path).resolve() for path in inputs if path is not None}
    for path, place in zip(wanted, places, strict=True):
        if place in read:
            raise UserError(f"{path}: is what is read; give the output a file of its own")
        if places.count(place) > 1:
            raise UserError(f"{path}: is to be written twice; give each output a file of its own")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator:
    """A binary file that takes the place of `path` only when the block ends well.

    Until then it has a temporary name in the same folder, so an old file stays whole whatever happens.
    Raises UserError when the system cannot write there (no space, no permission).
    """
    require_writable(path)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}), nothing was changed; "
            f"free some space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # what could not be made cannot be removed either
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder outlast a loss of power."""
    with contextlib.suppress(OSError):  # not every file system can; the file is whole under either name
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
