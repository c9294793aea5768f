"""Colour-blind readers can tell the colours apart, and figures stay readable in greyscale."""

from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer

from dpo_workbench.plots import evaluation, training
from dpo_workbench.studies.learning_curve import LearningCurve

PALETTE = {name: getattr(evaluation, name) for name in ("BLUE", "ORANGE", "GREEN", "GREY")}
# Machado, Oliveira and Fernandes 2009, severity 1.0: how each kind of reader sees linear RGB
SEEN = {
    "all cones": np.eye(3),
    "no long cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.052]],
    "no medium cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # sRGB, D65


def lab(colour, seen="all cones") -> np.ndarray:
    """CIELAB values of a colour as that kind of reader sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(SEEN[seen] @ linear, 0.01, 1) / TO_XYZ.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
def test_any_two_colours_differ_for_every_reader(seen):
    for one, other in combinations(PALETTE, 2):
        distance = np.linalg.norm(lab(PALETTE[one], seen) - lab(PALETTE[other], seen))
        assert distance > 15, f"{one} and {other} are only {distance:.0f} apart (2 is just noticeable)"


def test_the_measure_rejects_red_next_to_green():
    red, green = "#d62728", "#2ca02c"  # a common default
    distance = {seen: np.linalg.norm(lab(red, seen) - lab(green, seen)) for seen in SEEN}
    assert distance["all cones"] > 100 and distance["no medium cones"] < 15


def drawn() -> dict[str, object]:
    changes = [evaluation.Change("a", side, 1, -1, 3, side == "x") for side in ("x", "y")]
    history = [{"step": k, "loss": 1 / k, "rewards/margins": k / 10} for k in (1, 2, 3)]
    return {
        "changes": evaluation.ChangesDisplay(changes, "title", 50),
        "curve": LearningCurve({8: [[0.0, 1.0] * 25], 16: [[1.0, 0.5] * 25]}, [str(k) for k in range(50)]),
        "training": training.TrainingDisplay(history, [{"step": 0, "score": 0.5, "failed": 0.4}], 0),
    }


@pytest.fixture(params=drawn())
def panels(request):
    matplotlib.use("Agg")
    plt.close("all")
    drawn()[request.param].plot()
    yield plt.gcf().axes
    plt.close("all")


def test_only_colours_of_the_palette_are_drawn(panels):
    known = {to_rgb(colour) for colour in (*PALETTE.values(), "black", "white")}
    used = set()
    for panel in panels:
        used |= {to_rgb(line.get_color()) for line in panel.lines}
        used |= {to_rgb(patch.get_facecolor()) for patch in panel.patches}
        used |= {to_rgb(colour) for group in panel.collections for colour in group.get_facecolor()}
    assert used <= known


def test_legend_entries_differ_in_more_than_hue(panels):
    """They must differ in marker, dashes, hatching or lightness, because a greyscale print has no hue."""
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        looks = []
        for handle in handles:
            handle = handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
            if hasattr(handle, "get_marker"):
                looks.append((handle.get_marker(), handle.get_linestyle(), handle.get_color()))
            else:
                first = handle.patches[0] if hasattr(handle, "patches") else handle
                looks.append(("area", first.get_hatch(), first.get_facecolor()))
        for (*one, a), (*other, b) in combinations(looks, 2):
            a, b = (x[0] if np.ndim(x) == 2 else x for x in (a, b))
            assert one != other or abs(lab(a)[0] - lab(b)[0]) > 15, labels
