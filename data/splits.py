"""Names of the splits, and which scenes they hold.

train, val, mini_train, mini_val are nuScenes' own; train and val share streets. geographic_train and
geographic_val are the split of the same 850 scenes by streets that StreamMapNet (Yuan et al., WACV 2024)
published and reports on; it leaves four of the scenes out of both.
"""

from utils.errors import UserError

SPLITS = ("train", "val", "mini_train", "mini_val", "geographic_train", "geographic_val")
_MINI_SPLITS = {"train": "mini_train", "val": "mini_val"}
# Scene numbers of geographic_val; a range means the scenes of the official train and val within it.
_GEOGRAPHIC_VAL = """
    1 10-11 20 38 41 53-54 121-122 139 152 160 184 269 347-348 366 368-369 378 389-398 411-419 525-546 556-558
    566-583 642-651 739-778 794-800 803-804 911-915 919-920 924 962-963 1002-1003 1016-1018 1055-1063
"""
_GEOGRAPHIC_NEITHER = "410 641 805 910"


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
    """Scene names of a resolved split, the official ones as the devkit lists them."""
    from nuscenes.utils.splits import create_splits_scenes  # here, so that training never imports the devkit

    official = create_splits_scenes()
    if split in official:
        return frozenset(official[split])
    scenes = frozenset(official["train"] + official["val"])
    val = scenes & _scenes_numbered(_GEOGRAPHIC_VAL)
    return val if split == "geographic_val" else scenes - val - _scenes_numbered(_GEOGRAPHIC_NEITHER)


def _scenes_numbered(ranges: str) -> frozenset[str]:
    """Scene names of numbers and ranges such as "1 10-11"."""
    bounds = [[int(number) for number in part.split("-")] for part in ranges.split()]
    return frozenset(f"scene-{number:04d}" for low, *high in bounds for number in range(low, (high or [low])[0] + 1))
