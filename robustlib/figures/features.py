"""Figures of a feature space: distances between pairs, alignment and exclusion, and maps of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import INK, MUTED, Figure, axes, looks, needs, panels, same_length, style, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray
    from pandas import DataFrame

ARROWS = 30  # at most, on one map: more would hide the points
FEW = 12  # classes that colours and names on the map can still tell apart
MANY = ("#56b4e9", "#d55e00")  # colours of clean and adversarial images where classes are too many
FILLS = (0.30, 0.0, 0.12, 0.0)  # opacity of the histograms: some filled, some lines only


def pair_distances(distances: "Mapping[str, Mapping[str, ArrayLike]]") -> Figure:
    """Histograms of distances between pairs of features, a panel for each method, all on one scale.

    Args:
        distances: method -> kind of pair ("clean to adversarial", "same class", "nearest other class") -> distances (N,), >= 0;
            not finite ones are left out.

    Raises:
        InputError: no distances.
    """
    import numpy as np
    from matplotlib.lines import Line2D

    found = {
        method: {name: _finite(values) for name, values in pairs.items()}
        for method, pairs in distances.items()
        if pairs
    }
    if not found or not all(len(values) for pairs in found.values() for values in pairs.values()):
        raise InputError("The pair-distance figure needs distances for each kind of pair of at least one method.")
    kinds = looks(dict.fromkeys(name for pairs in found.values() for name in pairs))
    most = max(float(values.max()) for pairs in found.values() for values in pairs.values())
    bins = np.linspace(0, most * 1.02 or 1.0, 41)
    with style():
        fig, every = panels(list(found), height=3.4)
        for axis, pairs in zip(every, found.values(), strict=True):
            for place, (name, look) in enumerate(kinds.items()):
                if name in pairs:
                    _histogram(axis, pairs[name], bins, name, look, FILLS[place % len(FILLS)])
            axis.set_xlabel("distance (below: medians)")
            axis.set_yticks([])
            axis.grid(visible=False, axis="y")
        every[0].set_ylabel("share of the pairs")
        _shared_scale(every)
        handles = [Line2D([], [], label=name, mec="white", ms=7, **look) for name, look in kinds.items()]
        fig.legend(handles=handles, loc="outside lower center", ncols=min(len(kinds), 4), handlelength=3)
    said = "; ".join(f"{method}: {_medians(pairs)}" for method, pairs in found.items())
    return Figure(fig, f"Histograms of distances between features. Medians: {said}.")


def _finite(values: "ArrayLike") -> "NDArray[Any]":
    import numpy as np

    flat = np.asarray(values, dtype=float).ravel()
    return flat[np.isfinite(flat)]


def _histogram(
    axis: "Axes", values: "NDArray[Any]", bins: "NDArray[Any]", name: str, look: dict[str, Any], fill: float
) -> None:
    import numpy as np

    counts, _ = np.histogram(values, bins)
    line: dict[str, Any] = {"color": look["color"], "ls": look["ls"]}
    axis.stairs(counts / len(values), bins, lw=1.6, label=name, **line)
    axis.stairs(counts / len(values), bins, fill=True, color=look["color"], alpha=fill)
    axis.plot(
        [np.median(values)], [0], marker=look["marker"], color=look["color"], ms=7, mec="white", clip_on=False, zorder=5
    )


def _shared_scale(every: "Sequence[Axes]") -> None:
    top = max(axis.get_ylim()[1] for axis in every)
    for axis in every:
        axis.set_ylim(0, top)
        axis.set_xlim(left=0)


def _medians(pairs: "Mapping[str, NDArray[Any]]") -> str:
    import numpy as np

    return ", ".join(f"{name} {np.median(values):.3g}" for name, values in pairs.items())


def alignment_exclusion(table: "DataFrame", exclusion: str = "margin") -> Figure:
    """How near each run keeps an image to its adversarial one, and how far from other classes: up and left is better.

    Args:
        table: one row a run, e.g. of `robustlib.representation.measure_runs` for one layer: `method`, `alignment` (squared
            distance of a clean image to its adversarial one, the smaller the better), the exclusion (the larger the better), and
            optionally `title`.
        exclusion: "margin" (nearest other class less nearest own), "nearest" (other class) or "other" (mean of other classes).
    """
    names = {
        "margin": "margin",
        "nearest": "distance to the nearest of another class",
        "other": "mean distance to others",
    }
    if exclusion not in names:
        raise InputError(f"exclusion={exclusion!r}: choose among {', '.join(names)}.")
    rows = needs("alignment-exclusion", table, ["method", "alignment", exclusion])
    rows = rows.assign(_title=[title_of(row) for row in rows.to_dict("records")])
    said = []
    with style():
        fig, (axis,) = axes(height=4.4)
        for title, look in looks(sorted(rows["_title"].unique())).items():
            mine = rows[rows["_title"] == title]
            dot: dict[str, Any] = {"marker": look["marker"], "color": look["color"], "ls": "none"}
            axis.plot(mine["alignment"], mine[exclusion], ms=7, mec="white", alpha=0.75, label=title, **dot)
            centre = mine["alignment"].mean(), mine[exclusion].mean()
            if len(mine) > 1:
                axis.plot(*[[value] for value in centre], ms=13, mfc="none", mew=1.8, **dot)
            said.append(f"{title} (runs: {len(mine)}) alignment {centre[0]:.3g}, exclusion {centre[1]:.3g}")
        axis.set_xlabel("alignment: squared distance of clean to adversarial  (← is better)")
        axis.set_ylabel(f"exclusion: {names[exclusion]}  (↑ is better)")
        axis.set_title("Alignment and exclusion, a dot for each run")
        axis.margins(0.12)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.4)
    return Figure(fig, f"Alignment (smaller is better) and exclusion (larger is better), means: {'; '.join(said)}.")


def umap_atlas(
    maps: "Mapping[str, tuple[ArrayLike, ArrayLike]]",
    labels: "ArrayLike",
    class_names: Sequence[str] = (),
    *,
    note: str = "",
    arrows: int = ARROWS,
) -> Figure:
    """Maps of clean and adversarial features of the same images, with arrows from some images to their adversarial ones.

    Args:
        maps: name -> coordinates (N, 2) of the clean and of the adversarial images, e.g. an `Embedding`'s `clean` and
            `adversarial`; panels for methods, or for UMAP and PCA.
        labels: (N,) classes, the same for all maps.
        class_names: by label; numbers if not given.
        note: what to say below: parameters, seed, trustworthiness (`str(embedding)`).
        arrows: on each map, spread over the classes.

    Raises:
        InputError: no maps, or maps of other numbers of images.
    """
    import numpy as np

    y = np.asarray(labels)
    if not maps:
        raise InputError("The atlas needs at least one map; none given.")
    tables = {name: tuple(np.asarray(side, dtype=float) for side in sides) for name, sides in maps.items()}
    for clean, adversarial in tables.values():
        same_length("atlas", labels=y, clean=clean, adversarial=adversarial)
    names = {int(k): str(class_names[int(k)]) if len(class_names) else str(k) for k in np.unique(y)}
    chosen = _spread(y, arrows)
    with style():
        fig, every = panels(list(tables), height=4.4 if len(tables) < 3 else 3.2)
        for axis, (clean, adversarial) in zip(every, tables.values(), strict=True):
            _map(axis, clean, adversarial, y, names)
            _arrows(axis, clean[chosen], adversarial[chosen])
        _atlas_legend(fig, bool(len(chosen)), note)
    shown = ", ".join(f"{name}: {_moves(*sides)}" for name, sides in tables.items())
    return Figure(
        fig,
        f"Maps of clean and adversarial features of {len(y)} images of {len(names)} classes. {shown}. {note}".strip(),
    )


def _spread(y: "NDArray[Any]", count: int) -> "NDArray[Any]":
    """Places of about `count` examples, as many of each class; always the same."""
    import numpy as np

    classes = np.unique(y)
    each = max(1, count // len(classes)) if count else 0
    return np.concatenate([np.flatnonzero(y == k)[:each] for k in classes])[:count]


def _map(
    axis: "Axes", clean: "NDArray[Any]", adversarial: "NDArray[Any]", labels: "NDArray[Any]", names: Mapping[int, str]
) -> None:
    """Circles and crosses in the colour of their class; of many classes, in the colour of their kind, without names."""
    import numpy as np
    from matplotlib.patheffects import withStroke

    size, few = float(np.clip(5000 / len(labels), 3, 14)), len(names) <= FEW
    colours = [look["color"] for look in looks([str(k) for k in range(10)]).values()]
    halo = [withStroke(linewidth=3, foreground="white")]
    for place, (label, name) in enumerate(names.items()):
        mine, (light, dark) = labels == label, (colours[place % 10],) * 2 if few else MANY
        x, y = clean[mine].T
        axis.scatter(x, y, s=2 * size, color=light, alpha=0.35, lw=0, rasterized=True)
        x, y = adversarial[mine].T
        axis.scatter(x, y, s=size, color=dark, alpha=0.75, lw=0.7, marker="x", rasterized=True)
        if few:
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "zorder": 9}
            above |= {"fontsize": 10, "weight": "bold", "color": INK, "path_effects": halo}
            axis.annotate(name, _heart(clean[mine]), xytext=(0, 10), **above)
    axis.spines[:].set_visible(True)  # a map has no axes, only an edge
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")


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


def _atlas_legend(fig: Any, arrows: bool, note: str) -> None:
    import textwrap

    from matplotlib.lines import Line2D

    kinds = {"clean image": "o", "its adversarial one": "x"}
    handles = [Line2D([], [], ls="none", marker=m, color=MUTED, ms=6, label=name) for name, m in kinds.items()]
    if arrows:
        handles.append(
            Line2D([], [], ls="none", marker=r"$\rightarrow$", color=INK, ms=13, label="from one to the other")
        )
    fig.legend(handles=handles, loc="outside upper right", ncols=3, handletextpad=0.3)
    if note:
        fig.supxlabel("\n".join(textwrap.wrap(note, 130)), fontsize=8, color=MUTED, x=0.01, ha="left")


def _moves(clean: "NDArray[Any]", adversarial: "NDArray[Any]") -> str:
    """How far adversarial images lie from their clean ones, as a share of the spread of the map."""
    import numpy as np

    spread = float(np.linalg.norm(clean - clean.mean(0), axis=1).mean()) or 1.0
    return f"adversarial images lie {np.linalg.norm(adversarial - clean, axis=1).mean() / spread:.2f} map radii from their clean ones on average"
