# SPDX-License-Identifier: Apache-2.0
"""Plot the results."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Style(NamedTuple):
    """The style of a contender, in a colour-blind-safe palette (Okabe and Ito)."""

    label: str
    color: str
    marker: str
    line: str = "-"


STYLES = {
    "adamax": Style("MXNet's adamax", "#D55E00", "s"),
    "adam": Style("MXNet's adam (fused)", "#E69F00", "D"),
    "torch adamax": Style("PyTorch's Adamax", "#56B4E9", "^"),
    "adamax_ext": Style("adamax_ext", "#0072B2", "o"),
    "no_op": Style("Trainer alone", "#CC79A7", "v", ":"),
    "bandwidth_baseline": Style("bandwidth baseline", "#555555", "", "--"),
}

MODELS = {
    "resnet50": "ResNet-50:\n{}\nin 161 arrays",
    "bert-base": "BERT-base:\n{}\nin 199 arrays",
    "small-1000x64": "small arrays:\n{}\nin 1000 arrays",
}


def median(result: dict[str, Any], case: str, contender: str) -> float | None:
    """Return a median in milliseconds, or None if it was not measured."""
    found = result["cases"].get(case, {}).get(contender)
    return None if found is None else float(found["median_ms"])


def in_words(parameters: int) -> str:
    """Format a number of parameters."""
    if parameters >= 10**6:
        return f"{parameters / 1e6:.1f} M"
    return f"{parameters / 1e3:.0f} k"


def in_milliseconds(time: float) -> str:
    """Format a time with three digits, without an exponent."""
    return f"{time:.0f}" if time >= 100 else f"{time:.3g}"


def draw_sizes(axes: Axes, result: dict[str, Any], cases: list[str]) -> None:
    """Plot the time of a step against the size of a single array."""
    sizes = {case: int(case.split("-")[1]) for case in cases}
    for contender, style in STYLES.items():
        points = [(sizes[case], median(result, case, contender)) for case in cases]
        found = sorted(point for point in points if point[1] is not None)
        if found:
            axes.plot(*zip(*found), style.line, color=style.color, marker=style.marker, ms=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("float32 parameters, in one array")
    axes.set_ylabel("time of a step, ms")
    axes.set_title("One array", fontsize="medium")
    axes.grid(which="major", color="#dddddd")


def draw_models(axes: Axes, result: dict[str, Any], cases: list[str]) -> None:
    """Plot the time of a step for models, a group of bars for each."""
    contenders = [
        name for name in STYLES if any(median(result, case, name) is not None for case in cases)
    ]
    width = 0.84 / len(contenders)
    for k, contender in enumerate(contenders):
        heights = [median(result, case, contender) for case in cases]
        places = [x + (k - (len(contenders) - 1) / 2) * width for x in range(len(cases))]
        found = [(x, height) for x, height in zip(places, heights) if height is not None]
        bars = axes.bar(
            [x for x, _ in found],
            [height for _, height in found],
            width,
            color=STYLES[contender].color,
        )
        axes.bar_label(
            bars, [in_milliseconds(height) for _, height in found], fontsize="x-small", padding=1
        )
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_ylabel("time of a step, ms")
    axes.set_title("Models", fontsize="medium")
    # Results of older versions do not contain the number of parameters.
    parameters = result.get("parameters", {})
    labels = [
        MODELS[case].format(in_words(parameters[case]) if case in parameters else "weights")
        for case in cases
    ]
    axes.set_xticks(range(len(cases)), labels)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", which="major", color="#dddddd")
    axes.set_axisbelow(True)


def panels_of(cases: Collection[str]) -> list[tuple[Callable[..., None], list[str]]]:
    """Return the panels with their cases; ValueError if there is nothing to draw."""
    sizes = [case for case in cases if case.startswith("sizes-")]
    models = [case for case in MODELS if case in cases]
    panels = [(draw_sizes, sizes), (draw_models, models)]
    found = [(draw_panel, chosen) for draw_panel, chosen in panels if chosen]
    if not found:
        raise ValueError(f"nothing to draw: measure sizes, or any of {', '.join(MODELS)}")
    return found


def draw(result: dict[str, Any], file: Path) -> None:
    """Plot the measured single arrays and models.

    Parameters
    ----------
    result : dict
        The result of `reporting.as_json`.
    file : Path
        The file to write; its suffix selects the format.
    """
    panels = panels_of(result["cases"])
    # As wide as a page of the README, so text keeps its size.
    figure = Figure(figsize=(1.2 + 4.6 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (draw_panel, cases) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw_panel(axes, result, cases)
        axes.spines[["top", "right"]].set_visible(False)
    drawn = [case for _, cases in panels for case in cases]
    shown = [name for name in STYLES if any(name in result["cases"][case] for case in drawn)]
    handles = [
        figure.axes[0].plot([], [], style.line, color=style.color, marker=style.marker or None)[0]
        for style in map(STYLES.__getitem__, shown)
    ]
    figure.legend(
        handles,
        [STYLES[name].label for name in shown],
        loc="outside lower center",
        ncols=min(6, 3 * len(panels)),
        frameon=False,
        fontsize="small",
    )
    machine = result["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, OpenMP threads: {machine['omp_threads']}, "
        f"{machine['instruction_set']}, MXNet {machine['mxnet']}; medians",
        fontsize="small",
    )
    # Reproducible bytes.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(file, dpi=160, metadata=metadata[file.suffix])
