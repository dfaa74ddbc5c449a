from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from scgim.pl import _area, _tones, _utils
from scgim.pl._labels import place_labels


def test_shorten_keeps_short_names_and_cuts_long_ones():
    assert _utils.shorten(["TP53", "JAK2"], 10) == ["TP53", "JAK2"]
    (short,) = _utils.shorten(["N-phenyl-cyclohexane"], 10)
    assert short == "N-phen…ane"


def test_shorten_keeps_what_tells_names_apart():
    names = [f"ENSG00000100{i:03d} (a long symbol)" for i in range(30)]
    short = _utils.shorten(names, 14)
    assert len(set(short)) == 30
    assert max(map(len, short)) <= 14
    assert "07" in short[7]


def test_shorten_numbers_names_that_nothing_tells_apart():
    assert _utils.shorten(["aa", "aa"], 10) == ["aa~1", "aa~2"]


def test_pick_accepts_one_name_and_suggests_near_ones():
    assert _utils.pick(None, ["a", "b"], "gene") == ["a", "b"]
    assert _utils.pick("b", ["a", "b"], "gene") == ["b"]
    assert _utils.pick(["b", "b", "a"], ["a", "b"], "gene") == ["b", "a"]
    with pytest.raises(KeyError, match=r"Unknown gene: \['STAT'\].*STAT1"):
        _utils.pick("STAT", ["STAT1", "JAK2"], "gene")
    with pytest.raises(ValueError, match="at least one gene"):
        _utils.pick([], ["a"], "gene")


def test_symmetric_limit_ignores_what_is_not_finite():
    assert _utils.symmetric_limit([-3.0, np.nan, np.inf, 2.0]) == 3.0
    assert _utils.symmetric_limit([0.0, 0.0]) == 1.0


def test_labels_lie_within_the_axes_and_not_on_one_another_or_on_marks():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (80, 2))
    figure, ax = plt.subplots()
    ax.scatter(*points.T)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    texts = place_labels(ax, points, [f"label {i}" for i in range(80)], order=np.arange(80)[::-1], radius=3)
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in texts]
    assert 10 < len(texts) < 80
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.get_window_extent()
    assert all(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1 for box in boxes)
    marks = ax.transData.transform(points)
    assert not any(((marks > box.min) & (marks < box.max)).all(axis=1).any() for box in boxes)


def test_labels_that_come_first_win_the_room():
    _, ax = plt.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    points = np.tile([0.5, 0.5], (30, 1))
    texts = place_labels(ax, points, [str(i) * 9 for i in range(10, 40)], order=[7, 3, *range(30)])
    assert texts[0].get_text() == "17" * 9
    assert texts[1].get_text() == "13" * 9


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(320, 2, "320"), (0.125, 4, "0.125"), (1234.5, 2, "1200"), (0, 4, "0"), (3e-7, 2, "3e-07"), (12.5, 4, "12.5")],
)
def test_numbers_without_exponents(value, digits, text):
    assert _utils.number(value, digits) == text


def test_shades_follow_the_ground():
    _, ax = plt.subplots()
    assert _tones.tones(ax).ink == "#222222"
    ax.set_facecolor("#101020")
    assert _tones.tones(ax) == ("#EEEEEE", "#A0A0A0", "#4D4D4D", "#101020")
    assert _tones.palette(ax)[-1] == "#EEEEEE"
    ax.set_facecolor("none")
    assert _tones.tones(ax).ink == "#222222"
    ax.figure.set_facecolor("black")
    assert _tones.tones(ax).ink == "#EEEEEE"


def test_a_plot_shrinks_into_its_area():
    figure, grid = plt.subplots(2, 2)
    ax = grid[0, 1]
    area = _area.Area(ax)
    ax.set(xlabel="a label", ylabel="a label", title="a title", yticks=[0], yticklabels=["a long name of a row"])
    assert not area.holds(2, 1.5)
    area.keep_within()
    figure.draw_without_rendering()
    box = ax.get_tightbbox()
    assert box.x0 >= area.box.x0 - 2
    assert box.y0 >= area.box.y0 - 2
    assert box.y1 <= area.box.y1 + 2
    assert ax.get_in_layout()
