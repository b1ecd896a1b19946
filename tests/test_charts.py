"""Charts: lines where the figures are; curves: areas and shares that can be worked out by hand."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.calibration import calibration
from evaluation.chamfer_ap import average_precision
from evaluation.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Series,
    line_chart,
    linear_ticks,
    log_ticks,
    thin,
    tick_label,
)
from evaluation.report.curves import precision_recall_steps, running_mean

X, Y = Axis("step"), Axis("loss")


def lines_of(html: str) -> list[np.ndarray]:
    """Points [n, 2] of the polylines in the chart, those of the legend left out."""
    points = re.findall(r'<polyline points="([^"]*)"', html.split("<ul")[0])
    return [np.array([pair.split(",") for pair in line.split()], float) for line in points]


def series(y, x=None, **changes) -> Series:
    x = np.arange(len(y)) if x is None else np.array(x)
    return Series(**{"name": "a", "x": x, "y": np.array(y, float), "style": "ink"} | changes)


def test_a_line_lies_where_its_figures_say():
    (line,) = lines_of(line_chart("t", [series([0, 5, 10, 2.5])], X, Y))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    np.testing.assert_allclose(line[:, 0], np.linspace(LEFT, right, 4), atol=0.06)
    np.testing.assert_allclose(line[:, 1], bottom - np.array([0, 0.5, 1, 0.25]) * (bottom - TOP), atol=0.06)


def test_equal_factors_are_equal_distances_on_a_log_axis():
    (line,) = lines_of(line_chart("t", [series([1, 10, 100, 1000])], X, Axis("loss", log=True)))
    np.testing.assert_allclose(np.diff(line[:, 1]), -(HEIGHT - BOTTOM - TOP) / 3, atol=0.11)
    html = line_chart("t", [series([1, 10, 100])], X, Axis("loss", log=True))
    heights = [float(at) for at in re.findall(r'class="grid" x1="\d+" y1="([\d.]+)"', html)]
    np.testing.assert_allclose(heights, lines_of(html)[0][:, 1], atol=0.06)  # ticks at 1, 10 and 100


def test_fixed_limits_do_not_follow_the_data():
    axis = Axis("recall", limits=(0, 1))
    (line,) = lines_of(line_chart("t", [series([0.5, 0.5], [0, 0.5])], axis, axis))
    np.testing.assert_allclose(line[1], [(LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2], atol=0.06)


def test_gaps_part_a_line_and_are_counted():
    html = line_chart("t", [series([1, 2, np.nan, 3, np.inf, 4, 5])], X, Y)
    assert [len(line) for line in lines_of(html)] == [2, 2]
    assert html.count("<circle") == 1, "a single point between two gaps is a dot"
    assert "2 values that are not finite are left out" in html
    html = line_chart("t", [series([1, 0, -1, 10, 20])], X, Axis("loss", log=True))
    assert [len(line) for line in lines_of(html)] == [2] and "2 values that are zero or not finite" in html


@pytest.mark.parametrize("y", [[], [np.nan, np.nan]])
def test_nothing_to_draw_is_said(y):
    html = line_chart("t", [series(y)], X, Y)
    assert "Nothing to draw" in html and "<svg" not in html
    assert "Nothing to draw" in line_chart("t", [], X, Y)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("y", [[3.0], [7.0, 7.0], [1e-30, 1e30], [1e300, 1e301]])
def test_a_chart_never_leaves_its_frame(y, log):
    html = line_chart("t", [series(y)], X, Axis("loss", log=log))
    assert "nan" not in html and "inf" not in html
    for line in lines_of(html):
        assert (line >= [LEFT - 0.1, TOP - 0.1]).all() and (line <= [WIDTH - RIGHT + 0.1, HEIGHT - BOTTOM + 0.1]).all()


def test_text_is_escaped_and_described():
    lines = [series([1, 2], name="<i>"), series([1, 3], name='"', markers=True)]
    html = line_chart("<b>", lines, Axis("<u>"), Axis("&"), "<s>")
    assert not re.search(r"<(b|i|u|s)>", html) and "&lt;i&gt; from 1 at &lt;u&gt; 0 to 2 at 1" in html
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append(tag)
    parser.feed(html)
    svg = {"svg", "g", "line", "text", "polyline", "circle", "title"}
    assert set(seen) == svg | {"figure", "figcaption", "ul", "li", "p"}


def test_thinning_keeps_ends_peaks_and_order():
    rng = np.random.default_rng(0)
    y = rng.normal(size=100_000)
    y[[40_000, 70_000]] = 99.0, -99.0
    x, thinned = thin(np.arange(len(y)), y)
    assert len(x) <= MAX_POINTS and (np.diff(x) > 0).all() and {0, 40_000, 70_000, 99_999} <= set(x.tolist())
    np.testing.assert_array_equal(thinned, y[x])
    assert len(lines_of(line_chart("t", [series(y)], X, Y))[0]) == len(x)
    few = np.arange(5.0)
    assert thin(few, few)[0] is few


def test_ticks_are_round_and_inside():
    assert linear_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert linear_ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert linear_ticks(0, 23) == [0, 5, 10, 15, 20]
    assert log_ticks(1, 1000) == pytest.approx([1, 10, 100, 1000])
    assert log_ticks(15, 60) == pytest.approx([20, 30, 40, 60])
    labels = [tick_label(v) for v in (0, 0.1 + 0.2, 20.0, 15_000, 2.5e6, 1e-5)]
    assert labels == ["0", "0.3", "20", "15k", "2.5M", "1e-5"]


def test_the_area_below_precision_and_recall_is_the_ap():
    rng = np.random.default_rng(1)
    for _ in range(50):
        hits = rng.random(rng.integers(1, 60)) < rng.random()
        num_gt = int(hits.sum() + rng.integers(0, 5))
        recall, precision = precision_recall_steps(hits, num_gt)
        assert (np.diff(recall) >= 0).all() and (np.diff(precision) <= 1e-12).all()
        area = float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))
        assert area == pytest.approx(average_precision(hits, num_gt), abs=1e-12)
    assert len(precision_recall_steps(np.zeros(3, bool), 2)[0]) == 0
    assert len(precision_recall_steps(np.zeros(0, bool), 0)[0]) == 0


def test_calibration_by_hand():
    scores = np.array([1.0, 0.95, 0.91, 0.32, 0.3, 0.0])
    bins = calibration(scores, np.array([True, True, False, True, False, False]))
    assert bins.bin.tolist() == [0, 3, 9] and bins.count.tolist() == [1, 2, 3]
    assert bins.true_share == pytest.approx([0, 1 / 2, 2 / 3]) and bins.score == pytest.approx([0, 0.31, 2.86 / 3])
    assert bins.expected_error == pytest.approx((0 + 2 * 0.19 + 3 * (2.86 - 2) / 3) / 6)
    assert calibration(np.zeros(0), np.zeros(0, bool)).expected_error is None


def test_running_mean_leaves_out_what_is_not_finite():
    assert running_mean(np.array([1.0, 3.0, 8.0]), 1).tolist() == [1, 3, 8]
    assert running_mean(np.array([1.0, 3.0, 8.0, 4.0]), 3) == pytest.approx([2, 4, 5, 6])
    values = running_mean(np.array([np.nan, np.nan, 2.0, np.inf, 4.0]), 3)
    assert np.isnan(values[0]) and values[1:] == pytest.approx([2, 2, 3, 4])
    assert len(running_mean(np.zeros(0), 3)) == 0
