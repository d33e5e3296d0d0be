import hashlib
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib.data import DATASETS, Policy, Source, Split, load_dataset, sources
from robustlib.data.dataset import channel_stats, hold_out
from robustlib.errors import InputError
from robustlib.threat import Threat
from tests.data.conftest import generator, random_images


def test_digits_are_split_once_and_for_all(digits):
    assert [len(split) for split in (digits.train, digits.val, digits.test)] == [1041, 256, 500]
    facts = (digits.image_shape, digits.num_classes, digits.threat, digits.train.policy)
    assert facts == ((1, 8, 8), 10, Threat("linf", 0.2), Policy(pad=1, flip=False))
    everything = torch.cat([digits.train.indices, digits.val.indices, digits.test.indices])
    # the published numbers hold for these very splits
    digest = hashlib.sha256(everything.numpy().tobytes()).hexdigest()
    assert digest == "10e647155d28c2ae04e1fbcde92350edf7157b5f0fbe9ac48d5dfd176e6d717e"


def test_indices_point_into_the_original_files(digits):
    original, labels = map(torch.from_numpy, sources.digits(Path(), False).train)
    for split in (digits.train, digits.val, digits.test):
        assert torch.equal(split.images, original[split.indices])
        assert torch.equal(split.labels, labels[split.indices])
    assert digits.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]


def coordinates(split: Split, reach: float) -> np.ndarray:
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


def test_subsets_and_samples_are_stratified_and_fixed(digits):
    small, again = digits.subset(200), digits.subset(200)
    assert torch.equal(small.train.indices, again.train.indices)
    assert (len(small.train), small.train.labels.bincount().min() >= 19) == (200, True)
    assert (small.test, small.mean, digits.subset(10**6)) == (digits.test, digits.mean, digits)
    assert digits.test.sample(100).labels.bincount().min() >= 9
    assert [len(digits.test.sample(n)) for n in (0, 3, 100, 499)] == [500, 3, 100, 499]
    for n in (-5, 2.5, "5", True):  # as a notebook may be told
        with pytest.raises(InputError, match=f"n={n!r}: give a whole number of at least 0"):
            digits.test.sample(n)


@pytest.mark.parametrize("held", [5, 700])
def test_hold_out_moves_the_rest_up_without_a_copy(held):
    images = random_images(3000, 1, 2).numpy()
    labels = np.arange(3000) % 5
    original = images.copy()
    (rest, rest_labels, at), (out, out_labels, out_at) = hold_out(images, labels, held)
    assert np.shares_memory(rest, images)
    for part, part_labels, place in ((rest, rest_labels, at), (out, out_labels, out_at)):
        assert np.array_equal(part, original[place])
        assert np.array_equal(part_labels, labels[place])
    assert sorted([*at, *out_at]) == list(range(3000))


def test_channel_statistics_are_exact():
    images = random_images(50, 3, 40).numpy()
    mean, std = channel_stats(images)
    assert mean == pytest.approx(images.mean((0, 2, 3)) / 255, abs=1e-12)
    assert std == pytest.approx(images.std((0, 2, 3)) / 255, abs=1e-9)
    assert channel_stats(np.full((4, 1, 2, 2), 7, np.uint8))[1][0] > 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda ds: replace(ds.val, images=ds.val.images.float()), r"uint8 \(N, C, H, W\), not torch.float32"),
        (lambda ds: replace(ds.val, labels=ds.val.labels.int()), "not torch.int32"),
        (lambda ds: replace(ds.val, labels=ds.val.labels[1:]), "256 images, 255 labels"),
        (
            lambda ds: replace(ds, train=load_dataset("xor").train),
            r"shape \(1, 8, 8\), its training images \(1, 1, 2\)",
        ),
        (
            lambda ds: replace(ds, val=ds.train.sample(20)),
            r"The splits of digits overlap \(train and val share index \d+\)",
        ),
        (lambda ds: replace(ds, test=ds.val), r"test has the images of another one\): give each image to one"),
        (lambda ds: ds.val.select(torch.tensor([4, 0, 4])), "Index .* occurs 2 times in a split of 3 examples"),
        (lambda ds: ds.subset(3), "subset of 3 examples cannot hold all 10 classes"),
        (lambda ds: ds.val.batches(0), "batch_size=0: give a whole number"),
        (lambda ds: ds.val.batches(4, augment="simclr_week"), "Unknown view 'simclr_week'.*Did you mean 'simclr-weak'"),
        (lambda ds: next(ds.val.batches(4)).view("strong"), "Unknown view"),
    ],
)
def test_what_does_not_belong_together_is_refused_at_once(digits, call, said):
    with pytest.raises(InputError, match=said):
        call(digits)


@pytest.mark.parametrize(
    ("name", "root", "said"),
    [
        ("digits-0-4-0-1", "", "Unknown dataset 'digits-0-4'"),
        ("digits-0-" + "9" * 5000, "", "Unknown dataset 'digits-0-999"),
        ("mnist", "~nobody-here/data", "'~nobody-here/data' is not a directory"),
        ("mnist", "x" * 300, "xxx ... is no path: give one of at most"),
    ],
)
def test_hostile_names_are_refused_at_once(name, root, said):
    with pytest.raises(InputError, match=said):
        load_dataset(name, root=root)


def test_readers_answer_for_every_image(monkeypatch):
    def read(root, download, n=(600, 500), tests=(10, 10)):
        whole, test = ((np.zeros((k[0], 1, 2, 2), np.uint8), np.arange(k[1]) % 2) for k in (n, tests))
        return sources.Arrays(whole, test, ("a", "b"))

    def unreadable(root, download):
        raise PermissionError(13, "Permission denied", "x.bin")

    for reader, said in (
        (read, "odd has 600 training images and 500 labels"),
        (partial(read, n=(500, 600)), "odd has 500 training images and 600 labels"),
        (partial(read, n=(500, 500), tests=(0, 0)), "odd has 0 test images and 0 labels"),
        (unreadable, "data of 'odd' below .* cannot be read .*Permission denied: 'x.bin'.*--data-root"),
    ):
        monkeypatch.setitem(DATASETS, "odd", Source(reader, Threat("linf", 0.1), Policy(), embedded=True))
        with pytest.raises(InputError, match=said):
            load_dataset("odd")


def test_batches_serve_every_example_once(digits):
    for shuffle in (False, True):
        batches = list(digits.val.batches(100, shuffle=shuffle, generator=generator()))
        assert [len(batch) for batch in batches] == [100, 100, 56]
        index = torch.cat([batch.index for batch in batches])
        assert torch.equal(index.sort().values, digits.val.indices.sort().values)
        assert torch.equal(index, digits.val.indices) is not shuffle
        for batch in batches:
            at = torch.searchsorted(digits.val.indices, batch.index)
            assert torch.equal(batch.images, digits.val.images[at])
            assert torch.equal(batch.y, digits.val.labels[at])
            assert torch.equal(batch.x, batch.view("none"))
    assert [len(batch) for batch in digits.val.batches(100, drop_last=True)] == [100, 100]


def test_batches_repeat_with_their_seed_and_views_are_drawn_anew(digits):
    def draw(seed):
        return list(digits.val.batches(64, shuffle=True, augment="weak", generator=generator(seed)))

    one, same, other = ([batch.x for batch in draw(seed)] for seed in (1, 1, 2))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))
    batch = draw(1)[0]
    assert batch.x is batch.x
    assert not torch.equal(batch.x, batch.view("weak"))
    assert not torch.equal(batch.view("weak"), batch.view("weak"))


def test_select_takes_positions_and_masks(digits):
    assert torch.equal(digits.test.select(torch.tensor([5, 3])).indices, digits.test.indices[[5, 3]])
    threes = digits.test.select(digits.test.labels == 3)
    assert (set(threes.labels.tolist()), threes.policy) == ({3}, digits.test.policy)
