import colorsys

import numpy as np
import pytest
import torch

from robustlib.data import VIEWS, Policy
from robustlib.data.augmentation import shift_hue
from tests.data.conftest import generator, random_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_seeded_and_stay_in_the_box(name, channels):
    images, policy = random_images(channels=channels), Policy(pad=4, flip=True)
    images[0], images[1] = 0, 255
    x, again, other = (VIEWS[name](images, policy, generator(seed)) for seed in (0, 0, 1))
    assert (x.shape, x.dtype) == (images.shape, torch.float32)
    assert 0 <= x.min() <= x.max() <= 1  # and no NaN
    assert torch.equal(x, again)
    assert torch.equal(x, other) is (name == "none")
    assert name != "none" or torch.equal(x, images / 255)
    same = VIEWS[name](images[2:3].expand(64, -1, -1, -1), policy, generator())
    kinds = {"none": 1, "flip": 2}.get(name, 41)
    assert len({example.numpy().tobytes() for example in same}) >= kinds, "parameters of its own"


def shifts(image: torch.Tensor, pad: int) -> set[bytes]:
    """All shifts of an image (1, 8, 8) by at most `pad`."""
    padded, offsets = torch.nn.functional.pad(image, [pad] * 4), range(2 * pad + 1)
    return {padded[:, dy : dy + 8, dx : dx + 8].numpy().tobytes() for dy in offsets for dx in offsets}


@pytest.mark.parametrize("policy", [Policy(pad=1), Policy(pad=2, flip=True)])
def test_weak_views_reach_every_offset_and_half_are_mirrored(policy):
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) + 1
    x = VIEWS["weak"](image.expand(4000, 1, 8, 8), policy, generator())
    keys = [one.numpy().tobytes() for one in (x * 255).round().to(torch.uint8)]
    straight, mirrored = (shifts(one, policy.pad) for one in (image, image.flip(2)))
    assert set(keys) == (straight | mirrored if policy.flip else straight), "each offset, and nothing else"
    assert np.mean([k in mirrored for k in keys]) == pytest.approx(0.5 * policy.flip, abs=0.03)


@pytest.mark.parametrize("mirrors", [False, True])
def test_half_of_flipped_views_are_mirrored_where_the_data_allow_it(mirrors):
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    x = (VIEWS["flip"](image.expand(400, 1, 8, 8), Policy(pad=2, flip=mirrors), generator()) * 255).round()
    straight, mirrored = ((x == one).all((1, 2, 3)) for one in (image, image.flip(2)))
    assert bool((straight | mirrored).all())
    assert mirrored.float().mean().item() == pytest.approx(0.5 * mirrors, abs=0.08)


def test_resized_crops_keep_a_fifth_to_all_of_the_area():
    rows = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, 1, 64, 1).expand(1000, 1, 64, 64)
    images = torch.cat([rows, rows.transpose(2, 3), rows], 1)
    x = VIEWS["simclr-weak"](images, Policy(), generator()) * 255 / 252
    height, width = ((x[:, k].amax((1, 2)) - x[:, k].amin((1, 2))) * 64 / 63 for k in (0, 1))
    area = height * width
    assert 0.15 < area.min() <= area.max() <= 1.05
    assert area.mean() == pytest.approx(0.58, abs=0.04)  # 0.6, less what is cut at the border
    assert x[:, 0].amin((1, 2)).std() > 0.05  # the crop's place varies too
    assert bool((x[:, 1, 32].diff() >= 0).all())
    flipped = VIEWS["simclr-weak"](images, Policy(flip=True), generator())[:, 1, 32]
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
    assert 0.45 < contrast.quantile(0.01) < contrast.quantile(0.99) < 1.55
    assert contrast.std() == pytest.approx(0.8 / 12**0.5, abs=0.05)
    assert x[..., :4].std((1, 2, 3)).mean() == pytest.approx(0.05, abs=0.005)
