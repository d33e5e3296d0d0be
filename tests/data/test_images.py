"""One's own images: arrays, folders, CSV and .npz files."""

import os
import shutil
import struct
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from robustlib.data import DATASETS, Dataset, Policy, dataset_of, images, load_dataset, load_images
from robustlib.data.arrays import as_images
from robustlib.errors import InputError
from robustlib.threat import Threat
from tests.data.conftest import random_images
from tests.data.test_sources import write_png

LABELS = np.arange(60) % 3


def sizes(dataset: Dataset) -> list[int]:
    return [len(split) for split in (dataset.train, dataset.val, dataset.test)]


def write(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tree(root: Path, n: int = 6, parts=("",), classes=("bee", "ant"), shape=(8, 8, 3)) -> Path:
    """A folder of PNG files, the brightness of each of which is unlike all others'."""
    for seed, (part, label, at) in enumerate((p, c, k) for p in parts for c in classes for k in range(n)):
        write(root / part / label / f"{at}.png", noise(seed, *shape))
    return root


def refused(said: str, path: Path, **options) -> None:
    with pytest.raises(InputError, match=said):
        load_images(path, **options)


def test_arrays_are_cut_into_stratified_parts_once_and_for_all():
    x = random_images(60, 3, 8)
    given = x.clone()
    ds = Dataset.of(
        x, LABELS, name="My Photos: März!", class_names=("a", "b", "c"), threat=Threat("l2", 0.5), flip=True
    )
    assert sizes(ds) == [36, 12, 12]
    assert torch.equal(x, given), "the caller's images stay as they are"
    parts = (ds.train, ds.val, ds.test)
    everything = torch.cat([split.indices for split in parts])
    assert everything.sort().values.tolist() == list(range(60))
    for split in parts:
        assert torch.equal(split.images, x[split.indices])
        assert torch.equal(split.labels, torch.from_numpy(LABELS)[split.indices])
        assert split.labels.bincount().tolist() == [len(split) // 3] * 3
    assert (ds.class_names, ds.threat, ds.train.policy) == (("a", "b", "c"), Threat("l2", 0.5), Policy(1, True))
    assert ds.mean == pytest.approx((ds.train.images / 255.0).mean((0, 2, 3)).tolist(), abs=1e-6)
    again = Dataset.of(x, LABELS, class_names=("a", "b", "c"))
    assert torch.equal(again.test.indices, ds.test.indices)
    assert sizes(Dataset.of(x, LABELS, val=0.1, test=0.5)) == [24, 6, 30]


def test_names_tell_images_labels_classes_and_cuts_apart():
    x = random_images(60, 3, 8)
    name = Dataset.of(x, LABELS, name="My Photos: März!").name
    slug, pixels, digest = name.rsplit("-", 2)
    assert (slug, pixels, len(digest)) == ("my-photos-marz", "8px", 8)
    other = x.clone()
    other[7, 0, 0, 0] ^= 1
    swapped = LABELS[[1, 0, *range(2, 60)]]
    ways = [(x, LABELS, {}), (other, LABELS, {}), (x, swapped, {}), (x, LABELS, {"class_names": "abc"})]
    ways += [(x, LABELS, {"test": 0.3}), (x, LABELS, {"test": 1.0}), (x.view(60, 3, 4, 16), LABELS, {})]
    ways += [(x, LABELS, {"flip": True})]
    assert len({Dataset.of(a, b, **options).name[-8:] for a, b, options in ways}) == len(ways)
    assert Dataset.of(x.clone(), torch.from_numpy(LABELS), name="x" * 99).name == f"{'x' * 40}-8px-{digest}"
    assert Dataset.of(x, LABELS, name="写真/..").name.startswith("images-8px-")


def test_all_images_can_be_there_to_be_evaluated():
    ds = Dataset.of(x := random_images(5, 1, 8), [0, 0, 0, 0, 1], test=1)
    assert (sizes(ds), ds.image_shape) == ([0, 0, 5], (1, 8, 8))
    assert torch.equal(ds.test.images, x)
    assert ds.mean == pytest.approx([float((x / 255.0).mean())], abs=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.numpy().transpose(0, 2, 3, 1),
        lambda x: x / 255,
        lambda x: (x / 255).double().numpy(),
        lambda x: (x / 255).requires_grad_(),
        lambda x: ((x - 0.4) / 255).clip(0, 1),
        lambda x: x.numpy()[:, :, ::-1][:, :, ::-1],
    ],
)
def test_layouts_and_floats_mean_the_same_images(given):
    x = random_images(300, 3, 8)
    assert np.array_equal(as_images(given(x)), x.numpy())
    grey = random_images(4, 1, 8)
    assert np.array_equal(as_images(grey[:, 0]), grey)
    assert np.array_equal(as_images(grey.permute(0, 2, 3, 1).numpy()), grey)


X = random_images(6, 3, 8)
Y = [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("x", "y", "options", "said"),
    [
        (X.float(), Y, {}, "reach from 0 to 255, not from 0 to 1: divide 0-255 by 255 or give uint8"),
        (X / 255 - 0.5, Y, {}, r"reach from -0.5 to .*leave out what normalises"),
        ((X / 255).log(), Y, {}, "reach from -inf"),
        (X / 0.0, Y, {}, "reach from nan"),
        (X.long(), Y, {}, "Images of int64 have no known range"),
        (X[:, :2], Y, {}, r"shape \(6, 2, 8, 8\) are neither"),
        (X[..., :3], Y, {}, r"shape \(6, 3, 8, 3\) are both"),
        (X[:0], [], {}, r"shape \(0, 3, 8, 8\)"),
        ([[1, 2], [3]], Y, {}, "These images are no array"),
        (X, Y[:5], {}, r"for each of 6 images, not int64 of shape \(5,\)"),
        (X, [0.0] * 6, {}, "not float64"),
        (X, [1, 2, 1, 2, 1, 2], {}, "Labels from 1 to 2 with 2 values are not 0 to K - 1"),
        (X, [0, 1, 0, 1, 0, 10**15], {}, "are not 0 to K - 1"),
        (X, [0, 1, 0, 1, 0, 3], {"class_names": ("a", "b", "c")}, "from 0 to 3 do not fit 3 class names"),
        (X, [-1, 1, 0, 1, 0, 1], {"class_names": ("a", "b")}, "from -1 to 1 do not fit"),
        (X, [0] * 6, {}, "needs two classes"),
        (X, Y, {"class_names": ("a", "a")}, "different ones"),
        (X, Y, {"class_names": (1, 2)}, "class_names=1: give a text"),
        (X, [0, 0, 0, 1, 0, 0], {"class_names": ("cat", "dog")}, r"class 'dog' has 1 image\(s\).*test=1.0"),
        (X, Y, {"test": 0.7, "val": 0.4}, "val=0.4 and test=0.7 leave no images"),
        (X, Y, {"val": 0}, "val=0: give a number above 0 and below 1"),
        (X, Y, {"test": 0}, "test=0: give a number above 0 and at most 1"),
        (X, Y, {"threat": 0.1}, "threat=0.1: give a Threat"),
        (X, None, {}, "no labels: give y"),
        (5, None, {}, "no labels: give y"),
        ([1, 2], None, {}, r"Example 0 is 1: .*\(image, label\)"),
    ],
)
def test_arrays_of_no_use_end_in_a_sentence(x, y, options, said):
    with pytest.raises(InputError, match=said):
        Dataset.of(x, y, **options)


def test_small_classes_are_cut_and_named_classes_may_have_no_images():
    ds = Dataset.of(X, Y, class_names=("a", "b", "never seen"))
    assert (sizes(ds), ds.num_classes) == ([2, 2, 2], 3)
    assert all(split.labels.sort().values.tolist() == [0, 1] for split in (ds.train, ds.val, ds.test))
    lopsided = np.repeat([0, 1], [100, 3])
    assert Dataset.of(random_images(103, 1, 4), lopsided).train.labels.unique().tolist() == [0, 1]


class Pairs:
    """As a data set of torchvision, over a list."""

    def __init__(self, *pairs, classes=None) -> None:
        self.pairs = pairs
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, at: int):
        return self.pairs[at]


def test_data_sets_of_torchvision():
    from torchvision.datasets import FakeData  # imports for seconds

    fake = FakeData(30, (3, 8, 8), 2)
    ds = Dataset.of(fake, test=1.0)
    assert np.array_equal(ds.test.images[4], np.asarray(fake[4][0]).transpose(2, 0, 1))
    assert ds.test.labels.tolist() == [int(fake[k][1]) for k in range(30)]
    tensors = Dataset.of(TensorDataset(X / 255, torch.tensor(Y)), test=1.0)
    assert torch.equal(tensors.test.images, X)
    grey, colour = Image.new("L", (8, 8), 7), Image.new("RGB", (8, 8), (1, 2, 3))
    both = Dataset.of(Pairs((grey, 0), (colour, 1), classes=["g", "c"]), test=1.0)
    assert both.test.images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]
    assert both.class_names == ("g", "c")
    assert Dataset.of(Pairs((grey, 0), (grey, 1)), test=1.0).image_shape == (1, 8, 8)
    deep = Image.fromarray(np.full((8, 8), 257 * 9, np.uint16))
    assert Dataset.of(Pairs((deep, 0), (grey, 1)), test=1.0).test.images[:, 0, 0, 0].tolist() == [9, 7]
    for pair, said in (
        ((Image.new("RGB", (9, 8)), 1), "Example 0 has 8 x 8 pixels and Example 1 8 x 9: .*Resize"),
        ((X[0] / 25, 1), "leave out what normalises"),
        ((Image.new("F", (8, 8)), 1), "Example 1 cannot be used: signs or 32 bits"),
        ((grey, "dog"), "Labels are one whole number"),
    ):
        with pytest.raises(InputError, match=said):
            Dataset.of(Pairs((colour, 0), pair))


def test_folders_of_classes_are_numbered_by_name(tmp_path):
    accented = unicodedata.normalize("NFD", "é t é")
    tree(tmp_path / "My Set", 10, classes=("zebra", accented, "Ant"))
    for name in (".git", ".DS_Store"):
        write(tmp_path / "My Set" / name / "x.png", noise(0, 8, 8))
    write(tmp_path / "My Set" / "zebra" / "deep" / "er.PNG", noise(99, 8, 8, 3), format="PNG")
    write(tmp_path / "My Set" / "zebra" / "._0.png", noise(99, 8, 8))
    (tmp_path / "My Set" / "zebra" / "read.me").write_text("no image")
    ds = load_images(tmp_path / "My Set", test=1.0)
    assert ds.class_names == ("Ant", "zebra", "é t é")
    assert ds.test.labels.bincount().tolist() == [10, 11, 10]
    assert ds.name.startswith("my-set-8px-")
    assert np.array_equal(ds.test.images[1].numpy(), noise(21, 8, 8, 3).transpose(2, 0, 1))
    assert np.array_equal(ds.test.images[20].numpy(), noise(99, 8, 8, 3).transpose(2, 0, 1))
    assert sizes(load_images(tmp_path / "My Set")) == [19, 6, 6]


@pytest.mark.parametrize(
    ("parts", "cut"),
    [
        (("train", "val", "test"), [12, 12, 12]),
        (("train", "test"), [10, 2, 12]),
        (("train", "val"), [10, 2, 12]),
        (("train",), [8, 2, 2]),
        (("val", "test"), [0, 12, 12]),
        (("test",), [0, 0, 12]),
        (("val",), [0, 0, 12]),
    ],
)
def test_split_folders(tmp_path, parts, cut):
    ds = load_images(tree(tmp_path, parts=parts))
    assert sizes(ds) == cut
    assert all(np.isfinite((*ds.mean, *ds.std)))
    tested = parts[-1]
    if tested != "train":
        first = np.asarray(Image.open(tmp_path / tested / "ant" / "0.png")).transpose(2, 0, 1)
        assert np.array_equal(ds.test.images[0], first), "the last part alone is evaluated"
    assert len(torch.cat([split.indices for split in (ds.train, ds.val, ds.test)]).unique()) == 12 * len(parts)


def test_classes_of_all_parts_are_numbered_together_and_may_be_called_train(tmp_path):
    tree(tmp_path / "a", parts=("train",), classes=("bee", "cow"))
    tree(tmp_path / "a", parts=("test",), classes=("ant", "cow"))
    ds = load_images(tmp_path / "a")
    assert ds.class_names == ("ant", "bee", "cow")
    assert (ds.train.labels.unique().tolist(), ds.test.labels.unique().tolist()) == ([1, 2], [0, 2])
    assert load_images(tree(tmp_path / "b", classes=("train", "car"))).class_names == ("car", "train")


def test_names_do_not_depend_on_the_order_or_place_of_files(tmp_path, monkeypatch):
    ds = load_images(tree(tmp_path / "set"))
    walk, listed = os.walk, Path.iterdir
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((p, d[::-1], f[::-1]) for p, d, f in walk(*a, **k)))
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))
    moved = shutil.copytree(tmp_path / "set", tmp_path / "elsewhere" / "set")
    again = load_images(moved)
    assert (again.name, torch.equal(again.train.images, ds.train.images)) == (ds.name, True)
    changed = write(moved / "bee" / "3.png", noise(1000, 8, 8, 3))
    assert load_images(moved).name != ds.name
    shutil.copy(tmp_path / "set" / "bee" / "3.png", changed)
    assert load_images(moved).name == ds.name
    assert load_images(moved, name="Other").name == f"other{ds.name.removeprefix('set')}"


def test_images_are_scaled_and_cropped_or_of_one_size(tmp_path):
    half = np.zeros((20, 40, 3), np.uint8)
    half[:, 20:] = 200
    for name in "abc":
        write(tmp_path / "wide" / f"{name}.png", half)
        write(tmp_path / "tall" / f"{name}.jpg", half.transpose(1, 0, 2), quality=95)
    refused(r"a.jpg' has 40 x 20 pixels and '.*a.png' 20 x 40: .*size=224", tmp_path)
    ds = load_images(tmp_path, size=10, test=1.0)
    assert (ds.image_shape, ds.name.split("-")[-2]) == ((3, 10, 10), "10px")
    tall, wide = ds.test.images[0, 0].float(), ds.test.images[3, 0].float()
    assert (wide[:, :4].max(), wide[:, 6:].min()) == (0, 200)
    assert (tall - wide.T).abs().max() < 12
    assert load_images(tmp_path, size=10, test=1.0, threat=Threat("l2", 1.0)).name == ds.name


def test_a_wrong_size_is_said_before_all_files_are_read(tmp_path, monkeypatch):
    tree(tmp_path, 200, classes=("ant",))
    tree(tmp_path, 200, classes=("bee",))
    write(tmp_path / "ant" / "1.png", noise(0, 9, 9, 3))
    read, decode, lock = [], images._decode, threading.Lock()

    def count(path, size):
        with lock:
            read.append(path)
        return decode(path, size)

    monkeypatch.setattr(images, "_decode", count)
    refused("9 x 9: bring them to one", tmp_path)
    assert len(read) < 200


DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("file", "image", "options", "shown"),
    [
        ("x.png", Image.new("RGBA", (8, 8), (10, 20, 30, 0)), {}, (10, 20, 30)),
        ("x.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
        ("x.gif", Image.new("P", (8, 8), 0), {"save_all": True, "append_images": [Image.new("P", (8, 8), 1)]}, None),
        ("x.png", Image.new("P", (8, 8), 0), {"transparency": b"\0"}, None),
        ("x.webp", Image.new("RGB", (8, 8), (9, 9, 9)), {"lossless": True}, (9, 9, 9)),
        ("x.bmp", Image.new("RGB", (8, 8), (1, 2, 3)), {}, (1, 2, 3)),
        ("x.TIFF", Image.new("RGB", (8, 8), (1, 2, 3)), {"compression": "tiff_lzw"}, (1, 2, 3)),
        ("x.png", Image.fromarray(DEEP), {}, np.rint(DEEP / 257)),
        ("x.tif", Image.fromarray(DEEP), {}, np.rint(DEEP / 257)),
        ("x.tif", Image.fromarray(DEEP), {"compression": "tiff_lzw"}, np.rint(DEEP / 257)),
        ("x.tif", Image.fromarray(DEEP), {"exif": exif(6)}, np.rint(DEEP / 257)[::-1].T),
        ("x.png", Image.fromarray(DEEP.astype(np.uint8)), {"exif": exif(3)}, DEEP.astype(np.uint8)[::-1, ::-1]),
        ("x.png", Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
    ],
)
@pytest.mark.parametrize("size", [0, 8])
def test_every_kind_of_image(tmp_path, file, image, options, shown, size):
    image = image.copy()
    if image.mode == "P":
        image.putpalette([1, 2, 3, 4, 5, 6])
        shown = (1, 2, 3)
    tree(tmp_path, 1, classes=("ant", "bee"))
    (tmp_path / "ant" / "0.png").unlink()
    image.save(tmp_path / "ant" / file, **options)
    got = load_images(tmp_path, size=size, test=1.0).test.images[0].permute(1, 2, 0).numpy()
    shown = shown[..., None] if isinstance(shown, np.ndarray) else shown
    assert np.abs(got - np.broadcast_to(shown, (8, 8, 3)).astype(float)).max() <= (2 if file == "x.jpg" else 0)


def test_sixteen_bits_a_pixel_are_no_sixteen_bits_a_colour(tmp_path):
    tree(tmp_path, 1, classes=("bee",))
    header = struct.pack(
        "<2sIII IiiHHIIiiII 3I", b"BM", 66 + 128, 0, 66, 40, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0, 0xF800, 0x7E0, 31
    )
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.bmp").write_bytes(header + struct.pack("<H", 0xF800) * 64)
    assert load_images(tmp_path, test=1.0).test.images[0, :, 3, 3].tolist() == [255, 0, 0]


def test_images_stay_grey_where_all_are(tmp_path):
    tree(tmp_path, 2, shape=(8, 8))
    assert load_images(tmp_path, test=1.0).image_shape == (1, 8, 8)
    assert load_images(tmp_path, test=1.0, size=4).image_shape == (1, 4, 4)
    write(tmp_path / "bee" / "9.png", noise(5, 8, 8, 3))
    ds = load_images(tmp_path, test=1.0)
    assert ds.image_shape == (3, 8, 8)
    assert torch.equal(ds.test.images[0, 0], ds.test.images[0, 2])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"no image"), "cannot identify"),
        (lambda path: path.write_bytes((path.parent / "0.png").read_bytes()[:90]), "truncated"),
        (lambda path: write_png(path, DEEP[..., None].repeat(3, 2)), "16 bits a colour"),
        (lambda path: write_png(path, DEEP[..., None].repeat(3, 2), size=(50_000, 50_000)), "2500000000 pixels"),
        (lambda path: write_png(path, DEEP[..., None].repeat(3, 2), size=(10_000, 10_000)), "100000000 pixels"),
        (lambda path: path.symlink_to("nowhere.png"), "No such file"),
        (lambda path: Image.fromarray(DEEP.astype(np.float32)).save(path, "TIFF"), "32 bits a pixel"),
        (lambda path: Image.fromarray(DEEP.astype(np.int32)).save(path, "TIFF"), "32 bits a pixel"),
        (lambda path: Image.fromarray(DEEP).save(path, "TIFF", tiffinfo={339: 2}), "signs or 32 bits a pixel"),
    ],
)
def test_files_of_no_use_are_named(tmp_path, make, said):
    make(tree(tmp_path, 5) / "bee" / "bad.png")
    refused(rf"bee/bad.png' is corrupted or unsafe \(.*{said}.*take it out", tmp_path)


def test_folders_of_no_use_end_in_a_sentence(tmp_path):
    refused("neither a folder of images nor", tmp_path / "nowhere")
    refused("no folders of classes, nor train/", tmp_path)
    write(tmp_path / "x.png", noise(0, 8, 8))
    refused("neither a folder", tmp_path / "x.png")
    refused("no folders of classes", tmp_path)
    tree(tmp_path, 1, classes=("ant",))
    refused("All images are of the class 'ant': .* two classes", tmp_path)
    (tmp_path / "bee").mkdir()
    refused(r"bee' holds no images \(.jpeg", tmp_path)
    write(tmp_path / "bee" / "x.png", noise(1, 8, 8, 3))
    refused(r"class 'ant' has 1 image\(s\) to be split", tmp_path)
    tree(tmp_path / "a", parts=("train", "test"), n=1)
    refused(r"class 'ant' has 1 image\(s\) to be split: give at least 2", tmp_path / "a")
    for size in (-1, 5000, "8"):
        refused("size=.*: give a whole number of at least 0 and at most 4096", tmp_path, size=size)


def test_links_that_go_round_in_circles_do_no_harm(tmp_path):
    root = tree(tmp_path / "set")
    name = load_images(root).name
    (root / "ant" / "up").symlink_to(root)
    (root / "loop").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "bee" / "self.txt").symlink_to("self.txt")
    assert load_images(root).name == name
    (root / "cow").symlink_to(tree(tmp_path / "other") / "ant")
    assert load_images(root).class_names == ("ant", "bee", "cow")


def listed(root: Path, *lines: str, encoding="utf-8") -> Path:
    for k in range(12):
        write(root / "files" / f"{k}.png", noise(k, 8, 8, 3))
    (root / "list.csv").write_text("\n".join(lines), encoding=encoding)
    return root / "list.csv"


def test_lists_of_files(tmp_path):
    names = ["10", "9", "x, y"]
    rows = [f'files/{k}.png,"{names[k % 3]}"' for k in range(12)]
    ds = load_images(listed(tmp_path, "path,label", *rows, "", encoding="utf-8-sig"))
    assert (ds.class_names, sizes(ds)) == (("10", "9", "x, y"), [6, 3, 3])
    assert ds.name.startswith("list-8px-")
    everything = load_images(tmp_path / "list.csv", test=1.0)
    assert np.array_equal(everything.test.images[5], noise(5, 8, 8, 3).transpose(2, 0, 1))
    assert everything.test.labels.tolist() == [0, 1, 2] * 4
    parts = ["test", "train", "train"]
    rows = [f"{parts[k % 3]},files/{k}.png,{names[k % 2]}" for k in range(12)]
    ds = load_images(listed(tmp_path, "split,path,label", *rows))
    assert (ds.class_names, sizes(ds)) == (("9", "10"), [6, 2, 4])
    assert ds.test.labels.tolist() == [1, 0, 1, 0]
    assert np.array_equal(ds.test.images[1], noise(3, 8, 8, 3).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["file,label", "a,b"], r"Line 1 of .* does not fit \('(file|path)'\)"),
        (["path;label"], "Line 1 of"),
        (["path,label,split,more"], "Line 1 of .*'more'"),
        (["path,label,path"], "Line 1 of"),
        ([""], "Line 1 of"),
        (["path,label"], "lists no images"),
        (["path,label", "files/0.png,a", "files/77.png,b"], r"Line 3 of .* \(there is no file '.*77.png'"),
        (["path,label", "files/0.png"], r"Line 2 of .* \(it has 1 cells, not 2"),
        (["path,label", "files/0.png,a,b"], r"Line 2 of .* \(it has 3 cells, not 2"),
        (["path,label", "files/0.png, "], r"Line 2 of .* \(it has no label"),
        (["path,label", "", "files/0.png,a", "files/0.png,b"], r"Line 4 of .* \('files/0.png' is on line 3 already"),
        (["path,label,split", "files/0.png,a,dev"], r"Line 2 of .* \(its split is 'dev', none of train, val, test"),
        (["path,label", "files/0.png,a\0"], "Line|no CSV|All images"),
    ],
)
def test_lists_of_no_use_name_the_line(tmp_path, lines, said):
    refused(said, listed(tmp_path, *lines))


def test_lists_in_another_encoding_are_named(tmp_path):
    refused("list.csv' is no CSV file in UTF-8", listed(tmp_path, "path,label", "files/0.png,é", encoding="latin-1"))


def test_files_of_arrays(tmp_path):
    x, y = noise(0, 60, 8, 8, 3), LABELS
    np.savez(tmp_path / "own.npz", x=x, y=y, class_names=["a", "b", "c"])
    ds = load_images(tmp_path / "own.npz")
    assert (sizes(ds), ds.class_names, ds.name[:8]) == ([36, 12, 12], ("a", "b", "c"), "own-8px-")
    assert ds.name == Dataset.of(x, y, name="own", class_names=("a", "b", "c")).name
    assert load_images(tmp_path / "own.npz", size=8).name == ds.name
    refused("size=9: the arrays of .* have 8 x 8 pixels", tmp_path / "own.npz", size=9)
    for contents, said in (
        ({"x": x}, "y is not a file|no images x and labels y"),
        ({"x": x, "y": np.array([object()] * 60)}, "no images x and labels y that can be read .*allow_pickle"),
        ({"x": x, "y": y + 1}, "not 0 to K - 1"),
    ):
        np.savez(tmp_path / "bad.npz", **contents)
        refused(said, tmp_path / "bad.npz")
    for content in (b"", b"PK\3\4 no archive", b"text"):
        (tmp_path / "bad.npz").write_bytes(content)
        refused("bad.npz' has no images x and labels y that can be read", tmp_path / "bad.npz")


def params_of(ds: Dataset) -> dict:
    return {"dataset": ds.name, "images": dict(ds.origin)} if ds.origin else {"dataset": ds.name}


def test_a_run_finds_its_images_again_or_says_that_they_changed(tmp_path):
    root = tree(tmp_path / "My Set", parts=("train", "test"))
    ds = load_images(root, size=6, threat=Threat("l2", 0.7), val=0.4, flip=True)
    params = params_of(ds)
    again = dataset_of(params)
    assert (again.name, again.threat, again.train.policy.flip, sizes(again)) == (
        ds.name,
        Threat("l2", 0.7),
        True,
        sizes(ds),
    )
    assert torch.equal(again.val.images, ds.val.images)
    moved = shutil.move(root, tmp_path / "away" / "renamed")
    with pytest.raises(
        InputError, match=r"are not at .*My Set: say where they are with --data-root\. .* does not hold them: All"
    ):
        dataset_of(params, tmp_path)
    assert dataset_of(params, moved).name == ds.name
    os.rename(moved, tmp_path / "away" / "My Set")
    assert dataset_of(params, tmp_path / "away").name == ds.name
    write(tmp_path / "away" / "My Set" / "test" / "bee" / "0.png", noise(500, 8, 8, 3))
    with pytest.raises(InputError, match=r"are my-set-6px-.*, those of this run were my-set-6px-.*restore the files"):
        dataset_of(params, tmp_path / "away")


def test_runs_of_other_data_sets_load_these(tmp_path, digits):
    assert dataset_of({"dataset": "digits"}).name == "digits"
    with pytest.raises(InputError, match="was made of arrays"):
        dataset_of(params_of(Dataset.of(X, Y)))
    for odd in (["path"], {"size": 3}, {"path": 5, "threat": {}}, {"path": "x", "threat": {"eps": "y", "norm": "l2"}}):
        with pytest.raises(InputError):
            dataset_of({"dataset": "x", "images": odd})


PLUGIN = """
import numpy as np
from robustlib.data import Policy, Source
from robustlib.data.sources import Arrays
from robustlib.threat import Threat
def read(root, download):
    x, y = np.arange(400).astype(np.uint8).repeat(4).reshape(400, 1, 2, 2), np.arange(400) % 2
    return Arrays((x[:300], y[:300]), (x[300:], y[300:]), ("even", "odd"))
stripes = Source(read, Threat("linf", 0.3), Policy(), val=50, embedded=True)
"""


def install(root: Path, monkeypatch, name: str, entries: str, text: str = "") -> None:
    """A distribution of one module on the path, as installed ones lie there."""
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[robustlib.datasets]\n{entries}\n")
    (root / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(root)


def test_installed_packages_register_data_sets(tmp_path, monkeypatch):
    install(
        tmp_path / "a", monkeypatch, "fake_stripes", "stripes = fake_stripes:stripes\ndigits = fake_stripes:no", PLUGIN
    )
    broken = "gone = fake_broken:gone\nfails = fake_fails:x\nwrong = fake_broken:value\nA b = fake_broken:value"
    install(tmp_path / "b", monkeypatch, "fake_broken", broken, "value = 3")
    (tmp_path / "b" / "fake_fails.py").write_text("raise SystemExit(3)")
    ds = load_dataset("stripes")
    assert (ds.name, sizes(ds), ds.class_names) == ("stripes", [250, 50, 100], ("even", "odd"))
    assert "stripes" not in DATASETS
    assert load_dataset("stripes-0-0").num_classes == 1
    assert load_dataset("digits").num_classes == 10, "a package does not stand in for a published data set"
    for name, said in (
        ("gone", "'gone' .* of fake_broken in robustlib.datasets cannot be loaded .*AttributeError"),
        ("fails", "cannot be loaded .*SystemExit: 3"),
        ("wrong", "is a int, not a Source"),
        ("A b", "other characters"),
        ("strips", "Unknown dataset 'strips'. Did you mean 'stripes'"),
    ):
        with pytest.raises(InputError, match=said):
            load_dataset(name)
    install(tmp_path / "c", monkeypatch, "fake_second", "stripes = fake_second:x")
    with pytest.raises(InputError, match="is not the only one of that name"):
        load_dataset("stripes")
