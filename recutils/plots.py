"""One style for every figure: colours that hold in greyscale, alternative text, a picture of a chain of steps."""

import hashlib
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Dark to light, so that greyscale keeps them apart: ink, brick, leaf, sand.
INK, BRICK, LEAF, SAND = "#1b2a41", "#a63d2f", "#6a9a5b", "#e3c98b"
STYLE = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=[INK, BRICK, LEAF, SAND]),
}


def subplots(rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 3.2):
    """A figure and its axes in the book's style, sizes in inches: what `plt.subplots` returns."""
    plt.style.use(STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")


def show(figure: Figure, alt: str) -> None:
    """Show a figure with its alternative text (kept in the output's metadata) and close it."""
    from IPython.display import display  # at hand wherever a notebook runs

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def flow_diagram(boxes: Sequence[str], alt: str, arrows: Sequence[str] = ()) -> None:
    """Draw boxes from left to right with arrows between them; `arrows` are the words on the arrows."""
    figure, axes = subplots(width=2.1 * len(boxes), height=1.3)
    axes.set(xlim=(0, len(boxes)), ylim=(0, 1))
    axes.axis("off")
    for place, text in enumerate(boxes):
        fill = "#ffffff" if place < len(boxes) - 1 else SAND
        style = FancyBboxPatch(
            (place + 0.08, 0.18), 0.70, 0.6, boxstyle="round,pad=0.04", facecolor=fill, edgecolor=INK
        )
        axes.add_patch(style)
        axes.text(place + 0.43, 0.48, text, ha="center", va="center", fontsize=8.5, color=INK)
        if place + 1 < len(boxes):
            axes.annotate(
                "", (place + 1.03, 0.48), (place + 0.83, 0.48), arrowprops={"arrowstyle": "-|>", "color": INK}
            )
            if place < len(arrows):
                axes.text(place + 0.93, 0.93, arrows[place], ha="center", va="center", fontsize=7.5, color=BRICK)
    show(figure, alt)


EXPLORE = """
  const table = document.getElementById(name), body = table.tBodies[0];
  const words = document.getElementById(name + "-words");
  words.addEventListener("input", () => {
    const wanted = words.value.toLowerCase().split(" ");
    for (const row of body.rows) row.hidden = !wanted.every(word => row.textContent.toLowerCase().includes(word));
  });
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    let down = true;
    const sort = () => {
      const value = row => { const t = row.cells[column].textContent; return isNaN(t) ? t : Number(t); };
      const order = (a, b) => (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0) * (down ? -1 : 1);
      body.append(...[...body.rows].sort(order));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      down = !down;
    };
    head.style.cursor = "pointer"; head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
"""


def sortable_table(table: pd.DataFrame) -> Any:
    """A table to explore: a click on a column's head sorts by it, words typed above keep the rows that hold them all.

    It needs neither a running notebook nor a network; where scripts are switched off, the table stays as it is.
    """
    from IPython.display import HTML

    name = f"t{hashlib.sha256(table.to_json().encode()).hexdigest()[:8]}"
    body = table.to_html(index=False, border=0, table_id=name)
    return HTML(
        f"<style>#{name} th, #{name} td {{text-align: left; vertical-align: top; font-size: 0.85em}}</style>"
        f'<input id="{name}-words" type="search" placeholder="filter rows" aria-label="filter rows">{body}'
        f"<script>(() => {{ const name = {name!r};{EXPLORE}}})();</script>"
    )
