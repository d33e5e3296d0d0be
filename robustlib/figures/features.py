"""A feature space: distances between pairs, alignment and exclusion, maps, and a plane of images as models see it."""

from collections.abc import Collection, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    INK,
    MARKERS,
    MUTED,
    Figure,
    axes,
    dots,
    legend_below,
    panels,
    require_columns,
    same_length,
    style,
    styles,
    title_of,
)
from robustlib.figures.labels import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LANE = 0.075  # height of the lane of a median, a share of the highest bin
FILLS = (0.30, 0.0, 0.12, 0.0)  # opacity of the histograms: some filled, some lines only


@style()
def pair_distances(distances: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Histograms of distances between pairs of features, a panel for each method, all on one scale.

    By method and kind of pair ("clean to adversarial", "same class", "nearest other class") distances (N,), >= 0; those that are
    not finite are left out.
    """
    pairs = {
        (method, kind): np.asarray(values, dtype=float).ravel()
        for method, kinds in distances.items()
        for kind, values in kinds.items()
    }
    pairs = {key: values[np.isfinite(values)] for key, values in pairs.items()}
    if not pairs or not all(len(values) for values in pairs.values()):
        raise InputError("The pair-distance figure needs distances for each kind of pair of at least one method.")
    edges = np.linspace(0, max(float(values.max()) for values in pairs.values()) * 1.02 or 1.0, 33)
    bins = []
    for (method, kind), values in pairs.items():
        start = {"method": method, "pair": kind, "pairs": len(values), "median": np.median(values)}
        share = np.histogram(values, edges)[0] / len(values)
        bins.append(DataFrame({**start, "from": edges[:-1], "to": edges[1:], "share": share}))
    data = pd.concat(bins, ignore_index=True)
    methods, marks = list(dict.fromkeys(method for method, _ in pairs)), styles(data["pair"])
    fig, every = panels(methods, height=3.4 if len(methods) < 4 else 2.6)
    for axis, method in zip(every, methods, strict=True):
        _draw_histograms(axis, data[data["method"] == method], marks, data["share"].max())
    fig.supylabel("share of the pairs", fontsize=10)
    legend_below(fig, every[0])
    medians = {method: [f"{k} {np.median(v):.3g}" for (m, k), v in pairs.items() if m == method] for method in methods}
    described = "; ".join(f"{method}: {', '.join(kinds)}" for method, kinds in medians.items())
    return Figure(fig, f"Histograms of distances between features. Medians: {described}.", data)


def _draw_histograms(axis: "Axes", bins: DataFrame, marks: Mapping[str, dict[str, Any]], top: float) -> None:
    """The histograms of one method; their medians in a lane each below them, where they cannot hide each other."""
    for lane, (kind, mark) in enumerate(marks.items()):
        own = bins[bins["pair"] == kind]
        if not own.empty:
            edges = [*own["from"], own["to"].iloc[-1]]
            axis.stairs(own["share"], edges, lw=1.6, color=mark["color"], ls=mark["ls"])
            axis.stairs(own["share"], edges, fill=True, color=mark["color"], alpha=FILLS[lane % len(FILLS)])
            place = own["median"].iloc[:1], [-(lane + 0.7) * LANE * top]
            axis.plot(*place, ms=7, mec="white", label=kind, **mark)
    axis.axhline(0, color="#b8c1cb", lw=0.8)
    axis.set(ylim=(-(len(marks) + 0.4) * LANE * top, 1.04 * top), yticks=[])
    axis.set(xlim=(0, None), xlabel="distance; marks: medians")
    axis.grid(visible=False, axis="y")


@style()
def alignment_exclusion(table: DataFrame) -> Figure:
    """How near each run keeps an image to its adversarial one, and how far that stays from other classes: up and left is better.

    One row a run, e.g. of `robustlib.representation.measure_runs` for one layer: `method`, `alignment` (squared distance of a
    clean image to its adversarial one), `adversarial_margin` (distance of the adversarial image to the nearest of another class
    less that to the nearest of its own), and optionally `title`.
    """
    rows = require_columns("alignment-exclusion", table, ["method", "alignment", "adversarial_margin"])
    rows = rows.assign(method=[title_of(row) for row in rows.to_dict("records")])
    described = []
    fig, (axis,) = axes(height=4.4)
    for title, mark in styles(sorted(rows["method"].unique())).items():
        own = rows.loc[rows["method"] == title, ["alignment", "adversarial_margin"]]
        axis.plot(*own.to_numpy().T, label=title, **dots(mark, ms=7.5, mec="white", mew=0.6))
        x, y = own.mean()
        if len(own) > 1:
            axis.plot([x], [y], **dots(mark, ms=13, mfc="none", mew=1.8))
        described.append(f"{title} (runs: {len(own)}) alignment {x:.3g}, exclusion {y:.3g}")
    axis.set_xlabel("alignment: squared distance of clean to adversarial  (← is better)")
    axis.set_ylabel("exclusion of adversarial images  (↑ is better)\nnearest of another class less nearest own")
    rings = ", a ring at the mean of a method" if rows["method"].duplicated().any() else ""
    axis.set_title(f"Alignment and exclusion, a dot for each run{rings}")
    axis.margins(0.12)
    legend_below(fig, axis)
    alt = f"Alignment (smaller is better) and exclusion (larger is better), means: {'; '.join(described)}."
    return Figure(fig, alt, rows.filter(["method", "seed", "layer", "alignment", "adversarial_margin"]))


ARROWS = 30  # at most, on one map: more would hide the points
FEW = 12  # classes that colours and names on the map can still tell apart
HEIGHTS = {1: 5.6, 2: 4.6, 3: 3.3}  # inches of a row of so many maps
LETTER, LINE = 0.085, 0.15  # inches, of the name of a class
MANY = ("#56b4e9", "#d55e00")  # colours of clean and adversarial images where classes are too many


@style()
def umap_atlas(
    maps: Mapping[str, tuple[ArrayLike, ArrayLike]],
    labels: ArrayLike,
    class_names: Sequence[str] = (),
    *,
    note: str = "",
    notes: Mapping[str, str] | None = None,
    copies: str = "adversarial",
) -> Figure:
    """Clean images and their copies on maps of feature spaces, in the colour of their class, with arrows from some to their copies.

    Args:
        maps: name -> coordinates (N, 2) of the clean and of the adversarial images, e.g. an `Embedding`'s `clean` and
            `adversarial`; panels for methods, or for UMAP and PCA.
        labels: (N,) classes, the same for all maps.
        note: what to say below all: parameters and seed.
        notes: name of a map -> what to say below it alone, e.g. its trustworthiness.
        copies: what the second coordinates are of, e.g. "augmented" ones.
    """
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
    arrows = np.concatenate([np.flatnonzero(y == k)[: max(1, ARROWS // len(names))] for k in names])[:ARROWS]
    columns = min(len(tables), 3)
    fig, every = panels(list(tables), height=HEIGHTS[columns])
    described = []
    for axis, (name, (clean, adversarial)) in zip(every, tables.items(), strict=True):
        axis.set_xlabel(fill(own.get(name, ""), 120 // columns), fontsize=8, color=MUTED, loc="left")
        _draw_map(axis, clean, adversarial, y, 1 if columns < 3 else 0.6)
        if len(names) <= FEW:
            _name_classes(axis, {name: clean[y == label] for label, name in names.items()}, HEIGHTS[columns])
        form: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.013}
        form |= {"headwidth": 5.5, "headlength": 6.5, "headaxislength": 6, "color": INK, "alpha": 0.55, "zorder": 6}
        axis.quiver(*clean[arrows].T, *(adversarial - clean)[arrows].T, **form)
        radius = float(np.linalg.norm(clean - clean.mean(0), axis=1).mean()) or 1.0
        moved = f"{np.linalg.norm(adversarial - clean, axis=1).mean() / radius:.2f} map radii"
        text = f"{name}: {copies} images lie {moved} from their clean ones on average. {own.get(name, '')}"
        described.append(text.strip())
    _draw_atlas_legend(fig, note, copies)
    alt = (
        f"Maps of clean and {copies} features of {len(y)} images of {len(names)} classes. {' '.join(described)} {note}"
    )
    parts = [
        DataFrame({"map": name, "index": range(len(y)), "label": y, "class": [names[k] for k in y.tolist()]}).assign(
            side=kind, x=side[:, 0], y=side[:, 1]
        )
        for name, sides in tables.items()
        for kind, side in zip(("clean", copies), sides, strict=True)
    ]
    return Figure(fig, alt.strip(), pd.concat(parts, ignore_index=True))


def _draw_map(axis: "Axes", clean: NDArray[Any], adversarial: NDArray[Any], labels: NDArray[Any], scale: float) -> None:
    """Circles and crosses in the colour of their class; of many classes, in the colour of their kind."""
    classes = np.unique(labels)
    size = scale * float(np.clip(5000 / len(labels), 3, 14))
    for label, mark in zip(classes, styles(map(str, classes)).values(), strict=True):
        own, (light, dark) = labels == label, (mark["color"],) * 2 if len(classes) <= FEW else MANY
        (x, y), (u, v) = clean[own].T, adversarial[own].T
        axis.scatter(x, y, s=2 * size, color=light, alpha=0.35, lw=0, rasterized=True)
        axis.scatter(u, v, s=size, color=dark, alpha=0.75, lw=0.7, marker="x", rasterized=True)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)  # a map has no axes, only an edge
    axis.set_aspect("equal", adjustable="datalim")


def _name_classes(axis: "Axes", groups: Mapping[str, NDArray[Any]], height: float) -> None:
    """The name of each class at its centre, or as near as the names before it leave room."""
    from matplotlib.patheffects import withStroke

    shifts = [(dx, dy) for far in (0.14, 0.3, 0.45) for dx in (0, far, -far) for dy in (far, -far)]  # inches
    inch = np.ptp(axis.get_ylim()) / (height - 0.9)  # about: the layout is made when the figure is drawn
    left, right = (end / inch for end in axis.get_xlim())
    taken: list[tuple[float, float, float]] = []  # x, y, half the width, in inches

    def free(x: float, y: float, half: float) -> bool:
        crossed = (abs(x - a) < half + other and abs(y - b) < LINE for a, b, other in taken)
        return left < x - half and x + half < right and not any(crossed)

    for name, points in groups.items():
        (x, y), half = (value / inch for value in class_centre(points)), LETTER * len(name) / 2
        dx, dy = next((shift for shift in shifts if free(x + shift[0], y + shift[1], half)), shifts[0])
        taken.append((x + dx, y + dy, half))
        halo = [withStroke(linewidth=3, foreground="white")]
        form: dict[str, Any] = {"fontsize": 9, "weight": "bold", "color": INK, "path_effects": halo, "zorder": 9}
        form |= {"arrowprops": {"arrowstyle": "-", "lw": 0.7, "color": INK, "shrinkA": 0, "shrinkB": 0}}
        form |= {"xytext": (72 * dx, 72 * dy), "textcoords": "offset points", "ha": "center", "va": "center"}
        axis.annotate(name, class_centre(points), **form)


def class_centre(points: NDArray[Any]) -> tuple[float, float]:
    """The point (2,) of (N, 2) nearest to the median of all: inside the class also where it lies in pieces."""
    x, y = points[np.abs(points - np.median(points, axis=0)).sum(1).argmin()].tolist()
    return x, y


def _draw_atlas_legend(fig: Any, note: str, copies: str) -> None:
    from matplotlib.lines import Line2D

    kinds = {"clean image": ("o", MUTED, 6), f"its {copies} one": ("x", MUTED, 6)}
    kinds["from one to the other"] = (r"$\rightarrow$", INK, 13)
    handles = [Line2D([], [], ls="none", marker=m, color=c, ms=size, label=k) for k, (m, c, size) in kinds.items()]
    fig.legend(handles=handles, loc="outside upper right", ncols=3, handletextpad=0.3)
    if note:
        fig.supxlabel(fill(note, 130), fontsize=8, color=MUTED, x=0.01, ha="left")


PAPER = "#ffffff"
DECADES = 4  # of the colour scale, at most, below its largest value
FINER = 8  # times as many points along each side, linear between those given, so that lines of two classes coincide
NAMED = 0.02  # share of the plane from which on a region is named


class Grid(NamedTuple):
    """One model's plane: n coordinates across, m up, top eigenvalues (m, n), and by how much each class leads, (K, FINER m,
    FINER n) at as many coordinates between."""

    across: NDArray[Any]
    up: NDArray[Any]
    heat: NDArray[Any]
    leads: NDArray[Any]

    @classmethod
    def of(cls, name: str, rows: DataFrame, logits: Sequence[str]) -> "Grid":
        """From the rows of one model."""
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
        return cls(across, up, rows["top_eigenvalue"].to_numpy().reshape(shape), z - others)

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """The first and the last coordinate across, and up."""
        return self.across[0], self.across[-1], self.up[0], self.up[-1]


@style()
def metric_plane(table: DataFrame, points: DataFrame, class_names: Sequence[str] = ()) -> Figure:
    """The decision boundary as a line over the top eigenvalue of the pull-back metric, a panel for each model, one colour scale.

    Args:
        table: e.g. of `robustlib.representation.metric_over_plane`: `model`, `across`, `up` (a full grid for each model),
            `top_eigenvalue`, `logit 0` .. `logit K - 1`.
        points: what to draw into every panel, such as training points: `across`, `up`, `label`.
    """
    from matplotlib.colors import LogNorm

    rows = require_columns("plane", table, ["model", "across", "up", "top_eigenvalue", "logit 0", "logit 1"])
    points = require_columns("plane", points, ["across", "up", "label"])
    logits = [str(name) for name in rows if str(name).startswith("logit ")]
    rows = rows.assign(prediction=rows[logits].to_numpy().argmax(1)).reset_index(drop=True)
    names = [class_names[k] if k < len(class_names) else str(k) for k in range(len(logits))]
    grids = {str(name): Grid.of(str(name), part, logits) for name, part in rows.groupby("model", sort=False)}
    left, right, low, high = next(iter(grids.values())).ends
    width = 5.0 if len(grids) == 1 else 6.0 / (2 if len(grids) in (2, 4) else 3)
    fig, every = panels(list(grids), height=float(min(5.0, max(2.0, width * (high - low) / (right - left)))) + 1.1)
    top = float(rows["top_eigenvalue"].max()) or 1.0
    least = max(float(rows["top_eigenvalue"].min()), top * 10.0**-DECADES)  # darkest, as is what lies below
    scale = LogNorm(min(least, top / 2), top, clip=True)
    for axis, grid in zip(every, grids.values(), strict=True):
        mesh = axis.pcolormesh(*grid[:3], norm=scale, cmap="cividis", shading="nearest", rasterized=True)
        _draw_regions(axis, grid, names, set(points["label"]))
        _draw_points(axis, points, names)
        axis.set(xlim=grid.ends[:2], ylim=grid.ends[2:], aspect="equal", xlabel="across")
        axis.grid(visible=False)
    every[0].set_ylabel("up (both: pixel units)")
    fig.colorbar(mesh, ax=every, label="top eigenvalue of $J^TJ$, logarithmic", shrink=0.8)
    legend_below(fig, every[0])
    described = []
    for model, part in rows.groupby("model", sort=False):
        heat, shares = part["top_eigenvalue"], part["prediction"].value_counts(normalize=True)
        regions = ", ".join(f"{names[int(str(label))]} on {percent(share)}" for label, share in shares.items())
        described.append(f"{model} median {heat.median():.3g}, at most {heat.max():.3g}; {regions}")
    alt = f"Decision boundaries over the top eigenvalue of the pull-back metric on a plane: {'; '.join(described)}."
    return Figure(fig, alt, rows[["model", "across", "up", "top_eigenvalue", "prediction"]])


def _draw_regions(axis: "Axes", grid: Grid, names: Sequence[str], marked: Collection[int]) -> None:
    """The lines between classes, white with a dark rim; and, where most room is, names of classes without points."""
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
        if label not in marked and (lead > 0).mean() >= NAMED:
            depth = distance_transform_edt(np.pad(lead > 0, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            axis.text(float(across[column]), float(up[row]), names[label], ha="center", va="center", **text)


def _draw_points(axis: "Axes", points: DataFrame, names: Sequence[str]) -> None:
    """Classes differ by marker, and by turns they are light with a dark rim and dark with a light one."""
    for place, label in enumerate(sorted(set(points["label"]))):
        face, edge = (PAPER, INK) if place % 2 == 0 else (INK, PAPER)
        mark: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "mfc": face, "mec": edge, "mew": 0.8}
        own = points[points["label"] == label]
        axis.plot(own["across"], own["up"], ls="none", ms=5.5 if len(points) < 100 else 3.5, label=names[label], **mark)
