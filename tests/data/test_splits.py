"""Batches of a split."""

import pytest
import torch

from robustlib.errors import InputError
from tests.data.conftest import generator


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
    assert (set(threes.labels.tolist()), threes.policy) == ({3}, digits.test.policy)
    assert len(digits.test.to("cpu")) == 500


def test_batches_refuse_bad_arguments_at_once(digits):
    with pytest.raises(InputError, match="batch_size=0 holds no example"):
        digits.val.batches(0)
    with pytest.raises(InputError, match=r"Unknown view 'simclr_week'.*Did you mean 'simclr-weak'"):
        digits.val.batches(4, augment="simclr_week")
    with pytest.raises(InputError, match="Unknown view"):
        next(digits.val.batches(4)).view("strong")


def test_samples_are_stratified_and_fixed(digits):
    chosen = digits.test.sample(100)
    assert len(chosen) == 100
    assert torch.equal(chosen.indices, digits.test.sample(100).indices)
    assert chosen.labels.bincount().min() >= 9
    assert digits.test.sample(0) is digits.test
    assert (len(digits.test.sample(499)), len(digits.test.sample(3))) == (499, 3)
