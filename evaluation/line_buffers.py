"""Do two polylines touch once they are widened to bands with flat caps and mitred joins?

MapTR's evaluator compares only lines whose bands of 2 m to either side touch, and builds the bands with GEOS.
Here a band is what it is geometrically: one rectangle per segment and one corner per join, so that evaluation
needs numpy alone. GEOS also drops details below 1 % of the width and blunts the wildest zigzags, so the two
can differ for lines of a few decimetres.
"""

import numpy as np

# GEOS and Shapely cut a mitre off at this many half-widths from the vertex.
MITRE_LIMIT = 5.0
# Of each line, this many points are tried for the quick yes: the middle one decides nearly all pairs that are near.
PROBES = (1, 10)


def bands_touch(lines_a: np.ndarray, lines_b: np.ndarray, half_width: float) -> np.ndarray:
    """Whether the bands of lines_a[k] and lines_b[k] touch: [K] bool, lines [K, n, 2] in metres.

    A line of zero length has no band and touches nothing.
    """
    touch = np.zeros(len(lines_a), bool)
    for count in PROBES:
        for probed, banded in ((lines_a, lines_b), (lines_b, lines_a)):
            rest = np.flatnonzero(~touch)
            touch[rest] = _probes_in_band(probed[rest], banded[rest], half_width, count)
    for pair in np.flatnonzero(~touch):
        pieces_a = _band_pieces(lines_a[pair], half_width)
        pieces_b = _band_pieces(lines_b[pair], half_width)
        touch[pair] = _any_touch(pieces_a, pieces_b)
    return touch


def _probes_in_band(probed: np.ndarray, banded: np.ndarray, half_width: float, count: int) -> np.ndarray:
    """Whether one of some `count` points of probed[k] lies in a segment's rectangle of banded[k]: [K] bool.

    Only a yes is final, and only if the probed line has a band itself.
    """
    every = max(1, probed.shape[1] // count)
    probes = probed[:, every // 2 :: every]  # [K, p, 2]
    start = banded[:, None, :-1]  # [K, 1, s, 2]
    along = banded[:, None, 1:] - start
    length = np.hypot(along[..., 0], along[..., 1])
    offset = probes[:, :, None] - start  # [K, p, s, 2]
    forward = offset[..., 0] * along[..., 0] + offset[..., 1] * along[..., 1]
    aside = np.abs(offset[..., 0] * along[..., 1] - offset[..., 1] * along[..., 0])
    inside = (forward >= 0) & (forward <= length**2) & (aside <= half_width * length) & (length > 0)
    has_band = np.any(probed != probed[:, :1], axis=(1, 2))
    return inside.any(axis=(1, 2)) & has_band


def _band_pieces(line: np.ndarray, half_width: float) -> np.ndarray:
    """Convex pieces [Q, 5, 2] whose union is the band of a polyline [n, 2]; rectangles repeat a corner."""
    line = line[np.concatenate([[True], np.any(np.diff(line, axis=0) != 0, axis=1)])]
    if len(line) < 2:
        return np.zeros((0, 5, 2))
    along = np.diff(line, axis=0)
    along /= np.hypot(along[:, 0], along[:, 1])[:, None]  # [s, 2] unit directions
    side = half_width * np.stack([-along[:, 1], along[:, 0]], axis=1)  # to the left
    start, end = line[:-1], line[1:]
    rectangles = np.stack([start - side, end - side, end + side, start + side, start + side], axis=1)

    before, after = np.arange(len(along) - 1), np.arange(1, len(along))
    if np.all(line[0] == line[-1]):  # a ring is joined where it closes, as GEOS does
        before, after = np.append(before, len(along) - 1), np.append(after, 0)
    corners = _mitres(end[before], along[before], along[after], half_width)
    return np.concatenate([rectangles, corners])


def _mitres(vertex: np.ndarray, before: np.ndarray, after: np.ndarray, half_width: float) -> np.ndarray:
    """Mitred corners [J, 5, 2] at vertices [J, 2] between unit directions before and after [J, 2]."""
    turn_cos = np.clip(np.sum(before * after, axis=1), -1.0, 1.0)
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    outer = np.where(cross > 0, 1.0, -1.0)[:, None] * half_width  # a left turn has its corner on the right
    normal_before = outer * np.stack([before[:, 1], -before[:, 0]], axis=1)
    normal_after = outer * np.stack([after[:, 1], -after[:, 0]], axis=1)

    half_cos, half_sin = np.sqrt((1 + turn_cos) / 2), np.sqrt((1 - turn_cos) / 2)
    cornered = (half_cos > 1e-6) & (half_sin > 1e-6)  # straight on: no gap; straight back: a flat end
    tip = np.divide(half_sin, half_cos, out=np.zeros_like(half_cos), where=cornered)
    cut = np.divide(MITRE_LIMIT - half_cos, half_sin, out=np.zeros_like(half_cos), where=cornered)
    reach = half_width * np.minimum(tip, cut)[:, None]  # along each outer edge
    return np.stack(
        [
            vertex,
            vertex + normal_before,
            vertex + normal_before + reach * before,
            vertex + normal_after - reach * after,
            vertex + normal_after,
        ],
        axis=1,
    )


def _any_touch(pieces_a: np.ndarray, pieces_b: np.ndarray) -> bool:
    """Whether any convex polygon of pieces_a [Qa, 5, 2] touches any of pieces_b [Qb, 5, 2]."""
    if len(pieces_a) == 0 or len(pieces_b) == 0:
        return False
    apart = (pieces_a.min(axis=1)[:, None] > pieces_b.max(axis=1)[None]) | (
        pieces_b.min(axis=1)[None] > pieces_a.max(axis=1)[:, None]
    )
    index_a, index_b = np.nonzero(~apart.any(axis=2))
    a, b = pieces_a[index_a], pieces_b[index_b]  # [K, 5, 2]
    return bool(np.any(~(_edges_separate(a, b) | _edges_separate(b, a))))


def _edges_separate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the line of an edge of a[k] parts it from b[k] (separating axes): [K, 5, 2] polygons to [K]."""
    edges = np.roll(a, -1, axis=1) - a
    normals = np.stack([-edges[..., 1], edges[..., 0]], axis=2)
    along_a = normals @ a.swapaxes(1, 2)  # [K, 5 normals, 5 corners]
    along_b = normals @ b.swapaxes(1, 2)
    apart = (along_a.min(axis=2) > along_b.max(axis=2)) | (along_b.min(axis=2) > along_a.max(axis=2))
    return apart.any(axis=1)
