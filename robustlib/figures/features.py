"""A feature space: distances between pairs, alignment and exclusion, maps, and a plane of images as models see it."""

from collections.abc import Collection, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame

from robustlib.errors import InputError
from robustlib.figures import canvas
from robustlib.figures.canvas import DOTS, INK, MARKERS, MUTED, Figure, percent, require_columns, same_length

Arrays = Sequence[NDArray[Any]]
LANE = 0.075  # height of the lane of a median, a share of the highest bin
FILLS = (0.30, 0.0, 0.12, 0.0)  # opacity of the histograms: some filled, some lines only


@canvas.style()
def pair_distances(distances: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Histograms of distances between pairs of features, a panel for each method, all on one scale.

    By method and kind of pair ("clean to adversarial", "same class", ...) distances (N,), >= 0; finite ones are drawn.
    """
    given = {(m, kind): np.asarray(part, dtype=float) for m, kinds in distances.items() for kind, part in kinds.items()}
    pairs = {key: values[np.isfinite(values)] for key, values in given.items()}
    if not pairs or not all(len(values) for values in pairs.values()):
        raise InputError("The pair-distance figure needs distances for each kind of pair of at least one method.")
    edges = np.linspace(0, max(float(values.max()) for values in pairs.values()) * 1.02 or 1.0, 33)
    bins: list[DataFrame] = []
    medians: dict[str, list[str]] = {method: [] for method, _ in pairs}
    for (method, kind), values in pairs.items():
        start = {"method": method, "pair": kind, "pairs": len(values), "median": np.median(values)}
        share = np.histogram(values, edges)[0] / len(values)
        bins.append(DataFrame({**start, "from": edges[:-1], "to": edges[1:], "share": share}))
        medians[method].append(f"{kind} {start['median']:.3g}")
    data = pd.concat(bins, ignore_index=True)
    marks, top = canvas.styles(data["pair"]), data["share"].max()
    fig, every = canvas.panels(list(medians), height=3.4 if len(medians) < 4 else 2.6)
    for axis, method in zip(every, medians, strict=True):
        for lane, (kind, mark) in enumerate(marks.items()):
            own = data[(data["method"] == method) & (data["pair"] == kind)]
            if own.empty:
                continue
            axis.stairs(own["share"], edges, lw=1.6, color=mark["color"], ls=mark["ls"])
            axis.stairs(own["share"], edges, fill=True, color=mark["color"], alpha=FILLS[lane % len(FILLS)])
            below = -(lane + 0.7) * LANE * top  # medians stand in a lane each, where they cannot hide each other
            axis.plot(own["median"].iloc[:1], [below], ms=7, mec="white", label=kind, **mark)
        axis.axhline(0, color=canvas.PALE, lw=0.8)
        axis.set(ylim=(-(len(marks) + 0.4) * LANE * top, 1.04 * top), yticks=[])
        axis.set(xlim=(0, None), xlabel="distance; marks: medians")
        axis.grid(visible=False, axis="y")
    fig.supylabel("share of the pairs", fontsize=10)
    canvas.legend_below(fig, every[0])
    described = "; ".join(f"{method}: {', '.join(kinds)}" for method, kinds in medians.items())
    return Figure(fig, f"Histograms of distances between features. Medians: {described}.", data)


@canvas.style()
def alignment_exclusion(table: DataFrame) -> Figure:
    """How near a run keeps an image to its adversarial one, and how far from other classes: up and left is better.

    One row a run, e.g. of `robustlib.representation.measure_runs` for one layer: `method`, `alignment` (squared distance),
    `adversarial_margin` (distance to another class less that to the own), and optionally `title`. Of more than nine variants as `trade_off`.
    """
    rows = require_columns("alignment-exclusion", table, ["method", "alignment", "adversarial_margin"])
    drawn, left_out = canvas.first_variants(rows)
    rows = rows.assign(method=canvas.titles(rows))
    described = []
    fig, (axis,) = canvas.axes(height=4.4)
    for title, mark in canvas.styles(drawn).items():
        own = rows.loc[rows["method"] == title, ["alignment", "adversarial_margin"]]
        axis.plot(*own.to_numpy().T, label=title, ms=7.5, mew=0.6, **mark | DOTS)
        x, y = own.mean()
        if len(own) > 1:
            axis.plot([x], [y], ms=13, mfc="none", mew=1.8, **mark | {"ls": "none"})
        described.append(f"{title} (runs: {len(own)}) alignment {x:.3g}, exclusion {y:.3g}")
    axis.set_xlabel("alignment: squared distance of clean to adversarial  (← is better)")
    axis.set_ylabel("exclusion of adversarial images  (↑ is better)\nnearest of another class less nearest own")
    rings = ", a ring at the mean of a method" if rows["method"].duplicated().any() else ""
    axis.set_title(f"Alignment and exclusion, a dot for each run{rings}")
    axis.margins(0.12)
    canvas.legend_below(fig, axis)
    alt = f"Alignment (smaller is better) and exclusion (larger is better), means: {'; '.join(described)}."
    return Figure(fig, alt, rows.filter(["method", "seed", "layer", "alignment", "adversarial_margin"]), left_out)


ARROWS = 30  # at most, on one map: more would hide the points
FEW = 12  # classes that colours and names on the map can still tell apart
HEIGHTS = {1: 5.6, 2: 4.6, 3: 3.3}  # inches of a row of so many maps
LETTER, LINE = 0.085, 0.15  # inches, of the name of a class
# Where a name may stand from its class.
AROUND = ((0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1), (1.5, 0), (-1.5, 0))
MANY = ("#56b4e9", "#d55e00")  # colours of clean and adversarial images where classes are too many
ARROW: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.013}
ARROW |= {"headwidth": 5.5, "headlength": 6.5, "headaxislength": 6, "color": INK, "alpha": 0.55, "zorder": 6}


@canvas.style()
def umap_atlas(
    maps: Mapping[str, tuple[ArrayLike, ArrayLike]],
    labels: ArrayLike,
    class_names: Sequence[str] = (),
    *,
    note: str = "",
    notes: Mapping[str, str] | None = None,
    copies: str = "adversarial",
) -> Figure:
    """Clean images and their copies on maps of feature spaces, coloured by class, with arrows between some.

    By name coordinates (N, 2) of the clean and of the adversarial images, e.g. an `Embedding`'s; labels (N,) are the same for all.
    `note` stands below all, `notes` below their maps; `copies` says what the second coordinates are of, e.g. "augmented" ones.
    """
    from matplotlib.lines import Line2D

    y, notes = np.asarray(labels), notes or {}
    if not maps:
        raise InputError("The atlas needs at least one map; none given.")
    if unknown := [name for name in notes if name not in maps]:
        raise InputError(f"There is no map {unknown[0]!r} to put a note below: the maps are {', '.join(maps)}.")
    tables = {name: tuple(np.asarray(side, dtype=float) for side in sides) for name, sides in maps.items()}
    for clean, adversarial in tables.values():
        same_length("atlas", labels=y, clean=clean, adversarial=adversarial)
    names = {int(k): str(class_names[int(k)]) if len(class_names) else str(k) for k in np.unique(y)}
    columns = min(len(tables), 3)
    fig, every = canvas.panels(list(tables), height=HEIGHTS[columns])
    described, parts = [], []
    for axis, (name, (clean, adversarial)) in zip(every, tables.items(), strict=True):
        remark = notes.get(name, "")
        axis.set_xlabel(fill(remark, 120 // columns), fontsize=8, color=MUTED, loc="left")
        _draw_map(axis, (clean, adversarial), y, names, columns)
        radius = float(np.linalg.norm(clean - clean.mean(0), axis=1).mean()) or 1.0
        far = f"{np.linalg.norm(adversarial - clean, axis=1).mean() / radius:.2f} map radii"
        described.append(f"{name}: {copies} images lie {far} from their clean ones on average. {remark}".strip())
        facts = {"map": name, "index": range(len(y)), "label": y, "class": [names[k] for k in y.tolist()]}
        sides = {"clean": clean, copies: adversarial}
        parts += [DataFrame({**facts, "side": k, "x": side[:, 0], "y": side[:, 1]}) for k, side in sides.items()]
    kinds = {"clean image": ("o", MUTED, 6), f"its {copies} one": ("x", MUTED, 6)}
    kinds["from one to the other"] = (">", INK, 5)
    handles = [Line2D([], [], ls="none", marker=m, color=c, ms=size, label=k) for k, (m, c, size) in kinds.items()]
    fig.legend(handles=handles, loc="outside upper right", ncols=3, handletextpad=0.3)
    if note:
        fig.supxlabel(fill(note, 130), fontsize=8, color=MUTED, x=0.01, ha="left")
    text = " ".join([*described, note])
    alt = f"Maps of clean and {copies} features of {len(y)} images of {len(names)} classes. {text}"
    return Figure(fig, alt.strip(), pd.concat(parts, ignore_index=True))


def _draw_map(axis: "canvas.Axes", sides: Arrays, labels: NDArray[Any], names: Mapping[int, str], columns: int) -> None:
    """Circles and crosses in the colour of their class, named; of many classes, in the colour of their kind."""
    clean, adversarial = sides
    size = (1 if columns < 3 else 0.6) * float(np.clip(5000 / len(labels), 3, 14))
    for label, mark in zip(names, canvas.styles(map(str, names)).values(), strict=True):
        own, (light, dark) = labels == label, (mark["color"],) * 2 if len(names) <= FEW else MANY
        (x, y), (u, v) = clean[own].T, adversarial[own].T
        axis.scatter(x, y, s=2 * size, color=light, alpha=0.35, lw=0, rasterized=True)
        axis.scatter(u, v, s=size, color=dark, alpha=0.75, lw=0.7, marker="x", rasterized=True)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)  # a map has no axes, only an edge
    axis.set_aspect("equal", adjustable="datalim")
    if len(names) <= FEW:
        groups = {name: clean[labels == label] for label, name in names.items()}
        _name_classes(axis, groups, canvas.WIDTH / columns - 0.1, HEIGHTS[columns] - 1.1)
    arrows = np.concatenate([np.flatnonzero(labels == k)[: max(1, ARROWS // len(names))] for k in names])[:ARROWS]
    axis.quiver(*clean[arrows].T, *(adversarial - clean)[arrows].T, **ARROW)


def _name_classes(axis: "canvas.Axes", groups: Mapping[str, NDArray[Any]], width: float, height: float) -> None:
    """The name of each class at its centre in a panel of so many inches, or as near as the names before it leave room."""
    from matplotlib.patheffects import withStroke

    shifts = [(far * dx, far * dy) for far in (0.14, 0.3, 0.45, 0.6, 0.8) for dx, dy in AROUND]
    # Both axes have one scale, that of the longer one in its share of the panel; the layout is made when the figure is drawn.
    inch = max(np.ptp(axis.get_xlim()) / width, np.ptp(axis.get_ylim()) / height)
    middle_x, middle_y = np.mean(axis.get_xlim()) / inch, np.mean(axis.get_ylim()) / inch
    taken: list[tuple[float, float, float]] = []  # x, y, half the width, in inches

    def hidden(x: float, y: float, half: float) -> float:
        """How much would be covered, or cut at the edge: 0 is free."""
        crossed = sum(max(0.0, half + b - abs(x - a)) for a, c, b in taken if abs(y - c) < LINE)
        beyond = abs(x - middle_x) + half - width / 2, abs(y - middle_y) + LINE / 2 - height / 2
        return crossed + sum(max(0.0, over) for over in beyond)

    form: dict[str, Any] = {"fontsize": 9, "weight": "bold", "color": INK, "zorder": 9, "ha": "center", "va": "center"}
    form |= {"path_effects": [withStroke(linewidth=3, foreground="white")], "textcoords": "offset points"}
    form |= {"arrowprops": {"arrowstyle": "-", "lw": 0.7, "color": INK, "shrinkA": 0, "shrinkB": 0}}
    for name, points in groups.items():
        (x, y), half = (value / inch for value in class_centre(points)), LETTER * len(name) / 2
        costs = [hidden(x + dx, y + dy, half) for dx, dy in shifts]
        dx, dy = shifts[costs.index(min(costs))]  # the nearest of the best
        taken.append((x + dx, y + dy, half))
        axis.annotate(name, class_centre(points), (72 * dx, 72 * dy), **form)


def class_centre(points: NDArray[Any]) -> tuple[float, float]:
    """The point (2,) of (N, 2) nearest to the median of all: inside the class also where it lies in pieces."""
    x, y = points[np.abs(points - np.median(points, axis=0)).sum(1).argmin()].tolist()
    return x, y


PAPER = "#ffffff"
DECADES = 4  # of the colour scale, at most, below its largest value
FINER = 8  # times as many points along each side, linear between those given, so that lines of two classes coincide
NAMED = 0.02  # share of the plane from which on a region is named


@canvas.style()
def metric_plane(table: DataFrame, points: DataFrame, class_names: Sequence[str] = ()) -> Figure:
    """Decision boundaries over the top eigenvalue of the pull-back metric, a panel for each model, one colour scale.

    The table is e.g. that of `robustlib.representation.metric_over_plane`: `model`, `across`, `up` (a full grid of
    each), `top_eigenvalue`, `logit 0` .. `logit K - 1`. Points (`across`, `up`, `label`) are drawn into every panel.
    """
    from matplotlib.colors import LogNorm

    rows = require_columns("plane", table, ["model", "across", "up", "top_eigenvalue", "logit 0", "logit 1"])
    points = require_columns("plane", points, ["across", "up", "label"])
    logits = [str(name) for name in rows if str(name).startswith("logit ")]
    rows = rows.assign(prediction=rows[logits].to_numpy().argmax(1)).reset_index(drop=True)
    names = [class_names[k] if k < len(class_names) else str(k) for k in range(len(logits))]
    models = {str(name): part for name, part in rows.groupby("model", sort=False)}
    grids = [canvas.grid_axes(f"plane figure of {name}", part, "across", "up", 2) for name, part in models.items()]
    across, up = grids[0]
    width = 5.0 if len(models) == 1 else 6.0 / (2 if len(models) in (2, 4) else 3)
    height = float(min(5.0, max(2.0, width * np.ptp(up) / np.ptp(across))))
    fig, every = canvas.panels(list(models), height=height + 1.1)
    top = float(rows["top_eigenvalue"].max()) or 1.0
    least = max(float(rows["top_eigenvalue"].min()), top * 10.0**-DECADES)  # darkest, as is what lies below
    scale = LogNorm(min(least, top / 2), top, clip=True)
    described = []
    for axis, (model, part), (across, up) in zip(every, models.items(), grids, strict=True):
        ordered = part.sort_values(["up", "across"])
        heat = ordered["top_eigenvalue"].to_numpy().reshape(len(up), len(across))
        grid = across, up, ordered[logits].to_numpy().T.reshape(-1, *heat.shape)
        mesh = axis.pcolormesh(across, up, heat, norm=scale, cmap="cividis", shading="nearest", rasterized=True)
        _draw_regions(axis, grid, names, set(points["label"]))
        for place, (label, own) in enumerate(points.groupby("label")):
            face, edge = (INK, PAPER) if place % 2 else (PAPER, INK)  # beside markers
            mark: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "mfc": face, "mec": edge, "mew": 0.8}
            size = 5.5 if len(points) < 100 else 3.5
            axis.plot(own["across"], own["up"], ls="none", ms=size, label=names[int(str(label))], **mark)
        axis.set(xlim=across[[0, -1]], ylim=up[[0, -1]], aspect="equal", xlabel="across")
        axis.grid(visible=False)
        shares = part["prediction"].value_counts(normalize=True)
        regions = ", ".join(f"{names[int(str(label))]} on {percent(share)}" for label, share in shares.items())
        described.append(f"{model} median {np.median(heat):.3g}, at most {heat.max():.3g}; {regions}")
    every[0].set_ylabel("up (both: pixel units)")
    fig.colorbar(mesh, ax=every, label="top eigenvalue of JᵀJ, logarithmic", shrink=0.8)
    canvas.legend_below(fig, every[0])
    alt = f"Decision boundaries over the top eigenvalue of the pull-back metric on a plane: {'; '.join(described)}."
    return Figure(fig, alt, rows[["model", "across", "up", "top_eigenvalue", "prediction"]])


def _draw_regions(axis: "canvas.Axes", grid: Arrays, names: Sequence[str], marked: Collection[int]) -> None:
    """The lines between classes; and, where most room is, names of classes without points."""
    from matplotlib.patheffects import withStroke
    from scipy.ndimage import distance_transform_edt, zoom

    x, y, logits = grid
    z = zoom(logits, (1, FINER, FINER), order=1)
    across, up = np.linspace(x[0], x[-1], z.shape[2]), np.linspace(y[0], y[-1], z.shape[1])
    rim: Any = [withStroke(linewidth=3.4, foreground=INK)]
    text: dict[str, Any] = {"color": PAPER, "size": 9, "weight": "bold", "path_effects": rim, "zorder": 5}
    for label in range(len(z)):
        lead = z[label] - np.delete(z, label, axis=0).max(0)
        if lead.min() < 0 < lead.max() and (label or len(z) > 2):  # of two classes, one line
            lines = axis.contour(across, up, lead, levels=[0], colors=PAPER, linewidths=1.8)
            lines.set_path_effects(rim)
        if label not in marked and (lead > 0).mean() >= NAMED:
            depth = distance_transform_edt(np.pad(lead > 0, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            axis.text(float(across[column]), float(up[row]), names[label], ha="center", va="center", **text)
