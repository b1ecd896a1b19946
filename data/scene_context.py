"""What nuScenes says about a scene beside its images, as words for the language model's prompt."""

import re

from data.records import SampleRecord
from utils.errors import UserError

_CITIES = {"boston": ("Boston", "right"), "singapore": ("Singapore", "left")}


def context_of(record: SampleRecord, mirrored: bool = False) -> str:
    """City, driving side, time of day and rain, for instance "Boston, traffic drives on the right, day, rain".

    mirrored: the sample is shown with left and right exchanged, so traffic drives on the other side.

    Daylight and rain come from the scene's description, where nuScenes notes night and rain and nothing else.
    Raises UserError for a city that is not of nuScenes.
    """
    name = record.location.split("-")[0]
    if name not in _CITIES:
        raise UserError(f"sample {record.sample_token}: location is {record.location!r}, known are those of "
                        f"{' and '.join(_CITIES)}; leave out --prompt-context")
    city, side = _CITIES[name]
    if mirrored:
        side = {"left": "right", "right": "left"}[side]
    # At the beginning of a word: "train" is no weather.
    night, rain = (re.search(rf"\b{word}", record.scene_description, re.I) for word in ("night", "rain"))
    words = [city, f"traffic drives on the {side}", "night" if night else "day"]
    return ", ".join([*words, "rain"] if rain else words)
