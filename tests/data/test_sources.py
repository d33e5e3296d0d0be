"""Readers of published layouts, imitated by tiny files; nothing touches the network."""

import gzip
import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from robustlib.data import DATASETS, load_dataset, sources
from robustlib.errors import InputError
from robustlib.threat import Threat
from tests.data.conftest import random_images


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
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
    make = torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100
    folder = root / make.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    batches = [*make.train_list, *make.test_list]
    contents = {}
    for number, (file, _) in enumerate(batches):
        data = random_images(n, seed=number).flatten(1).numpy()
        contents[file] = {"data": data, key: [i % classes for i in range(n)]}
    contents[make.meta["filename"]] = {make.meta["key"]: [f"class {i}" for i in range(classes)]}
    sums = {}
    for file, content in contents.items():
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(make, "train_list", [[file, sums[file]] for file, _ in make.train_list])
    monkeypatch.setattr(make, "test_list", [[file, sums[file]] for file, _ in make.test_list])
    monkeypatch.setattr(make, "meta", {**make.meta, "md5": sums[make.meta["filename"]]})
    return folder


def write_jpegs(folder: Path, n: int, size: tuple[int, int], mode="RGB", prefix="") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new(mode, size, 20 * i if mode == "L" else (200, 20 * i, 10)).save(folder / f"{prefix}{i}.JPEG")


def fake_imagenette(folder: Path, size=(200, 170)) -> Path:
    for wnid in ("n01440764", "n03028079"):
        write_jpegs(folder / "train" / wnid, 10, size)
        write_jpegs(folder / "val" / wnid, 3, size)
    return folder


def fake_tiny(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    lines = []
    for wnid, mode in (("n02", "RGB"), ("n01", "L")):
        write_jpegs(folder / "train" / wnid / "images", 10, (64, 64), mode)
        write_jpegs(folder / "val" / "images", 4, (64, 64), mode, prefix=f"{wnid}_")
        lines += [f"{wnid}_{i}.JPEG\t{wnid}\t0\t0\t9\t9" for i in range(4)]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\n")
    return folder


def test_mnist_layout(tmp_path, monkeypatch):
    fake_mnist(tmp_path)
    monkeypatch.setattr(sources, "MNIST_MD5", {})
    ds = load_dataset("mnist", root=tmp_path)
    assert [len(split) for split in (ds.train, ds.val, ds.test)] == [80, 20, 20]
    assert torch.equal(ds.test.images, random_images(20, 1, 28))
    assert (ds.image_shape, ds.class_names) == ((1, 28, 28), tuple("0123456789"))


def test_fashion_mnist_layout(tmp_path, monkeypatch):
    raw = fake_mnist(tmp_path, "FashionMNIST")
    for path in list(raw.iterdir()):  # as a download leaves them
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    assert load_dataset("fashion-mnist").class_names[9] == "Ankle boot"
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte' is corrupted: its CRC-32 is not"):
        load_dataset("fashion-mnist")


def test_mnist_files_that_are_not_as_published(tmp_path, monkeypatch):
    raw = fake_mnist(tmp_path)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte' is corrupted: its MD5.*--download"):
        load_dataset("mnist", root=tmp_path)
    monkeypatch.setattr(sources, "MNIST_MD5", {})
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(20) % 13)
    with pytest.raises(InputError, match=r"Label 10 of example 10 in the test split of mnist is out of range.*0 to 9"):
        load_dataset("mnist", root=tmp_path)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-99])
    with pytest.raises(InputError, match="is corrupted: it does not hold readable idx files"):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "classes", "sizes"), [("cifar10", 10, (400, 100, 100)), ("cifar100", 100, (480, 120, 600))]
)
def test_cifar_layout(tmp_path, monkeypatch, name, classes, sizes):
    fake_cifar(monkeypatch, tmp_path, classes, n=100 if classes == 10 else 600)
    ds = load_dataset(name, root=tmp_path)
    assert (tuple(len(split) for split in (ds.train, ds.val, ds.test)), ds.num_classes) == (sizes, classes)
    assert (ds.class_names[1], ds.threat) == ("class 1", Threat("linf", 8 / 255))
    # channel, row, column survive the loader's detour over (N, H, W, C)
    first_batch = random_images(100 if classes == 10 else 600, seed=0)
    here = ds.train.indices < len(first_batch)
    assert torch.equal(ds.train.images[here], first_batch[ds.train.indices[here]])


def test_corrupted_and_absent_files_of_cifar_are_named(tmp_path, monkeypatch):
    folder = fake_cifar(monkeypatch, tmp_path)
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"data_batch_3' is corrupted: its MD5 sum is .* Delete it .* --download"):
        load_dataset("cifar10", root=tmp_path)
    (folder / "test_batch").unlink()
    with pytest.raises(InputError, match=r"looked for cifar-10-batches-py/test_batch\).*--data-root.*--download"):
        load_dataset("cifar10", root=tmp_path)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def refuse(self):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)
    with pytest.raises(InputError, match=r"Could not download 'cifar10' to .*no route to host.*Check the network"):
        load_dataset("cifar10", root=tmp_path / "new", download=True)


@pytest.mark.parametrize("folder", ["imagenette2-160", "imagenette2-mine", "."])
def test_imagenette_layouts(tmp_path, folder):
    fake_imagenette(tmp_path / folder)
    ds = load_dataset("imagenette", root=tmp_path)
    assert (ds.image_shape, ds.class_names) == ((3, 160, 160), ("tench", "church"))
    assert [len(split) for split in (ds.train, ds.val, ds.test)] == [16, 4, 6]
    assert ds.test.images[0].float().mean((1, 2)).tolist() == pytest.approx((200, 0, 10), abs=3)


def test_imagenette_is_downloaded_and_its_published_folder_preferred(tmp_path, monkeypatch):
    def fetch(root, split, size, download):
        assert (size, download) == ("160px", True)
        fake_imagenette(Path(root) / "imagenette2-160")

    monkeypatch.setattr(torchvision.datasets, "Imagenette", fetch)
    assert load_dataset("imagenette", root=tmp_path, download=True).num_classes == 2
    write_jpegs(tmp_path / "imagenette2-160" / "train" / "n09999999", 10, (160, 160))
    fake_imagenette(tmp_path / "imagenette2-160-mini")
    with pytest.raises(InputError, match=r"val/n09999999' holds no images"):
        load_dataset("imagenette", root=tmp_path)
    write_jpegs(tmp_path / "imagenette2-160" / "val" / "n09999999", 2, (160, 160))
    assert load_dataset("imagenette", root=tmp_path).class_names == ("tench", "church", "n09999999")
    broken = tmp_path / "imagenette2-160" / "train" / "n03028079" / "4.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match=r"n03028079/4.JPEG' is corrupted"):
        load_dataset("imagenette", root=tmp_path)


def test_tiny_imagenet_layout(tmp_path):
    fake_tiny(tmp_path)
    ds = load_dataset("tiny-imagenet", root=tmp_path)
    assert (ds.image_shape, ds.class_names) == ((3, 64, 64), ("goldfish", "n02"))
    assert [len(split) for split in (ds.train, ds.val, ds.test)] == [16, 4, 8]
    assert ds.test.labels.tolist() == [0] * 4 + [1] * 4
    gray = ds.test.images[3]
    assert torch.equal(gray[0], gray[2])  # one channel becomes RGB
    assert gray.float().mean() == pytest.approx(60, abs=2)


def test_tiny_imagenet_with_a_foreign_annotation(tmp_path):
    annotations = fake_tiny(tmp_path) / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + "x.JPEG\tn77\t0\n")
    with pytest.raises(InputError, match=r"Line 9 of .*names the class 'n77'"):
        load_dataset("tiny-imagenet", root=tmp_path)


def test_tiny_imagenet_is_downloaded_with_its_checksum(tmp_path, monkeypatch):
    def fetch(url, root, md5):
        assert md5 == "90528d7ca1a48142e341f4ef8d21d0de"
        fake_tiny(Path(root))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    assert load_dataset("tiny-imagenet", root=tmp_path, download=True).num_classes == 2


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(InputError, match=r"Unknown dataset 'cifar_1O'.*Did you mean 'cifar10'"):
        load_dataset("cifar_1O")


@pytest.mark.parametrize("name", sorted(name for name, source in DATASETS.items() if not source.embedded))
def test_a_missing_data_root_comes_with_its_remedy(name, tmp_path):
    for root, said in (
        ("", f"No data root for '{name}'"),
        (tmp_path / "nowhere", "nowhere' is not a directory"),
        (tmp_path, f"No data set '{name}' in the data root "),
    ):
        with pytest.raises(InputError, match=rf"{said}.*--data-root.*ROBUSTLIB_DATA.*--download"):
            load_dataset(name, root=root)
