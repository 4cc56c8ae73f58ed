"""Charts of the report as SVG within the page: text stays text, shades differ in greyscale too."""

import html
import io
import re
from typing import Any

import matplotlib.dates
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

INK, SHADE, PALE = "#1b2a41", "#8a9bb0", "#d9dfe7"  # dark, middle, light


def to_svg(figure: Figure, label: str) -> str:
    """A figure as an `<svg>` with alternative text; the same figure gives the same text."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    body = out.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body[body.index("<svg") :], flags=re.S)
    salt = re.sub(r"\W", "", label)[:24]
    body = re.sub(r'(id="|"#|url\(#)', rf"\g<1>{salt}-", body)
    return body.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def axes_of(width: float = 4.2, height: float = 2.4) -> tuple[Figure, Any]:
    """An empty figure of that size in inches, without a frame on its right and top."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def bars(values: np.ndarray, names: list[str], title: str, label: str) -> str:
    """Columns of counts as shares of all."""
    figure, axes = axes_of()
    axes.bar(range(len(values)), values / max(np.sum(values), 1), color=SHADE, edgecolor=INK)
    step = max(1, len(names) // 8)
    axes.set_xticks(range(0, len(names), step), names[::step])
    axes.set_title(title, fontsize=9, loc="left")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    return to_svg(figure, label)


def line(x: Any, y: Any, title: str, label: str, percent: bool = False) -> str:
    """A curve; `percent`: both axes are shares."""
    figure, axes = axes_of()
    axes.plot(x, y, color=INK, linewidth=1.6)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    if percent:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    else:
        locator = matplotlib.dates.AutoDateLocator(maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))
    return to_svg(figure, label)


def intervals(table: pd.DataFrame, label: str) -> str:
    """The models with their intervals; the one to serve is filled."""
    figure, axes = axes_of(6.2, 0.6 + 0.28 * len(table))
    for row, model in enumerate(table.itertuples()):
        axes.plot([model.low, model.high], [row, row], color=INK, linewidth=1.4)
        axes.plot(model.ndcg, row, "o", color=INK, markerfacecolor=INK if model.best else "white", markersize=6)
    axes.set_yticks(range(len(table)), table["model"], fontsize=8)
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_title("NDCG@10 on the later baskets, with 95 % intervals", fontsize=9, loc="left")
    axes.grid(axis="x", color=PALE)
    return to_svg(figure, label)
