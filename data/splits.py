"""Names of the splits, and which scenes they hold."""

from utils.errors import UserError

SPLITS = ("train", "val", "mini_train", "mini_val")
_MINI_SPLITS = {"train": "mini_train", "val": "mini_val"}


def resolve_split(split: str, version: str) -> str:
    """The split's full name: in v1.0-mini `train` means mini_train and `val` means mini_val.

    Raises UserError for a name that is not a split.
    """
    if split not in SPLITS:
        raise UserError(f"--split: {split!r} is not one of {', '.join(SPLITS)}; choose one of these")
    if version == "v1.0-mini":
        return _MINI_SPLITS.get(split, split)
    return split


def scene_names_of(split: str) -> frozenset[str]:
    """Scene names of a resolved split, as the official devkit lists them."""
    from nuscenes.utils.splits import create_splits_scenes  # here, so that training never imports the devkit

    return frozenset(create_splits_scenes()[split])
