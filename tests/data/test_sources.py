"""Readers of published layouts, imitated by tiny files; nothing touches the network."""

import gzip
import hashlib
import pickle
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from robustlib.data import DATASETS, load_dataset, sources
from robustlib.errors import InputError
from robustlib.threat import Threat
from tests.data.conftest import random_images


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fake_mnist(root: Path, folder="MNIST") -> Path:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 100), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", random_images(n, 1, 28)[:, 0].numpy())
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    return raw


def fake_cifar(monkeypatch, root: Path, classes=10, n=100) -> Path:
    """Files of the published layout, whose sums torchvision is told to expect."""
    import torchvision  # seconds, in each process that collects tests, if it stood above

    make = torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100
    labels = {"labels" if classes == 10 else "fine_labels": [i % classes for i in range(n)]}
    folder = root / make.base_folder
    folder.mkdir(parents=True)
    contents = {make.meta["filename"]: {make.meta["key"]: [f"class {i}" for i in range(classes)]}}
    for number, (file, _) in enumerate([*make.train_list, *make.test_list]):
        contents[file] = labels | {"data": random_images(n, seed=number).flatten(1).numpy()}
    contents = {file: pickle.dumps(content) for file, content in contents.items()}
    sums = {file: hashlib.md5(data).hexdigest() for file, data in contents.items()}
    for file, data in contents.items():
        (folder / file).write_bytes(data)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(make, part, [[file, sums[file]] for file, _ in getattr(make, part)])
    monkeypatch.setattr(make, "meta", {**make.meta, "md5": sums[make.meta["filename"]]})
    return folder


def write_jpegs(folder: Path, n: int, size: tuple[int, int], mode="RGB", prefix="") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new(mode, size, 20 * i if mode == "L" else (200, 20 * i, 10)).save(folder / f"{prefix}{i}.JPEG")


def fake_imagenette(folder: Path, size=(200, 170)) -> None:
    for wnid in ("n01440764", "n03028079"):
        write_jpegs(folder / "train" / wnid, 10, size)
        write_jpegs(folder / "val" / wnid, 3, size)


def fake_tiny(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    for wnid, mode in (("n02", "RGB"), ("n01", "L")):
        write_jpegs(folder / "train" / wnid / "images", 10, (64, 64), mode)
        write_jpegs(folder / "val" / "images", 4, (64, 64), mode, prefix=f"{wnid}_")
    lines = [f"{wnid}_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n" for wnid in ("n02", "n01") for i in range(4)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\n")
    return folder


def write_png(path: Path, pixels: np.ndarray, size: tuple[int, int] | None = None, text: bytes = b"") -> None:
    """RGB of 16 bits, uint16 (H, W, 3), which Pillow does not write; its header may claim another `size`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = b"".join(n.to_bytes(4, "big") for n in size or pixels.shape[1::-1]) + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header), chunk(b"zTXt", b"k\0\0" + zlib.compress(text)), chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))


@pytest.fixture
def miniatures(monkeypatch):
    """The tiny files are all that was published."""
    arrays = dict.fromkeys(("mnist", "fashion-mnist"), ((100, 28, 28), (20, 28, 28)))
    monkeypatch.setattr(sources, "PUBLISHED", arrays | {"imagenette": ((20,), (6,)), "tiny-imagenet": ((20,), (8,))})


def sizes(dataset) -> list[int]:
    return [len(split) for split in (dataset.train, dataset.val, dataset.test)]


def refused(name: str, root: Path, sentence: str, **options) -> None:
    with pytest.raises(InputError, match=sentence):
        load_dataset(name, root=root, **options)


def test_mnist(tmp_path, monkeypatch, miniatures):
    raw = fake_mnist(tmp_path)
    refused("mnist", tmp_path, r"train-images-idx3-ubyte' is corrupted: its MD5.*--download")
    monkeypatch.setattr(sources, "MNIST_MD5", {})
    ds = load_dataset("mnist", root=tmp_path)
    assert sizes(ds) == [80, 20, 20]
    assert torch.equal(ds.test.images, random_images(20, 1, 28))
    assert (ds.image_shape, ds.class_names) == ((1, 28, 28), tuple("0123456789"))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(20) % 13)
    refused("mnist", tmp_path, "Label 10 of example 10 in the test split of mnist is out of range.*0 to 9")
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-99])
    refused("mnist", tmp_path, "is corrupted: it does not hold readable idx files")


def test_fashion_mnist(tmp_path, monkeypatch, miniatures):
    raw = fake_mnist(tmp_path, "FashionMNIST")
    for path in list(raw.iterdir()):  # as a download leaves them
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    assert load_dataset("fashion-mnist").class_names[9] == "Ankle boot"
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"x")
    refused("fashion-mnist", tmp_path, r"t10k-images-idx3-ubyte' is corrupted: its CRC-32 is not")


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        (
            "fashion-mnist",
            lambda root: fake_mnist(root, "FashionMNIST"),
            r"3-ubyte' .* 100 x 28 .* one 60000 x 28 x 28",
        ),
        (
            "imagenette",
            lambda root: fake_imagenette(root / "imagenette2-320"),
            "320/train' .* 20 images.* 9469 .*2-mine",
        ),
        ("imagenette", lambda root: fake_imagenette(root / "imagenette2"), "imagenette2/train' .* 20 images.* 9469"),
        ("tiny-imagenet", fake_tiny, "train' .* 20 images, the published one 100000.*--download"),
    ],
)
def test_known_data_sets_have_as_many_images_as_published(tmp_path, name, make, said):
    make(tmp_path)
    refused(name, tmp_path, rf"The f.* '.*{said}")
    tests = [shapes[1][0] for shapes in sources.PUBLISHED.values()]
    assert tests == [10_000, 10_000, 3925, 10_000]


@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("t10k-labels-idx1-ubyte", (15,)),
        ("train-labels-idx1-ubyte", (101,)),
        ("train-images-idx3-ubyte", (100, 27, 28)),
        ("t10k-images-idx3-ubyte", (600, 28, 28)),
    ],
)
def test_idx_files_that_do_not_belong_together_are_named(tmp_path, miniatures, file, shape):
    raw = fake_mnist(tmp_path, "FashionMNIST")
    write_idx(raw / file, np.zeros(shape))
    refused(
        "fashion-mnist", tmp_path, rf"{file}' is corrupted: it holds {' x '.join(map(str, shape))} .*, the published"
    )


@pytest.mark.parametrize(("classes", "n", "parts"), [(10, 100, [400, 100, 100]), (100, 600, [480, 120, 600])])
def test_cifar(tmp_path, monkeypatch, classes, n, parts):
    fake_cifar(monkeypatch, tmp_path, classes, n)
    ds = load_dataset(f"cifar{classes}", root=tmp_path)
    facts = (sizes(ds), ds.num_classes, ds.class_names[1], ds.threat)
    assert facts == (parts, classes, "class 1", Threat("linf", 8 / 255))
    # channel, row, column survive the loader's detour over (N, H, W, C)
    first = ds.train.indices < n
    assert torch.equal(ds.train.images[first], random_images(n, seed=0)[ds.train.indices[first]])


def test_corrupted_and_absent_files_of_cifar_and_the_nearest_data_set_are_named(tmp_path, monkeypatch):
    refused("CIFAR_1O", "", r"Unknown dataset 'CIFAR_1O'.*Did you mean 'cifar10'")
    folder = fake_cifar(monkeypatch, tmp_path)
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-10])
    refused("cifar10", tmp_path, r"data_batch_3' is corrupted: its MD5 sum is .* Delete it .* --download")
    (folder / "test_batch").unlink()
    refused("cifar10", tmp_path, r"looked for cifar-10-batches-py/test_batch\).*--data-root.*--download")


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def refuse(self):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", refuse)
    sentence = r"Could not download 'cifar10' to .*no route to host.*Check the network"
    refused("cifar10", tmp_path / "new", sentence, download=True)


@pytest.mark.parametrize("folder", ["imagenette2-160", "imagenette2-mine", "."])
def test_imagenette_layouts(tmp_path, folder, request):
    fake_imagenette(tmp_path / folder)
    if folder == "imagenette2-160":  # the others may hold a choice
        request.getfixturevalue("miniatures")
    ds = load_dataset("imagenette", root=tmp_path)
    assert (ds.image_shape, ds.class_names, sizes(ds)) == ((3, 160, 160), ("tench", "church"), [16, 4, 6])
    assert ds.test.images[0].float().mean((1, 2)).tolist() == pytest.approx((200, 0, 10), abs=3)


def test_imagenette_is_downloaded_and_its_published_folder_preferred(tmp_path, monkeypatch):
    folder = tmp_path / "imagenette2-160"

    def fetch(root, split, size, download):
        assert (size, download) == ("160px", True)
        fake_imagenette(folder)

    monkeypatch.setattr("torchvision.datasets.Imagenette", fetch)
    monkeypatch.setitem(sources.PUBLISHED, "imagenette", ((20,), (6,)))
    assert load_dataset("imagenette", root=tmp_path, download=True).num_classes == 2
    write_jpegs(folder / "train" / "n09999999", 10, (160, 160))
    fake_imagenette(tmp_path / "imagenette2-160-mini")
    refused("imagenette", tmp_path, r"val/n09999999' holds no images")
    write_jpegs(folder / "val" / "n09999999", 2, (160, 160))
    refused("imagenette", tmp_path, r"imagenette2-160/train' is corrupted: it holds 30 images")
    monkeypatch.setitem(sources.PUBLISHED, "imagenette", ((30,), (8,)))
    assert load_dataset("imagenette", root=tmp_path).class_names == ("tench", "church", "n09999999")
    damaged = folder / "train" / "n03028079" / "4.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:200])
    refused("imagenette", tmp_path, r"n03028079/4.JPEG' is corrupted")
    write_jpegs(folder / "val" / "n00000001", 2, (160, 160))
    refused("imagenette", tmp_path, r"val/n00000001' is of a class that train/ lacks")


LEVELS = np.arange(64).reshape(8, 8) * 1040  # of 16 bits: 0 to 65520


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 0), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("P", 3, (1, 2, 3)),
        ("I;16", LEVELS, np.rint(LEVELS / 257)),
    ],
)
def test_images_of_every_mode_become_rgb(tmp_path, mode, colour, shown):
    image = Image.fromarray(colour.astype(np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([0] * 9 + [1, 2, 3])
    image.save(tmp_path / "x.png", **({"transparency": b"\0\1\2\3"} if mode == "P" else {}))
    assert image.mode == mode
    got = sources.decode(tmp_path / "x.png", 8).transpose(1, 2, 0)
    assert np.array_equal(got, np.broadcast_to(shown if mode != "I;16" else shown[..., None], (8, 8, 3)))


FEW = np.zeros((8, 8, 3), np.uint16)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: write_png(path, FEW), "16 bits a colour, .* save it with 8"),
        (lambda path: write_png(path, FEW, size=(10_000, 10_000)), "100000000 pixels"),  # of which Pillow only warns
        (lambda path: write_png(path, FEW, size=(50_000, 50_000)), "2500000000 pixels"),
        (lambda path: write_png(path, FEW, text=bytes(2 * 10**6)), "Decompressed data too large"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), "cannot identify"),
        (lambda path: path.write_bytes(b""), "cannot identify"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
def test_images_of_no_use_are_named(tmp_path, write, said):
    fake_imagenette(tmp_path, (20, 20))
    bad = tmp_path / "train" / "n01440764" / "x.png"
    write(bad)
    refused("imagenette", tmp_path, rf"{bad.name}' is corrupted or unsafe \(.*{said}.*--download")


def test_tiny_imagenet(tmp_path, monkeypatch, miniatures):
    def fetch(url, root, md5):
        assert md5 == "90528d7ca1a48142e341f4ef8d21d0de"
        fake_tiny(Path(root))

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    ds = load_dataset("tiny-imagenet", root=tmp_path, download=True)
    assert (ds.image_shape, ds.class_names, sizes(ds)) == ((3, 64, 64), ("goldfish", "n02"), [16, 4, 8])
    assert ds.test.labels.tolist() == [0] * 4 + [1] * 4
    gray = ds.test.images[3]
    assert torch.equal(gray[0], gray[2])  # one channel becomes RGB
    assert gray.float().mean() == pytest.approx(60, abs=2)
    with (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").open("a") as file:
        file.write("x.JPEG\tn77\t0\n")
    refused("tiny-imagenet", tmp_path, r"line 9 of .*names the class 'n77'")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines, root: [], "val_annotations.txt' is corrupted: it holds 0 images, the published one 8"),
        (lambda lines, root: lines[1:], "it holds 7 images"),
        (
            lambda lines, root: ["../../secret.JPEG\tn02", *lines[1:]],
            r"line 1 of .* names '../../secret.JPEG', which is no",
        ),
        (
            lambda lines, root: [*lines[1:], f"{root}/secret.JPEG\tn02"],
            r"line 8 of .* names '/.*secret.JPEG', which is no",
        ),
        (lambda lines, root: [*lines[1:], lines[2]], r"line 8 of .* names 'n02_2.JPEG' again"),
        (
            lambda lines, root: [*lines[1:], "\xff.JPEG\tn02"],
            r"val/images/.*.JPEG' is corrupted or unsafe .*No such file",
        ),
        (lambda lines, root: [*lines[1:], "\tn02"], r"val/images' is corrupted or unsafe .*Is a directory"),
    ],
)
def test_annotations_of_tiny_imagenet_name_all_its_images_and_no_others(tmp_path, miniatures, change, said):
    folder = fake_tiny(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.JPEG")  # beside the data set: readable, and not its
    annotations = folder / "val" / "val_annotations.txt"
    lines = change(annotations.read_text().splitlines(), tmp_path)
    annotations.write_text("\n".join(lines), encoding="latin-1")
    refused("tiny-imagenet", tmp_path, said)


@pytest.mark.parametrize("name", sorted(name for name, source in DATASETS.items() if not source.embedded))
def test_a_missing_data_root_comes_with_its_remedy(name, tmp_path):
    remedy = ".*--data-root.*ROBUSTLIB_DATA.*--download"
    refused(name, "", f"No data root for '{name}'{remedy}")
    refused(name, tmp_path / "nowhere", f"nowhere' is not a directory{remedy}")
    refused(name, tmp_path, f"No data set '{name}' in the data root {remedy}")


def test_unknown_data_set_names_end_in_a_sentence():
    for name in ("digits-0-1000000000", f"digits-{'0' * 300}-4", "digits" + "-0-1" * 99):
        refused(name, "", "Unknown dataset 'digits")
    refused("digits", 5, "data root=5: give")
