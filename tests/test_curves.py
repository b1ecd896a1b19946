"""Curves through predicted points."""

import numpy as np
import pytest

from evaluation.curves import MAX_TURN_DEG, MISS_M, curves_through


def arc(radius, degrees, num_points=10):
    """Points [P, 2] of a circle about the origin."""
    angle = np.deg2rad(np.linspace(0, degrees, num_points))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("degrees", [60, -100])
def test_points_of_a_circle_become_that_circle(degrees):
    given = arc(50.0, degrees)
    (line,) = curves_through(given[None])
    np.testing.assert_allclose(line[::4], given, atol=1e-12)  # all given points stay, ends included
    middle = (given[1:] + given[:-1]) / 2
    assert (50 - np.hypot(*middle.T)).min() > MISS_M  # that far from it without the points between
    np.testing.assert_allclose(np.hypot(*line.T), 50, atol=0.002)


def test_uneven_points_of_a_circle_become_it_too():
    given = arc(30.0, 90, 46)[[0, 5, 8, 15, 20, 22, 30, 38, 45]]
    (line,) = curves_through(given[None])
    np.testing.assert_allclose(np.hypot(*line.T), 30, atol=0.03)


def test_what_hardly_bends_or_has_corners_stays_as_it_is():
    turn = np.deg2rad(MAX_TURN_DEG + 1)
    corner = np.array([[-9.0, 0.0], [0.0, 0.0], [9 * np.cos(turn), 9 * np.sin(turn)]])
    nearly = np.array([[0.0, 0.0], [6.0, 0.0], [12.0, 0.1]])  # a quarter of that, at most, between its points
    for line in (corner, nearly, np.zeros((3, 2)), np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])):
        (found,) = curves_through(line[None])
        np.testing.assert_array_equal(found, line)


def test_a_bend_beside_a_corner_stops_at_it():
    bend = arc(40.0, 45, 6)
    straight = bend[-1] + np.array([[6.0, 6.0], [12.0, 12.0]])  # at a right angle to the bend's end
    (line,) = curves_through(np.concatenate([bend, straight])[None])
    np.testing.assert_allclose(np.hypot(*line[:21].T), 40, atol=0.002)
    np.testing.assert_array_equal(line[21:], straight)


def test_several_lines_are_each_on_their_own_and_keep_their_type():
    lines = np.stack([arc(50.0, 60), np.linspace([0, 0], [10, 50], 10)]).astype(np.float32)
    bent, straight = curves_through(lines)
    assert len(bent) == 37 and len(straight) == 10 and bent.dtype == straight.dtype == np.float32
    np.testing.assert_array_equal(bent, curves_through(lines[:1])[0])
    assert curves_through(np.zeros((0, 10, 2))) == []
    (pair,) = curves_through(np.array([[[0.0, 0.0], [1.0, 1.0]]]))
    np.testing.assert_array_equal(pair, [[0, 0], [1, 1]])
