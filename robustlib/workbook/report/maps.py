"""The atlas: a page to walk through a feature space, image by image, before and after an attack."""

import base64
import io
import json
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustlib.attacks import Attack
from robustlib.data import Dataset
from robustlib.figures.canvas import COLOURS
from robustlib.representation import embed_runs, run_features
from robustlib.representation.runs import check_runs
from robustlib.runs import Run, write_atomic
from robustlib.workbook.report.page import fill_template

LIMIT = 2_900_000  # bytes of a page, which is to stay below 3 MB
COLUMNS = 25  # images in a row of the sprite
FEW = 10  # classes that colours can still distinguish
SCALE = 9999  # coordinates are whole numbers in [0, SCALE]


def write_atlas(
    target: Path,
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    title: str,
    index: str = "",
    n: int = 500,
    seed: int = 0,
) -> Path:
    """Writes one page with each run's map of clean and adversarial features, and the images behind its points.

    Features and maps are those of `robustlib.representation.embed_runs` with the same arguments, which keeps them. The images
    are one PNG: the clean ones, then for each run what the attack added (modulo 256, exact), which packs better than the
    adversarial images. Examples are left out, evenly, until the page is below 3 MB; the page says how many.

    Args:
        target: the page to write.
        runs: finished, of `dataset`; a map each, so one seed of each method is enough.
        dataset: whose test images are shown.
        attack: on each run's own model.
        title: its <h1>.
        index: relative address of the index page; "" for no link.
        n: number of test images, a stratified choice; 0 for all.
        seed: of the attack and of UMAP.
    """
    check_runs(runs, dataset)
    split, classes = dataset.test.sample(n), list(dataset.class_names)
    shown, adversarial = zip(*(_map(run, dataset, attack, n, seed) for run in runs), strict=True)
    images = np.stack([split.images.numpy(), *adversarial])
    data = {"shape": list(dataset.image_shape), "columns": COLUMNS, "scale": SCALE, "classes": classes}
    data |= {"colours": COLOURS[: len(classes)] if len(classes) <= FEW else [], "labels": split.labels.numpy()}
    data["runs"] = [facts | {"name": name} for facts, name in zip(shown, _names(runs), strict=True)]
    facts = {
        "Attack": repr(attack),
        "Images": f"{len(split)} test images of {dataset.name}, the same for every network",
        "Features": "penultimate",
    }
    places = np.arange(len(split))
    for _ in range(5):
        text = json.dumps(data, separators=(",", ":"), default=partial(_values_at, places))
        values = {"data": text.replace("<", "\\u003c"), "sprite": _sprite(images[:, places]), "facts": facts}
        counts = {"shown": len(places), "total": len(split)}
        page = fill_template("atlas.html.j2", title=title, index=index, **values, **counts)
        if len(page) <= LIMIT:
            break
        fewer = max(1, int(0.95 * len(places) * LIMIT / len(page)))
        places = np.linspace(0, len(split) - 1, fewer).round().astype(int)
    write_atomic(Path(target), page)
    return Path(target)


def _values_at(places: np.ndarray, table: np.ndarray) -> list[int]:
    return table[places].ravel().tolist()


def _map(run: Run, dataset: Dataset, attack: Attack, n: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """What the page knows of one run, an entry for each example, and its adversarial images."""
    (made,) = embed_runs([run], dataset, attack, n=n, seed=seed)
    clean, adversarial = run_features(run, dataset, attack, n=n, seed=seed)
    assert adversarial.images is not None
    answers = [clean.predictions.numpy(), adversarial.predictions.numpy()]
    maps = {"UMAP": _whole(*made.points), "PCA": _whole(*made.pca)}
    return {"answers": answers, "maps": maps, "note": str(made)}, adversarial.images.numpy()


def _whole(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Coordinates (N, 4), clean then adversarial, as whole numbers in [0, SCALE] that keep the map's shape."""
    both = np.stack([clean, adversarial], axis=1)
    low, high = both.min((0, 1)), both.max((0, 1))
    centred = (both - (low + high) / 2) / (max(high - low) or 1.0)
    return ((centred + 0.5) * SCALE).round().astype(int).reshape(len(clean), 4)


def _names(runs: Sequence[Run]) -> list[str]:
    """Name of each run; the network is named where there are several."""
    params = [run.params() for run in runs]
    several = len({one.get("arch") for one in params}) > 1
    parts = [
        (one.get("title") or one["method"], run.changed, one["arch"] if several else "", f"seed {one['seed']}")
        for run, one in zip(runs, params, strict=True)
    ]
    return [" · ".join(filter(None, one)) for one in parts]


def _sprite(images: np.ndarray) -> str:
    """Clean images and what each run's attack added, uint8 (1 + runs, N, C, H, W), as one PNG in base64."""
    blocks, count, channels, height, width = images.shape
    rows = -(-count // COLUMNS)
    sheet = np.zeros((blocks, rows * COLUMNS, channels, height, width), dtype=np.uint8)
    sheet[0, :count], sheet[1:, :count] = images[0], images[1:] - images[:1]  # uint8 wraps around, and back again
    tiled = sheet.reshape(blocks * rows, COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    drawn = tiled.reshape(blocks * rows * height, COLUMNS * width, channels)
    stream = io.BytesIO()
    picture = Image.fromarray(drawn.squeeze(2) if channels == 1 else drawn)
    picture.save(stream, format="PNG", compress_type=zlib.Z_HUFFMAN_ONLY)  # noise does not repeat itself
    return base64.b64encode(stream.getvalue()).decode()
