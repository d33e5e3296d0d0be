"""Data sets, splits, batches and views. Published layouts are imitated by tiny files; nothing touches the network."""

import colorsys
import gzip
import hashlib
import itertools
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from robustlib.data import DATASETS, VIEWS, Dataset, Policy, Split, load_dataset, sources
from robustlib.data.augmentation import crop_and_flip, resized_crop, shift_hue
from robustlib.data.dataset import channel_stats, hold_out
from robustlib.errors import InputError
from robustlib.threat import Threat


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    monkeypatch.delenv("ROBUSTLIB_DATA", raising=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n=64, channels=3, size=32, seed=0) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator(seed))


# --- data sets ---------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all(digits):
    assert [len(split) for split in (digits.train, digits.val, digits.test)] == [1041, 256, 500]
    assert digits.image_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.threat == Threat("linf", 0.2)
    everything = torch.cat([digits.train.indices, digits.val.indices, digits.test.indices])
    assert sorted(everything.tolist()) == list(range(1797))
    # the published numbers hold for these very splits
    digest = hashlib.sha256(everything.numpy().tobytes()).hexdigest()
    assert digest == "10e647155d28c2ae04e1fbcde92350edf7157b5f0fbe9ac48d5dfd176e6d717e"


def test_indices_point_into_the_original_files(digits):
    original, labels = sources.digits(Path(), False).train
    shares = []
    for split in (digits.train, digits.val, digits.test):
        assert torch.equal(split.images, torch.from_numpy(original)[split.indices])
        assert torch.equal(split.labels, torch.from_numpy(labels)[split.indices])
        shares.append(split.labels.bincount() / len(split))
    assert all((share - shares[0]).abs().max() < 0.005 for share in shares[1:]), "stratified"
    assert digits.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]


def coordinates(split: Split, reach: float) -> np.ndarray:
    """The points (N, 2) that images of a toy show."""
    return (split.images[:, 0, 0].double().numpy() / 127.5 - 1) * reach


def test_xor_is_four_clouds_of_two_classes():
    toy = load_dataset("xor")
    assert [len(split) for split in (toy.train, toy.val, toy.test)] == [80, 20, 800]
    assert (toy.image_shape, toy.num_classes, toy.threat) == ((1, 1, 2), 2, Threat("l2", 0.1))
    points, labels = coordinates(toy.test, 2.0), toy.test.labels.numpy()
    train = np.sign(coordinates(toy.train, 2.0))
    for corner in itertools.product((-1, 1), repeat=2):
        near = (np.sign(points) == corner).all(1)
        assert np.abs(points[near].mean(0) - corner).max() < 0.06
        assert np.abs(points[near].std(0) - 0.2).max() < 0.04
        assert set(labels[near]) == {int(corner[0] != corner[1])}
        assert (train == corner).all(1).sum() >= 17


def test_the_sinusoid_lies_between_its_classes():
    toy = load_dataset("sinusoid")
    assert [len(split) for split in (toy.train, toy.val, toy.test)] == [800, 200, 800]
    for split in (toy.train, toy.val, toy.test):
        points = coordinates(split, 1.0)
        above = [int(b > 0.6 * np.sin(7 * a - 1)) for a, b in points]
        assert split.labels.tolist() == above
    assert 0.4 < toy.train.labels.double().mean() < 0.6
    assert np.abs(np.histogram2d(*coordinates(toy.test, 1.0).T, 4)[0] - 50).max() < 30, "uniform"
    assert torch.equal(toy.test.images, load_dataset("sinusoid").test.images)


def test_a_subset_is_stratified_seeded_and_leaves_the_rest(digits):
    small, again = digits.subset(200), digits.subset(200)
    assert len(small.train) == 200
    assert torch.equal(small.train.indices, again.train.indices)
    assert small.train.labels.bincount().min() >= 19
    assert small.test is digits.test
    assert small.mean == digits.mean
    assert digits.subset(10**6) is digits
    with pytest.raises(InputError, match="subset of 3 examples cannot hold all 10 classes"):
        digits.subset(3)


@pytest.mark.parametrize("held", [5, 700])
def test_hold_out_moves_the_rest_up_without_a_copy(held):
    images = random_images(3000, 1, 2).numpy()
    labels = np.arange(3000) % 5
    original = images.copy()
    (rest, rest_labels, at), (out, out_labels, out_at) = hold_out(images, labels, held)
    assert np.shares_memory(rest, images)
    assert np.array_equal(rest, original[at])
    assert np.array_equal(out, original[out_at])
    assert np.array_equal(rest_labels, labels[at])
    assert np.array_equal(out_labels, labels[out_at])
    assert sorted([*at, *out_at]) == list(range(3000))


def test_channel_statistics_are_exact():
    images = random_images(50, 3, 40).numpy()
    mean, std = channel_stats(images)
    assert mean == pytest.approx(images.mean((0, 2, 3)) / 255, abs=1e-12)
    assert std == pytest.approx(images.std((0, 2, 3)) / 255, abs=1e-9)
    assert channel_stats(np.full((4, 1, 2, 2), 7, np.uint8))[1][0] > 0


def test_a_split_refuses_what_does_not_belong_together(digits):
    images, labels, indices = digits.val.images, digits.val.labels, digits.val.indices
    with pytest.raises(InputError, match=r"uint8 \(N, C, H, W\), not torch.float32"):
        Split(images.float(), labels, indices)
    with pytest.raises(InputError, match=r"not torch.int32"):
        Split(images, labels.int(), indices)
    with pytest.raises(InputError, match="256 images, 255 labels"):
        Split(images, labels[:-1], indices)
    other = Split(images.expand(-1, 3, -1, -1), labels, indices)
    with pytest.raises(InputError, match=r"shape \(3, 8, 8\), its training images \(1, 8, 8\)"):
        Dataset("x", digits.train, other, digits.test, digits.class_names, (0.5,), (0.5,), digits.threat)


# --- published layouts ----------------------------------------------------------------------------------------------


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
    assert ds.image_shape == (1, 28, 28)
    assert ds.class_names == tuple("0123456789")


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
    assert tuple(len(split) for split in (ds.train, ds.val, ds.test)) == sizes
    assert ds.num_classes == classes
    assert ds.class_names[1] == "class 1"
    assert ds.threat == Threat("linf", 8 / 255)
    # channel, row, column survive the loader's detour over (N, H, W, C)
    first_batch = random_images(100 if classes == 10 else 600, seed=0)
    here = ds.train.indices < len(first_batch)
    assert torch.equal(ds.train.images[here], first_batch[ds.train.indices[here]])


def test_corrupted_cifar_names_the_file(tmp_path, monkeypatch):
    folder = fake_cifar(monkeypatch, tmp_path)
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"data_batch_3' is corrupted: its MD5 sum is .* Delete it .* --download"):
        load_dataset("cifar10", root=tmp_path)


def test_an_incomplete_data_set_names_what_is_absent(tmp_path, monkeypatch):
    folder = fake_cifar(monkeypatch, tmp_path)
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
    assert ds.image_shape == (3, 160, 160)
    assert ds.class_names == ("tench", "church")
    assert [len(split) for split in (ds.train, ds.val, ds.test)] == [16, 4, 6]
    red, green, blue = ds.test.images[0].float().mean((1, 2)).tolist()
    assert red == pytest.approx(200, abs=3)
    assert (green, blue) == pytest.approx((0, 10), abs=3)


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
    assert ds.image_shape == (3, 64, 64)
    assert ds.class_names == ("goldfish", "n02")
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
    remedies = r"--data-root.*ROBUSTLIB_DATA.*--download"
    with pytest.raises(InputError, match=f"No data root for '{name}'.*{remedies}"):
        load_dataset(name, root="")
    with pytest.raises(InputError, match=f"nowhere' is not a directory.*{remedies}"):
        load_dataset(name, root=tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"No data set '{name}' in the data root .*{remedies}"):
        load_dataset(name, root=tmp_path)


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_serve_every_example_once(digits):
    for shuffle in (False, True):
        batches = list(digits.val.batches(100, shuffle=shuffle, generator=generator()))
        assert [len(batch) for batch in batches] == [100, 100, 56]
        index = torch.cat([batch.index for batch in batches])
        assert torch.equal(index.sort().values, digits.val.indices.sort().values)
        assert torch.equal(index, digits.val.indices) is not shuffle
    assert [len(batch) for batch in digits.val.batches(100, drop_last=True)] == [100, 100]


def test_a_batch_keeps_image_label_and_index_together(digits):
    batch = next(digits.val.batches(50, shuffle=True, generator=generator()))
    at = torch.searchsorted(digits.val.indices, batch.index)
    assert torch.equal(batch.images, digits.val.images[at])
    assert torch.equal(batch.y, digits.val.labels[at])
    assert torch.equal(batch.x, batch.view("none"))


def test_batches_repeat_with_their_seed(digits):
    def draw(seed):
        return [batch.x for batch in digits.val.batches(64, shuffle=True, augment="weak", generator=generator(seed))]

    assert all(map(torch.equal, draw(1), draw(1)))
    assert not all(map(torch.equal, draw(1), draw(2)))


def test_x_is_drawn_once_and_views_anew(digits):
    batch = next(digits.val.batches(64, augment="weak", generator=generator()))
    assert batch.x is batch.x
    assert not torch.equal(batch.x, batch.view("weak"))
    assert not torch.equal(batch.view("weak"), batch.view("weak"))


def test_select_takes_positions_and_masks(digits):
    few = digits.test.select(torch.tensor([5, 3]))
    assert torch.equal(few.indices, digits.test.indices[[5, 3]])
    threes = digits.test.select(digits.test.labels == 3)
    assert set(threes.labels.tolist()) == {3}
    assert threes.policy == digits.test.policy
    assert len(digits.test.to("cpu")) == 500


def test_batches_refuse_bad_arguments_at_once(digits):
    with pytest.raises(InputError, match="batch_size=0 holds no example"):
        digits.val.batches(0)
    with pytest.raises(InputError, match=r"Unknown view 'simclr_week'.*Did you mean 'simclr-weak'"):
        digits.val.batches(4, augment="simclr_week")
    with pytest.raises(InputError, match="Unknown view"):
        next(digits.val.batches(4)).view("strong")


# --- views ----------------------------------------------------------------------------------------------------------


def test_the_plain_view_is_exact():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = VIEWS["none"](images, Policy(), None)
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.arange(256) / 255)
    assert torch.equal((x * 255).round().to(torch.uint8), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_seeded_and_stay_in_the_box(name, channels):
    images, policy = random_images(channels=channels), Policy(pad=4, flip=True)
    images[0], images[1] = 0, 255
    x, again, other = (VIEWS[name](images, policy, generator(seed)) for seed in (0, 0, 1))
    assert x.shape == images.shape
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1
    assert not x.isnan().any()
    assert torch.equal(x, again)
    assert torch.equal(x, other) is (name == "none")


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_example_has_parameters_of_its_own(name, channels):
    images = random_images(1, channels).expand(64, -1, -1, -1)
    x = VIEWS[name](images, Policy(pad=4, flip=True), generator())
    distinct = {example.numpy().tobytes() for example in x}
    assert len(distinct) > 40


def shifts(image: torch.Tensor, pad: int) -> dict[bytes, tuple[int, int]]:
    """All shifts of an image (1, H, W) by at most `pad`, with what they are."""
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image, [pad] * 4)
    offsets = [(dy, dx) for dy in range(2 * pad + 1) for dx in range(2 * pad + 1)]
    return {padded[:, dy : dy + height, dx : dx + width].numpy().tobytes(): (dy, dx) for dy, dx in offsets}


def test_digits_move_by_at_most_one_pixel(digits):
    assert digits.train.policy == Policy(pad=1, flip=False)
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    moved = crop_and_flip(image.expand(500, 1, 8, 8), digits.train.policy, generator())
    allowed = shifts(image, 1)
    assert {allowed[one.numpy().tobytes()] for one in moved} == set(allowed.values())  # all nine, and no other


def test_crops_reach_every_offset_and_half_are_mirrored():
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) + 1
    moved = crop_and_flip(image.expand(4000, 1, 8, 8), Policy(pad=2, flip=True), generator())
    straight, mirrored = shifts(image, 2), shifts(image.flip(2), 2)
    keys = [one.numpy().tobytes() for one in moved]
    assert {straight[k] for k in keys if k in straight} == set(straight.values())
    assert {mirrored[k] for k in keys if k in mirrored} == set(mirrored.values())
    assert np.mean([k in mirrored for k in keys]) == pytest.approx(0.5, abs=0.03)


def test_resized_crops_keep_a_fifth_to_all_of_the_area():
    rows = torch.linspace(0, 1, 64).view(1, 1, 64, 1).expand(2000, 1, 64, 64)
    columns = rows.transpose(2, 3)
    x = resized_crop(torch.cat([rows, columns], 1), Policy(), generator())
    height = (x[:, 0].amax((1, 2)) - x[:, 0].amin((1, 2))) * 64 / 63
    width = (x[:, 1].amax((1, 2)) - x[:, 1].amin((1, 2))) * 64 / 63
    area = height * width
    assert area.min() > 0.15
    assert area.max() <= 1.05
    assert area.mean() == pytest.approx(0.58, abs=0.04)  # 0.6, less what is cut at the border
    assert x[:, 0].amin((1, 2)).std() > 0.05  # the crop's place varies too
    assert bool((x[:, 1, 32].diff() >= 0).all())
    flipped = resized_crop(columns, Policy(flip=True), generator())[:, 0, 32]
    assert (flipped[:, -1] > flipped[:, 0]).float().mean() == pytest.approx(0.5, abs=0.06)


def test_hue_moves_as_in_the_standard_library():
    pixels = torch.rand(1, 3, 20, 20, generator=generator())
    pixels[..., 0, :3] = torch.tensor([[[0.0, 1, 0.5]]])  # black, white, grey
    moved = shift_hue(pixels, torch.full((1, 1, 1, 1), 0.07))
    for pixel, got in zip(pixels[0].flatten(1).T.tolist(), moved[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert got == pytest.approx(colorsys.hsv_to_rgb((hue + 0.07) % 1, saturation, value), abs=1e-5)


def test_simclr_turns_a_fifth_grey_and_jitters_most():
    images = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8)
    images[:, 0], images[:, 1], images[:, 2] = 150, 100, 60
    x = VIEWS["simclr"](images, Policy(), generator())
    gray = (x[:, 0] == x[:, 2]).flatten(1).all(1)
    assert gray.float().mean() == pytest.approx(0.2, abs=0.03)
    untouched = ((x - images / 255).abs().amax((1, 2, 3)) < 1e-3) & ~gray
    assert untouched.float().mean() == pytest.approx(0.16, abs=0.03)  # (1 - 0.8) of those that keep their colour


def test_one_channel_views_change_contrast_and_add_noise():
    images = torch.full((500, 1, 8, 8), 120, dtype=torch.uint8)
    images[:, :, :, 4:] = 160
    x = VIEWS["simclr"](images, Policy(), generator())
    contrast = (x[..., 4:].mean((1, 2, 3)) - x[..., :4].mean((1, 2, 3))) / (40 / 255)
    assert contrast.quantile(0.01) > 0.45
    assert contrast.quantile(0.99) < 1.55
    assert contrast.std() == pytest.approx(0.8 / 12**0.5, abs=0.05)
    assert x[..., :4].std((1, 2, 3)).mean() == pytest.approx(0.05, abs=0.005)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_drawn_on_the_gpu(digits, name):
    for split in (digits.val, Split(random_images(256), digits.val.labels, digits.val.indices, Policy(4, True))):
        seeded = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
        one, two = (list(split.to("cuda").batches(100, shuffle=True, augment=name, generator=g)) for g in seeded)
        assert all(torch.equal(a.x, b.x) and a.x.is_cuda and a.y.is_cuda for a, b in zip(one, two, strict=True))
        assert all(a.x.min() >= 0 and a.x.max() <= 1 for a in one)
        plain = one[0].view("none").cpu()
        assert torch.equal(plain, one[0].images.cpu() / 255)
