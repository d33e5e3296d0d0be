"""Maps of a feature space: clean images of each class, their attacked or augmented copies, and how these move.

A plane of images as models see it: where their decisions change, over the metric that their features pull back.
"""

from collections.abc import Collection, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    INK,
    MARKERS,
    MUTED,
    Figure,
    legend_below,
    panels,
    percent,
    require_columns,
    same_length,
    style,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from numpy.typing import ArrayLike, NDArray
    from pandas import DataFrame


ARROWS = 30  # at most, on one map: more would hide the points
FEW = 12  # classes that colours and names on the map can still tell apart
HEIGHTS = {1: 5.6, 2: 4.6, 3: 3.3}  # inches of a row of so many maps
LETTER, LINE = 0.085, 0.15  # inches, of the name of a class
SHIFTS = [
    (dx, dy) for far in (0.14, 0.3, 0.45) for dx in (0, far, -far) for dy in (far, -far)
]  # from a class to its name
MANY = ("#56b4e9", "#d55e00")  # colours of clean and adversarial images where classes are too many


def umap_atlas(
    maps: "Mapping[str, tuple[ArrayLike, ArrayLike]]",
    labels: "ArrayLike",
    class_names: Sequence[str] = (),
    *,
    note: str = "",
    notes: Mapping[str, str] | None = None,
    arrows: int = ARROWS,
    copies: str = "adversarial",
) -> Figure:
    """Maps of clean and adversarial features of the same images, with arrows from some images to their adversarial ones.

    Args:
        maps: name -> coordinates (N, 2) of the clean and of the adversarial images, e.g. an `Embedding`'s `clean` and
            `adversarial`; panels for methods, or for UMAP and PCA.
        labels: (N,) classes, the same for all maps.
        class_names: by label; numbers if not given.
        note: what to say below all: parameters and seed.
        notes: name of a map -> what to say below it alone, e.g. its trustworthiness.
        arrows: on each map, spread over the classes.
        copies: what the second coordinates are of, e.g. "augmented" ones.

    Raises:
        InputError: no maps, maps of other numbers of images, or a note for a map that is not there.
    """
    import numpy as np

    y = np.asarray(labels)
    if not maps:
        raise InputError("The atlas needs at least one map; none given.")
    own = dict(notes or {})
    if unknown := [name for name in own if name not in maps]:
        raise InputError(f"There is no map {unknown[0]!r} to put a note below: the maps are {', '.join(maps)}.")
    tables = {name: tuple(np.asarray(side, dtype=float) for side in sides) for name, sides in maps.items()}
    for clean, adversarial in tables.values():
        same_length("atlas", labels=y, clean=clean, adversarial=adversarial)
    names = {int(k): str(class_names[int(k)]) if len(class_names) else str(k) for k in np.unique(y)}
    chosen = _spread(y, arrows)
    with style():
        columns = min(len(tables), 3)
        fig, every = panels(list(tables), height=HEIGHTS[columns])
        for axis, (name, (clean, adversarial)) in zip(every, tables.items(), strict=True):
            axis.set_xlabel(fill(own.get(name, ""), 120 // columns), fontsize=8, color=MUTED, loc="left")
            _map(axis, clean, adversarial, y, 1 if columns < 3 else 0.6)
            _name_classes(axis, {name: clean[y == label] for label, name in names.items()}, HEIGHTS[columns])
            _arrows(axis, clean[chosen], adversarial[chosen])
        _atlas_legend(fig, bool(len(chosen)), note, copies)
    shown = " ".join(
        f"{name}: {copies} {_moves(*sides)}. {own.get(name, '')}".strip() for name, sides in tables.items()
    )
    alt = f"Maps of clean and {copies} features of {len(y)} images of {len(names)} classes. {shown} {note}".strip()
    return Figure(fig, alt, _numbers(tables, y, names, copies))


def _numbers(tables: "Mapping[str, Any]", labels: "NDArray[Any]", names: Mapping[int, str], copies: str) -> "DataFrame":
    """A row for each map, side and image."""
    import pandas as pd

    shared = {"index": range(len(labels)), "label": labels, "class": [names[int(label)] for label in labels]}
    parts = [
        pd.DataFrame({"map": name, **shared, "side": kind, "x": side[:, 0], "y": side[:, 1]})
        for name, sides in tables.items()
        for kind, side in zip(("clean", copies), sides, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def _spread(y: "NDArray[Any]", count: int) -> "NDArray[Any]":
    """Places of about `count` examples, as many of each class; always the same."""
    import numpy as np

    classes = np.unique(y)
    each = max(1, count // len(classes)) if count else 0
    return np.concatenate([np.flatnonzero(y == k)[:each] for k in classes])[:count]


def _map(
    axis: "Axes", clean: "NDArray[Any]", adversarial: "NDArray[Any]", labels: "NDArray[Any]", scale: float
) -> None:
    """Circles and crosses in the colour of their class; of many classes, in the colour of their kind."""
    import numpy as np

    classes = np.unique(labels)
    size = scale * float(np.clip(5000 / len(labels), 3, 14))
    for label, look in zip(classes, styles(map(str, classes)).values(), strict=True):
        mine, (light, dark) = labels == label, (look["color"],) * 2 if len(classes) <= FEW else MANY
        x, y = clean[mine].T
        axis.scatter(x, y, s=2 * size, color=light, alpha=0.35, lw=0, rasterized=True)
        x, y = adversarial[mine].T
        axis.scatter(x, y, s=size, color=dark, alpha=0.75, lw=0.7, marker="x", rasterized=True)
    axis.spines[:].set_visible(True)  # a map has no axes, only an edge
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")


def _name_classes(axis: "Axes", groups: "Mapping[str, NDArray[Any]]", height: float) -> None:
    """The name of each class at its heart, or as near as the names before it leave room; none of too many classes."""
    import numpy as np
    from matplotlib.patheffects import withStroke

    if len(groups) > FEW:
        return
    halo = [withStroke(linewidth=3, foreground="white")]
    inch = np.ptp(axis.get_ylim()) / (height - 0.9)  # about: the layout is made when the figure is drawn
    left, right = (end / inch for end in axis.get_xlim())
    taken: list[tuple[float, float, float]] = []  # x, y, half the width, in inches
    for name, points in groups.items():
        (x, y), half = (value / inch for value in _heart(points)), LETTER * len(name) / 2
        tried = ((dx, dy, (x + dx, y + dy, half)) for dx, dy in SHIFTS)
        free = (
            (dx, dy) for dx, dy, box in tried if left < box[0] - half < box[0] + half < right and not _meets(box, taken)
        )
        dx, dy = next(free, SHIFTS[0])
        taken.append((x + dx, y + dy, half))
        form: dict[str, Any] = {"fontsize": 9, "weight": "bold", "color": INK, "path_effects": halo, "zorder": 9}
        form |= {"arrowprops": {"arrowstyle": "-", "lw": 0.7, "color": INK, "shrinkA": 0, "shrinkB": 0}}
        form |= {"xytext": (72 * dx, 72 * dy), "textcoords": "offset points", "ha": "center", "va": "center"}
        axis.annotate(name, _heart(points), **form)


def _meets(box: tuple[float, float, float], others: Sequence[tuple[float, float, float]]) -> bool:
    x, y, half = box
    return any(abs(x - other[0]) < half + other[2] and abs(y - other[1]) < LINE for other in others)


def _heart(points: "NDArray[Any]") -> tuple[float, float]:
    """The point nearest to the median of all: inside the class also where it lies in pieces."""
    import numpy as np

    x, y = points[np.abs(points - np.median(points, axis=0)).sum(1).argmin()]
    return float(x), float(y)


def _arrows(axis: "Axes", starts: "NDArray[Any]", ends: "NDArray[Any]") -> None:
    if len(starts):
        form: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.013}
        heads: dict[str, Any] = {"headwidth": 5.5, "headlength": 6.5, "headaxislength": 6}
        axis.quiver(*starts.T, *(ends - starts).T, color=INK, alpha=0.55, zorder=6, **form, **heads)


def _atlas_legend(fig: Any, arrows: bool, note: str, copies: str) -> None:
    from matplotlib.lines import Line2D

    kinds = {"clean image": "o", f"its {copies} one": "x"}
    handles = [Line2D([], [], ls="none", marker=m, color=MUTED, ms=6, label=name) for name, m in kinds.items()]
    if arrows:
        handles.append(
            Line2D([], [], ls="none", marker=r"$\rightarrow$", color=INK, ms=13, label="from one to the other")
        )
    fig.legend(handles=handles, loc="outside upper right", ncols=3, handletextpad=0.3)
    if note:
        fig.supxlabel(fill(note, 130), fontsize=8, color=MUTED, x=0.01, ha="left")


def _moves(clean: "NDArray[Any]", adversarial: "NDArray[Any]") -> str:
    """How far adversarial images lie from their clean ones, as a share of the spread of the map."""
    import numpy as np

    spread = float(np.linalg.norm(clean - clean.mean(0), axis=1).mean()) or 1.0
    return f"images lie {np.linalg.norm(adversarial - clean, axis=1).mean() / spread:.2f} map radii from their clean ones on average"


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
    rows = require_columns("plane", table, ["model", "across", "up", "top_eigenvalue", "logit 0", "logit 1"])
    points = None if points is None else require_columns("plane", points, ["across", "up", "label"])
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
    """Of a row of panels, in inches: what the first plane require_columns, within limits."""
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
    regions = ", ".join(f"{_name(label, class_names)} on {percent(share)}" for label, share in every)
    return f"{name} median {heat.median():.3g}, at most {heat.max():.3g}; {regions}"
