"""A plane of images as models see it: where their decisions change, over the metric that their features pull back."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from robustlib.errors import InputError
from robustlib.figures.canvas import INK, MARKERS, Figure, legend_below, needs, panels, pc, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from numpy.typing import NDArray
    from pandas import DataFrame

SHADES = "cividis"  # from dark to light, the same to colour-blind eyes
DECADES = 4  # of the colour scale, at most, below its largest value
PAPER = "#ffffff"
FINER = (
    8  # times as many points along each side, linear between those given, for lines that two classes share to coincide
)
NAMED = 0.02  # share of the plane from which on a region is named


class Grid(NamedTuple):
    """One model's plane: n coordinates across, m up, top eigenvalues (m, n), and by how much each class leads, (K, FINER m,
    FINER n) at as many coordinates between."""

    across: "NDArray[Any]"
    up: "NDArray[Any]"
    heat: "NDArray[Any]"
    leads: "NDArray[Any]"

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """The first and the last coordinate across, and up."""
        return self.across[0], self.across[-1], self.up[0], self.up[-1]


def metric_plane(
    table: "DataFrame",
    points: "DataFrame | None" = None,
    class_names: Sequence[str] = (),
) -> Figure:
    """The decision boundary as a line over the top eigenvalue of the pull-back metric, a panel for each model, one colour scale.

    Args:
        table: e.g. of `robustlib.representation.metric_over_plane`: `model`, `across`, `up` (a full grid for each model),
            `top_eigenvalue`, `logit 0` .. `logit K - 1`.
        points: what to draw into every panel, such as training points: `across`, `up`, `label`.
        class_names: by label; numbers if not given.

    Raises:
        InputError: a column is missing or empty, fewer than 2 classes, or no full grid.
    """
    rows = needs("plane", table, ["model", "across", "up", "top_eigenvalue", "logit 0", "logit 1"])
    points = None if points is None else needs("plane", points, ["across", "up", "label"])
    logits = [str(name) for name in rows if str(name).startswith("logit ")]
    rows = rows.assign(prediction=rows[logits].to_numpy().argmax(1)).reset_index(drop=True)
    grids = {str(name): _grid(str(name), part, logits) for name, part in rows.groupby("model", sort=False)}
    with style():
        fig, every = panels(list(grids), height=_height(grids))
        scale = _scale(rows["top_eigenvalue"].to_numpy())
        for axis, grid in zip(every, grids.values(), strict=True):
            mesh = axis.pcolormesh(*grid[:3], norm=scale, cmap=SHADES, shading="nearest", rasterized=True)
            _regions(axis, grid, class_names, () if points is None else set(points["label"]))
            if points is not None:
                _points(axis, points, class_names)
            axis.set(xlim=grid.ends[:2], ylim=grid.ends[2:], aspect="equal", xlabel="across")
            axis.grid(visible=False)
        every[0].set_ylabel("up (both: pixel units)")
        fig.colorbar(mesh, ax=every, label="top eigenvalue of $J^TJ$, logarithmic", shrink=0.8)
        if points is not None:
            legend_below(fig, every[0])
    data = rows[["model", "across", "up", "top_eigenvalue", "prediction"]]
    said = "; ".join(_say(str(name), part, class_names) for name, part in data.groupby("model", sort=False))
    return Figure(fig, f"Decision boundaries over the top eigenvalue of the pull-back metric on a plane: {said}.", data)


def _grid(name: str, rows: "DataFrame", logits: Sequence[str]) -> Grid:
    """The columns of one model as a grid."""
    import numpy as np
    from scipy.ndimage import zoom

    rows = rows.sort_values(["up", "across"])
    across, up = np.unique(rows["across"]), np.unique(rows["up"])
    shape = len(up), len(across)
    if len(rows) != shape[0] * shape[1] or min(shape) < 2 or rows.duplicated(["across", "up"]).any():
        raise InputError(
            f"The plane figure needs each point of a grid once: {name} has {len(rows)} rows for {shape[1]} x {shape[0]} points."
        )
    z = zoom(rows[logits].to_numpy().T.reshape(-1, *shape), (1, FINER, FINER), order=1)
    others = np.stack([np.delete(z, k, axis=0).max(0) for k in range(len(z))])
    return Grid(across, up, rows["top_eigenvalue"].to_numpy().reshape(shape), z - others)


def _height(grids: Mapping[str, Grid]) -> float:
    """Of a row of panels, in inches: what the first plane needs, within limits."""
    left, right, low, high = next(iter(grids.values())).ends
    width = 5.0 if len(grids) == 1 else 6.0 / (2 if len(grids) in (2, 4) else 3)
    return float(min(5.0, max(2.0, width * (high - low) / (right - left)))) + 1.1


def _scale(values: "NDArray[Any]") -> "Normalize":
    """A logarithmic colour scale; what lies below its `DECADES` has its darkest colour."""
    from matplotlib.colors import LogNorm

    top = float(values.max()) or 1.0
    least = max(float(values.min()), top * 10.0**-DECADES)
    return LogNorm(min(least, top / 2), top, clip=True)


def _regions(axis: "Axes", grid: Grid, class_names: Sequence[str], told: Collection[int]) -> None:
    """The lines between classes, white with a dark rim; and, where most room is, names of those not `told` by points."""
    import numpy as np
    from matplotlib.patheffects import withStroke
    from scipy.ndimage import distance_transform_edt

    left, right, low, high = grid.ends
    across, up = np.linspace(left, right, grid.leads.shape[2]), np.linspace(low, high, grid.leads.shape[1])
    rim: Any = [withStroke(linewidth=3.4, foreground=INK)]
    text: dict[str, Any] = {"color": PAPER, "size": 9, "weight": "bold", "path_effects": rim, "zorder": 5}
    for label, lead in enumerate(grid.leads):
        if lead.min() < 0 < lead.max() and (label or len(grid.leads) > 2):  # of two classes, one line
            lines = axis.contour(across, up, lead, levels=[0], colors=PAPER, linewidths=1.8)
            lines.set_path_effects(rim)
        if label not in told and (lead > 0).mean() >= NAMED:
            depth = distance_transform_edt(np.pad(lead > 0, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            place = float(across[column]), float(up[row])
            axis.text(*place, _name(label, class_names), ha="center", va="center", **text)


def _points(axis: "Axes", points: "DataFrame", class_names: Sequence[str]) -> None:
    """Classes differ by marker, and by turns they are light with a dark rim and dark with a light one."""
    for place, label in enumerate(sorted(set(points["label"]))):
        face, edge = (PAPER, INK) if place % 2 == 0 else (INK, PAPER)
        look: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "mfc": face, "mec": edge, "mew": 0.8}
        look |= {"ls": "none", "ms": 5.5 if len(points) < 100 else 3.5, "label": _name(label, class_names)}
        mine = points[points["label"] == label]
        axis.plot(mine["across"], mine["up"], **look)


def _name(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else str(label)


def _say(name: str, rows: "DataFrame", class_names: Sequence[str]) -> str:
    """What a panel shows, in words."""
    heat, shares = rows["top_eigenvalue"], rows["prediction"].value_counts(normalize=True)
    every = zip(shares.index.tolist(), shares.tolist(), strict=True)
    regions = ", ".join(f"{_name(label, class_names)} on {pc(share)}" for label, share in every)
    return f"{name} median {heat.median():.3g}, at most {heat.max():.3g}; {regions}"
