"""Where files lie, and files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError


def default_dataroot() -> str:
    """The nuScenes folder where --dataroot is not given."""
    return os.environ.get("NUSCENES_DATAROOT") or "data/nuscenes"


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator:
    """A binary file that takes the place of `path` only when the block ends well.

    Until then it has a temporary name in the same folder, so an old file stays whole whatever happens.
    Raises UserError when the system cannot write there (no space, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}), nothing was changed; "
            f"free some space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # what could not be made cannot be removed either
            temporary.unlink()
