"""What nuScenes says about a scene beside its images, as words for the language model's prompt."""

from data.records import SampleRecord

_CITIES = {"boston": ("Boston", "right"), "singapore": ("Singapore", "left")}


def context_of(record: SampleRecord, mirrored: bool = False) -> str:
    """City, driving side, time of day and rain, for instance "Boston, traffic drives on the right, day, rain".

    mirrored: the sample is shown with left and right exchanged, so traffic drives on the other side.

    Daylight and rain come from the scene's description, where nuScenes notes night and rain and nothing else.
    """
    city, side = _CITIES[record.location.split("-")[0]]
    if mirrored:
        side = {"left": "right", "right": "left"}[side]
    description = record.scene_description.lower()
    words = [city, f"traffic drives on the {side}", "night" if "night" in description else "day"]
    return ", ".join([*words, "rain"] if "rain" in description else words)
