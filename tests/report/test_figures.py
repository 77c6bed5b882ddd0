"""The figures of fine-tuned runs: what they show, and that they are images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cedilla.report.figures import Curve, History, ranking_curves, training_history
from cedilla.report.look import FILE_PIXELS, LOOKS, Look, pictures

SCORES = {"f1": "F1", "mcc": "MCC"}
ROC_AND_PR = partial(
    ranking_curves,
    [
        Curve(
            name="a run",
            labels=np.array([0, 1, 0, 1, 1]),
            probabilities=np.array([0.1, 0.9, 0.4, 0.3, 0.8]),
            auroc=5 / 6,
            auprc=0.9,
        )
    ],
)


def epochs(n: int) -> list[dict[str, object]]:
    return [
        {"epoch": k, "train_loss": 1 / k, "dev_loss": 1.2 / k, "dev": {"f1": k / n, "mcc": k / n}}
        for k in range(1, n + 1)
    ]


@pytest.fixture(scope="module")
def images() -> Mapping[Look, bytes]:
    return pictures(ROC_AND_PR)


def test_a_figure_is_drawn_for_light_dark_wide_and_narrow(images: Mapping[Look, bytes]) -> None:
    assert set(images) == set(LOOKS)
    assert len(set(images.values())) == 4
    for look, png in images.items():
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG"
        assert image.width == round(look.width * FILE_PIXELS)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        paper = tuple(int(look.paper[i : i + 2], 16) for i in (1, 3, 5))
        assert tuple(pixels[0]) == paper
        drawn = (pixels != paper).any(axis=1).mean()
        assert 0.01 < drawn < 0.5


def test_drawing_is_repeatable_and_leaves_no_settings_behind(
    images: Mapping[Look, bytes],
) -> None:
    before = dict(mpl.rcParams)
    assert pictures(ROC_AND_PR) == images
    assert dict(mpl.rcParams) == before


def test_the_curves_end_in_their_corners_and_pr_has_its_prevalence() -> None:
    roc, pr = ROC_AND_PR(Look()).axes
    x, y = roc.lines[1].get_data()
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(5 / 6)
    assert [line.get_ydata()[0] for line in pr.lines if line.get_linestyle() == ":"] == [0.6]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_history_shows_losses_and_scores_and_rings_the_kept_epoch(narrow: bool) -> None:
    history = History(name="a run", epochs=epochs(4), best=3, scores=SCORES)
    losses, scores = training_history([history], Look(narrow=narrow)).axes
    shown = {line.get_label(): list(line.get_ydata()) for line in losses.lines}
    assert shown["train"] == [1 / k for k in range(1, 5)]
    assert shown["dev"] == [1.2 / k for k in range(1, 5)]
    assert {text.get_text() for text in scores.get_legend().get_texts()} == {"F1", "MCC"}
    rings = [line for line in losses.lines if line.get_markersize() == 8]
    assert [list(ring.get_xdata()) for ring in rings] == [[3], [3]]


def test_histories_of_one_epoch_or_without_dev_scores_are_drawn() -> None:
    bare = [{"epoch": 1, "train_loss": 0.5}]
    histories = [
        History(name="one", epochs=epochs(1), best=1, scores=SCORES),
        History(name="bare", epochs=bare, best=None, scores=SCORES),
    ]
    figure = training_history(histories, Look())
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == 4
