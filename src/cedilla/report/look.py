"""The one look that every figure has: palette, type, size, and PNG at twice the screen's pixels.

Figures are drawn four times, for light and dark pages and for wide and narrow screens, so that
their letters keep the size of the text around them. No global pyplot state is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

Style = dict[str, Any]

# One inch is 100 CSS pixels on the page and 200 pixels in the file.
CSS_PIXELS = 100
FILE_PIXELS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Colours and width of one rendering. All text colours have a contrast of 4.5 or more."""

    dark: bool = False
    narrow: bool = False

    @property
    def width(self) -> float:
        """Inches."""
        return 3.5 if self.narrow else 7.8

    @property
    def paper(self) -> str:
        return "#15181c" if self.dark else "#ffffff"

    @property
    def ink(self) -> str:
        return "#eceae6" if self.dark else "#1b1d20"

    @property
    def muted(self) -> str:
        return "#a9adb3" if self.dark else "#5a6068"

    @property
    def line(self) -> str:
        return "#363b42" if self.dark else "#dfe1e4"

    @property
    def band(self) -> str:
        return "#282d34" if self.dark else "#eceef0"

    @property
    def series(self) -> tuple[str, ...]:
        """After Okabe and Ito (2008), told apart with any colour vision; the first is ours."""
        if self.dark:
            return ("#62b3ea", "#f08a4b", "#35b892", "#d89cc0", "#e6b741", "#b9bec5")
        return ("#0067a8", "#c24e00", "#00795a", "#a3477a", "#8a6100", "#5a6068")


LOOKS = tuple(Look(dark=dark, narrow=narrow) for dark in (False, True) for narrow in (False, True))


def pictures(draw: Callable[[Look], Figure]) -> Mapping[Look, bytes]:
    """The PNG of a figure in every look."""
    images = {}
    for look in LOOKS:
        with mpl.rc_context(_settings(look)):
            images[look] = _png(draw(look))
    return images


def blank(look: Look, height: float) -> Figure:
    """An empty figure, `height` inches high."""
    figure = Figure(figsize=(look.width, height))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06, hspace=0.03)
    return figure


def title(axes: Axes, text: str, look: Look) -> None:
    """A panel's title, flush with the panel's left edge."""
    axes.set_title(text, loc="left", color=look.ink, fontweight="bold", pad=8)


def _png(figure: Figure) -> bytes:
    figure.set_dpi(FILE_PIXELS)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # 256 colours are plenty for lines on paper, and make a quarter of the bytes.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


def _settings(look: Look) -> Any:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.labelsize": 10,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "figure.dpi": CSS_PIXELS,
        "figure.facecolor": look.paper,
        "axes.facecolor": look.paper,
        "axes.edgecolor": look.muted,
        "axes.labelcolor": look.muted,
        "text.color": look.ink,
        "xtick.color": look.muted,
        "ytick.color": look.muted,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "grid.color": look.line,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "axes.unicode_minus": True,
    }
