import numpy as np
import pytest

from data.polylines import clip_line, is_closed, line_length, resample_lines, target_points

LOW, HIGH = np.array([-1.0, -2.0]), np.array([1.0, 2.0])


def resample(pts, num_points):
    """One line, by the definition: interpolation over the arc length."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(pts, axis=0), axis=1))])
    at = np.linspace(0.0, arc[-1], num_points)
    return np.stack([np.interp(at, arc, pts[:, axis]) for axis in (0, 1)], axis=1)


def test_resampling_is_even_and_keeps_the_ends():
    (pts,) = resample_lines([np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]])], 5)
    np.testing.assert_allclose(pts, [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]])


def test_resampling_many_lines_equals_resampling_each():
    rng = np.random.default_rng(3)
    lines = [rng.normal(0, 10, (rng.integers(2, 9), 2)) for _ in range(9)]
    lines += [np.concatenate([line, line[:1]]) for line in lines]
    lines += [np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])]
    expected = np.stack([resample(line, 37) for line in lines])
    np.testing.assert_allclose(resample_lines(lines, 37), expected, atol=1e-12)
    assert resample_lines([], 5).shape == (0, 5, 2)


@pytest.mark.parametrize("pts", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0]] * 4])
def test_resampling_a_line_without_length(pts):
    lines = [np.array([[5.0, 5.0], [9.0, 5.0]]), np.array(pts), np.array([[7.0, 7.0], [7.0, 9.0]])]
    found = resample_lines(lines, 3)
    np.testing.assert_array_equal(found[1], np.tile([1.0, 2.0], (3, 1)))
    np.testing.assert_array_equal(found[[0, 2], 1], [[7.0, 5.0], [7.0, 8.0]])


def test_resampling_with_a_repeated_point():
    (pts,) = resample_lines([np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])], 5)
    np.testing.assert_allclose(pts[:, 0], [0, 0.5, 1, 1.5, 2])


def rectangle(low, high, start=0):
    """A ring that begins at corner number `start`."""
    corners = np.array([low, (high[0], low[1]), high, (low[0], high[1])], float)
    return np.roll(corners, -start, axis=0)[[0, 1, 2, 3, 0]]


def test_targets_keep_corners_and_ends():
    line = np.array([[0.0, 0.0], [0.0, 9.0], [1.0, 9.0], [1.0, 9.0], [1.0, 20.0]])
    (pts,) = target_points([line], 7)
    np.testing.assert_allclose(pts, [[0, 0], [0, 4.5], [0, 9], [1, 9], [1, 9 + 11 / 3], [1, 9 + 22 / 3], [1, 20]])
    straight = np.array([[0.0, -30.0], [0.0, 1.0], [0.0, 30.0]])
    np.testing.assert_allclose(target_points([straight], 4), resample_lines([straight], 4), atol=1e-9)


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("reverse", [False, True])
def test_targets_of_a_crossing_are_the_same_places_wherever_its_ring_begins(start, reverse):
    ring = rectangle((-6.0, 10.0), (6.0, 13.5), start)[:: -1 if reverse else 1]
    (pts,) = target_points([ring], 10)
    assert is_closed(pts) and np.array_equal(pts[0], ring[0])
    places = sorted(map(tuple, pts[:-1].round(9)))
    near, far = [(x, 10.0) for x in (-6, -3, 0, 3, 6)], [(x, 13.5) for x in (-6, -2, 2, 6)]
    assert places == sorted(near + far)


def test_a_ring_begins_at_a_corner_and_a_round_one_where_it_begins():
    ring = rectangle((0.0, 0.0), (4.0, 2.0))
    begun_within = np.concatenate([[[1.0, 0.0]], ring[1:], [[1.0, 0.0]]])
    (pts,) = target_points([begun_within], 5)
    np.testing.assert_allclose(pts, rectangle((0.0, 0.0), (4.0, 2.0), 1))
    angle = np.linspace(0, 2 * np.pi, 37)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    circle[-1] = circle[0]
    (pts,) = target_points([circle], 5)
    np.testing.assert_allclose(pts, circle[[0, 9, 18, 27, 36]], atol=0.05)


def test_targets_lie_closer_together_in_bends():
    angle = np.linspace(0, np.pi / 2, 19)
    bend = np.concatenate([[[5.0, -20.0]], 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1), [[-20.0, 5.0]]])
    (pts,) = target_points([bend], 10)
    edges = np.linalg.norm(np.diff(pts, axis=0), axis=1)
    assert edges[4] < 0.6 * edges[0] and edges[0] == pytest.approx(edges[-1], rel=1e-6)


@pytest.mark.parametrize("num_points", [5, 10])
def test_targets_with_more_corners_than_points_lose_the_least(num_points):
    teeth = np.array([[float(k), (k % 2) * (0.1 if k != 7 else 5.0)] for k in range(14)])
    (pts,) = target_points([teeth], num_points)
    assert pts.shape == (num_points, 2) and np.array_equal(pts[[0, -1]], teeth[[0, -1]])
    assert (np.abs(pts - teeth[7]).max(axis=1) == 0).any()


def test_targets_of_lines_without_length_and_of_none():
    assert target_points([], 5).shape == (0, 5, 2)
    np.testing.assert_array_equal(target_points([np.ones((3, 2)), np.ones((1, 2))], 4), np.ones((2, 4, 2)))


def test_empty_lines():
    assert clip_line(np.zeros((0, 2)), LOW, HIGH) == []
    assert line_length(np.zeros((0, 2))) == 0.0
    assert not is_closed(np.zeros((0, 2)))


def test_a_line_there_and_back_is_no_ring():
    assert not is_closed(np.array([[0.0, 0], [1, 0], [0, 0]]))
    assert is_closed(np.array([[0.0, 0], [1, 0], [1, 1], [0, 0]]))


def test_clipping_makes_a_piece_of_every_stay_inside():
    line = np.array([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.5, 1.0]])
    pieces = clip_line(line, LOW, HIGH)
    assert len(pieces) == 2
    np.testing.assert_allclose(pieces[0], [[-1, 0], [0, 0], [1, 0]])
    np.testing.assert_allclose(pieces[1], [[1, 1], [0.5, 1]])


@pytest.mark.parametrize(
    "line",
    [
        [[2.0, 0.0], [3.0, 1.0]],  # beside the box
        [[0.0, 3.0], [2.0, 1.0]],  # through its corner alone
        [[1.5, -5.0], [1.5, 5.0]],  # parallel to an edge
    ],
)
def test_clipping_away(line):
    assert clip_line(np.array(line), LOW, HIGH) == []


def test_clipping_leaves_a_ring_inside_closed():
    ring = np.array([[0.0, 0], [0.5, 0], [0.5, 0.5], [0, 0]])
    (piece,) = clip_line(ring, LOW, HIGH)
    np.testing.assert_array_equal(piece, ring)


def test_clipping_a_ring_does_not_break_it_at_its_start():
    ring = np.array([[0.0, 0], [0, 1], [3, 1], [3, -1], [0, -1], [0, 0]])
    (piece,) = clip_line(ring, LOW, HIGH)
    np.testing.assert_allclose(piece, [[1, -1], [0, -1], [0, 0], [0, 1], [1, 1]])


def test_clipped_lines_agree_with_dense_sampling():
    """The pieces' total length is what a finely sampled line has inside the box."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        line = rng.uniform(-3, 3, (rng.integers(2, 8), 2))
        pieces = clip_line(line, LOW, HIGH)
        for piece in pieces:
            assert np.all((piece >= LOW - 1e-9) & (piece <= HIGH + 1e-9))
        share = (np.arange(4000)[:, None] + 0.5) / 4000
        dense = np.concatenate([a + (b - a) * share for a, b in zip(line[:-1], line[1:], strict=True)])
        weights = np.repeat(np.linalg.norm(np.diff(line, axis=0), axis=1) / 4000, 4000)
        inside = weights[np.all((dense >= LOW) & (dense <= HIGH), axis=1)].sum()
        assert sum(map(line_length, pieces)) == pytest.approx(inside, abs=0.03)
