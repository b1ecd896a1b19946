"""What a person should know of ground truth: polygons that were left out, classes that a city lacks."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from utils.frame import CLASSES


def left_out_notes(invalid_polygons: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """A paragraph of lines for each city with self-crossing polygons: how many, and every layer and token.

    invalid_polygons: city -> layer -> tokens, as the header of a cache has them.
    """
    lines = []
    for city, tokens_of in invalid_polygons.items():
        count = sum(map(len, tokens_of.values()))
        if count:
            lines.append(f"{city}: {count} self-crossing polygons left out")
        for layer, tokens in tokens_of.items():
            lines += textwrap.wrap(
                f"{layer} {', '.join(tokens)}" if tokens else "", 120, initial_indent="  ", subsequent_indent="    ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return lines


def absent_classes(labels: np.ndarray, city_of: np.ndarray, samples_by_city: Mapping[str, int]) -> dict[str, list[str]]:
    """Of each class the cities that have samples but no instance of it.

    labels, city_of: [T] of every instance; city_of points into samples_by_city.
    """
    counts = np.zeros((len(samples_by_city), len(CLASSES)), np.int64)
    np.add.at(counts, (city_of, labels), 1)
    return {
        name: [city for (city, samples), count in zip(samples_by_city.items(), of_class, strict=True)
               if samples and not count]
        for name, of_class in zip(CLASSES, counts.T, strict=True)
    }  # fmt: skip


def absence_warnings(absent: Mapping[str, Sequence[str]], samples_by_city: Mapping[str, int]) -> list[str]:
    """One line for each class that a city lacks."""
    lines = []
    for name, cities in absent.items():
        if cities:
            where = ", ".join(f"{city} ({samples_by_city[city]} samples)" for city in cities)
            lines.append(f"warning: no {name} at all in {where}; see whether the map expansion is whole")
    return lines
