# SPDX-License-Identifier: Apache-2.0
"""The paths of all optimizers of this package over two functions of two variables.

    python examples/landscapes.py
    python examples/landscapes.py --function beale --animate

Beale's function has steep walls around a flat valley, at whose end the minimum lies; the quadratic
is a hundred times steeper in one direction than in the other. All optimizers begin at the same
point. Learning rates differ: each is one at which its optimizer shows on both functions what it
does.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401  registers the optimizers

# isort: split
import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import matplotlib
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter

arrays = mx.np if mx.util.is_np_array() else mx.nd
"""The module of the arrays that Gluon takes: `mx.np` on MXNet 2, `mx.nd` on MXNet 1."""


@dataclass(frozen=True)
class Landscape:
    """A function to minimize, and what of it to draw.

    Parameters
    ----------
    title : str
        For people.
    function : callable
        Takes x and y, numbers or arrays of either library.
    start, minimum : tuple of float
        Points; the function is 0 at `minimum`.
    x, y : tuple of float
        The window, from and to.
    """

    title: str
    function: Callable[[Any, Any], Any]
    start: tuple[float, float]
    minimum: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]


def beale(x: Any, y: Any) -> Any:
    """Beale's function; its gradient is zero at (3, 0.5), the minimum, and at (0, 1), a saddle."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def quadratic(x: Any, y: Any) -> Any:
    """A quadratic of condition number 100."""
    return 0.5 * (x**2 + 100 * y**2)


LANDSCAPES = {
    "beale": Landscape(
        "Beale's function", beale, (1.0, 1.5), (3.0, 0.5), x=(-0.5, 4.0), y=(-1.8, 1.8)
    ),
    "quadratic": Landscape(
        "Quadratic of condition number 100",
        quadratic,
        (-4.0, 1.0),
        (0.0, 0.0),
        x=(-4.5, 1.5),
        y=(-1.2, 1.2),
    ),
}


@dataclass(frozen=True)
class Walker:
    """An optimizer with its options.

    Parameters
    ----------
    optimizer : str
        Name in MXNet's registry.
    learning_rate : float
        Option of the optimizer.
    options : dict
        Its other options.
    """

    optimizer: str
    learning_rate: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and options, but for the learning rate."""
        return " ".join([self.optimizer, *(f"{k}={v}" for k, v in self.options.items())])


WALKERS = (
    # The quadratic diverges from 0.02 on.
    Walker("sgd_ext", 0.018),
    Walker("sgd_ext", 0.004, {"momentum": 0.9}),
    Walker("nag_ext", 0.004, {"momentum": 0.9}),
    Walker("adagrad_ext", 1.0),
    Walker("rmsprop_ext", 0.03),
    # In a straight valley gradients hardly vary, and only epsilon bounds the steps.
    Walker("rmsprop_ext", 0.003, {"centered": True, "epsilon": 0.01}),
    # The default epsilon, 1e-6, makes first steps that cannot be seen.
    Walker("adadelta_ext", 1.0, {"epsilon": 1e-4}),
    Walker("adam_ext", 0.2),
    Walker("amsgrad_ext", 0.4),
    # Without weight decay it is adam_ext.
    Walker("adamw_ext", 0.2, {"wd": 0.01}),
    Walker("adamax_ext", 0.5),
    Walker("nadam_ext", 0.15),
    Walker("adabelief_ext", 0.15),
    # Its steps are all of one length.
    Walker("lion_ext", 0.04),
    # Its steps are a share of how far away from the origin it is.
    Walker("lamb_ext", 0.02),
)


def walk(
    walker: Walker,
    function: Callable[[Any, Any], Any],
    start: tuple[float, float],
    steps: int,
) -> np.ndarray:
    """Let one optimizer minimize a function.

    Returns
    -------
    numpy.ndarray, shape (steps + 1, 2)
        All points, from `start` on.
    """
    point = gluon.Parameter("point", shape=(2,), dtype="float64")
    point.initialize()
    point.set_data(arrays.array(start, dtype="float64"))
    # The same paths with every MXNet.
    options = {
        "learning_rate": walker.learning_rate,
        "numerics": "portable",
        **walker.options,
    }
    trainer = gluon.Trainer([point], walker.optimizer, options)
    points = [point.data().asnumpy()]
    for _ in range(steps):
        with autograd.record():
            value = function(*point.data())
        value.backward()
        trainer.step(1)
        points.append(point.data().asnumpy())
    return np.array(points)


def draw_landscape(axes: plt.Axes, landscape: Landscape) -> None:
    """Draw lines of equal height, and a star at the minimum."""
    x, y = np.meshgrid(np.linspace(*landscape.x, 300), np.linspace(*landscape.y, 300))
    heights = landscape.function(x, y)
    levels = np.geomspace(1e-3, heights.max(), 25)
    axes.contour(x, y, heights, levels, colors="gray", linewidths=0.5, alpha=0.6)
    axes.plot(*landscape.minimum, "k*", markersize=12)
    axes.set(xlabel="x", ylabel="y", xlim=landscape.x, ylim=landscape.y, title=landscape.title)


def draw_paths(axes: plt.Axes, paths: dict[str, np.ndarray]) -> list[plt.Line2D]:
    """Draw a line for each path, with a dot at its end."""
    colors = plt.get_cmap("tab20").colors
    return [
        axes.plot(*path.T, ".-", markevery=[-1], markersize=10, color=color, label=label)[0]
        for (label, path), color in zip(paths.items(), colors)
    ]


def plot(landscape: Landscape, paths: dict[str, np.ndarray], file: Path) -> None:
    """Draw all paths, and beside them how the function falls along each."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(17, 6))
    draw_landscape(left, landscape)
    for line in draw_paths(left, paths):
        points = paths[line.get_label()]
        right.plot(landscape.function(*points.T), color=line.get_color(), label=line.get_label())
    right.set(xlabel="step", ylabel="f", yscale="log", ylim=(1e-14, None), title="Height")
    right.grid(alpha=0.3)
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def animate(
    landscape: Landscape, paths: dict[str, np.ndarray], file: Path, frames: int = 100
) -> None:
    """Write a GIF in which the paths grow, the early steps slower than the late ones."""
    figure, axes = plt.subplots(figsize=(9, 6.5))
    draw_landscape(axes, landscape)
    lines = draw_paths(axes, paths)
    axes.legend(fontsize="small", loc="lower right")
    figure.tight_layout()
    longest = max(len(path) for path in paths.values())
    lengths = np.geomspace(1, longest, frames).round().astype(int)

    def draw_frame(length: int) -> list[plt.Line2D]:
        for line, path in zip(lines, paths.values()):
            line.set_data(*path[:length].T)
        return lines

    FuncAnimation(figure, draw_frame, frames=lengths).save(file, PillowWriter(fps=15), dpi=80)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Run from the command line; return the paths of each function by label."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--function", nargs="+", choices=list(LANDSCAPES), default=list(LANDSCAPES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--animate", action="store_true", help="write a GIF for each as well")
    parser.add_argument("--frames", type=int, default=100, help="of a GIF")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    arguments = parser.parse_args(argv)

    arguments.output.mkdir(parents=True, exist_ok=True)
    everything = {}
    for name in arguments.function:
        landscape = LANDSCAPES[name]
        paths = everything[name] = {}
        print(f"{landscape.title}, from {landscape.start}, minimum at {landscape.minimum}")
        # None shows the bar on a terminal only.
        for walker in tqdm(WALKERS, desc=name, disable=None, leave=False):
            path = walk(walker, landscape.function, landscape.start, arguments.steps)
            paths[walker.label] = path
        for label, path in paths.items():
            distance = np.hypot(*(path[-1] - landscape.minimum))
            height = landscape.function(*path[-1])
            print(f"  {label:38} ends {distance:.1e} from it, f {height:.1e}")
        png = arguments.output / f"{name}.png"
        plot(landscape, paths, png)
        print(f"plot: {png}")
        if arguments.animate:
            gif = png.with_suffix(".gif")
            animate(landscape, paths, gif, arguments.frames)
            print(f"animation: {gif}")
    return everything


if __name__ == "__main__":
    main()
