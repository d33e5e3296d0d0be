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


def sizes(dataset) -> list[int]:
    return [len(split) for split in (dataset.train, dataset.val, dataset.test)]


def refused(name: str, root: Path, sentence: str, **options) -> None:
    with pytest.raises(InputError, match=sentence):
        load_dataset(name, root=root, **options)


def test_mnist(tmp_path, monkeypatch):
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


def test_fashion_mnist(tmp_path, monkeypatch):
    raw = fake_mnist(tmp_path, "FashionMNIST")
    for path in list(raw.iterdir()):  # as a download leaves them
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    assert load_dataset("fashion-mnist").class_names[9] == "Ankle boot"
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"x")
    refused("fashion-mnist", tmp_path, r"t10k-images-idx3-ubyte' is corrupted: its CRC-32 is not")


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

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)
    sentence = r"Could not download 'cifar10' to .*no route to host.*Check the network"
    refused("cifar10", tmp_path / "new", sentence, download=True)


@pytest.mark.parametrize("folder", ["imagenette2-160", "imagenette2-mine", "."])
def test_imagenette_layouts(tmp_path, folder):
    fake_imagenette(tmp_path / folder)
    ds = load_dataset("imagenette", root=tmp_path)
    assert (ds.image_shape, ds.class_names, sizes(ds)) == ((3, 160, 160), ("tench", "church"), [16, 4, 6])
    assert ds.test.images[0].float().mean((1, 2)).tolist() == pytest.approx((200, 0, 10), abs=3)


def test_imagenette_is_downloaded_and_its_published_folder_preferred(tmp_path, monkeypatch):
    folder = tmp_path / "imagenette2-160"

    def fetch(root, split, size, download):
        assert (size, download) == ("160px", True)
        fake_imagenette(folder)

    monkeypatch.setattr(torchvision.datasets, "Imagenette", fetch)
    assert load_dataset("imagenette", root=tmp_path, download=True).num_classes == 2
    write_jpegs(folder / "train" / "n09999999", 10, (160, 160))
    fake_imagenette(tmp_path / "imagenette2-160-mini")
    refused("imagenette", tmp_path, r"val/n09999999' holds no images")
    write_jpegs(folder / "val" / "n09999999", 2, (160, 160))
    assert load_dataset("imagenette", root=tmp_path).class_names == ("tench", "church", "n09999999")
    damaged = folder / "train" / "n03028079" / "4.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:200])
    refused("imagenette", tmp_path, r"n03028079/4.JPEG' is corrupted")


def test_tiny_imagenet(tmp_path, monkeypatch):
    def fetch(url, root, md5):
        assert md5 == "90528d7ca1a48142e341f4ef8d21d0de"
        fake_tiny(Path(root))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    ds = load_dataset("tiny-imagenet", root=tmp_path, download=True)
    assert (ds.image_shape, ds.class_names, sizes(ds)) == ((3, 64, 64), ("goldfish", "n02"), [16, 4, 8])
    assert ds.test.labels.tolist() == [0] * 4 + [1] * 4
    gray = ds.test.images[3]
    assert torch.equal(gray[0], gray[2])  # one channel becomes RGB
    assert gray.float().mean() == pytest.approx(60, abs=2)
    with (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").open("a") as file:
        file.write("x.JPEG\tn77\t0\n")
    refused("tiny-imagenet", tmp_path, r"Line 9 of .*names the class 'n77'")


@pytest.mark.parametrize("name", sorted(name for name, source in DATASETS.items() if not source.embedded))
def test_a_missing_data_root_comes_with_its_remedy(name, tmp_path):
    remedy = ".*--data-root.*ROBUSTLIB_DATA.*--download"
    refused(name, "", f"No data root for '{name}'{remedy}")
    refused(name, tmp_path / "nowhere", f"nowhere' is not a directory{remedy}")
    refused(name, tmp_path, f"No data set '{name}' in the data root {remedy}")
