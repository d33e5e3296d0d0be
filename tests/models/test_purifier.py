"""Random transforms against their formulas written as loops; purifiers: shapes, ranges, gradients and sizes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.errors import InputError
from robustlib.models import Generator, MaskedAutoencoder, PatchDiscriminator, build_purifier
from robustlib.models.purified import RandomTransform

ODD = [(1, 9, 11), (3, 30, 35)]  # no down-sampling and no patch divides them


def images(shape, n=3, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def drawn(transform, x, seed=0):
    return transform.draw(x, torch.Generator().manual_seed(seed))


def masked(shape, n=2):
    """Images, grey where a quarter of their blocks is hidden, and the masks."""
    x, transform = images(shape, n), RandomTransform("rt1", grid=4)
    randomness = drawn(transform, x)
    return transform.apply(x, randomness)[0], randomness.masks[0]


@pytest.mark.parametrize("kind", ["none", "rt1", "rt2", "rt3"])
@pytest.mark.parametrize("clip", [True, False])
def test_transforms_equal_their_formula_written_as_loops(kind, clip):
    transform, x = RandomTransform(kind, sigma=0.6, grid=4, clip=clip), images((2, 8, 9))
    randomness = drawn(transform, x)
    assert randomness.masks.shape == ({"rt3": 4}.get(kind, 1), 3, 1, 8, 9)
    assert (randomness.noise is None) == (kind in ("none", "rt1"))
    noisy = x.numpy() if randomness.noise is None else (x + randomness.noise).numpy()
    assert noisy.min() < -0.1 or kind in ("none", "rt1")  # there is something to clip
    hidden, answers = randomness.masks.numpy(), transform.apply(x, randomness).numpy()
    for part, b, c, i, j in np.ndindex(answers.shape):
        wanted = min(1, max(0, noisy[b, c, i, j])) if clip else noisy[b, c, i, j]
        assert abs(answers[part, b, c, i, j] - (0.5 if hidden[part, b, 0, i, j] == 1 else wanted)) < 1e-6


@pytest.mark.parametrize(("height", "width", "grid"), [(8, 8, 4), (9, 11, 4), (32, 32, 8), (5, 5, 5)])
def test_masks_are_whole_blocks_of_the_grid_and_every_image_has_its_own(height, width, grid):
    x = images((3, height, width), 64)
    masks = drawn(RandomTransform("rt1", missing=0.25, grid=grid), x).masks[0, :, 0].numpy()
    share, blocks = round(0.25 * grid**2), np.full((64, grid, grid), -1.0)
    for b, i, j in np.ndindex(masks.shape):
        row, column = i * grid // height, j * grid // width
        assert blocks[b, row, column] in (-1, masks[b, i, j])  # one value in each block
        blocks[b, row, column] = masks[b, i, j]
    assert (blocks.sum((1, 2)) == share).all()  # so no block of the grid lies outside the image
    assert len({block.tobytes() for block in blocks}) > 50
    assert abs(blocks.mean(0) - share / grid**2).max() < 0.3  # anywhere


@pytest.mark.parametrize(("missing", "parts"), [(0.25, 4), (0.5, 2), (0.33, 3), (1 / 16, 16)])
def test_the_masks_of_rt3_are_disjoint_and_cover_the_image(missing, parts):
    transform, x = RandomTransform("rt3", missing=missing, grid=4), images((1, 9, 9), 16)
    masks = drawn(transform, x).masks
    assert len(masks) == transform.passes == parts
    assert torch.equal(masks.sum(0), torch.ones(16, 1, 9, 9))
    blocks = drawn(transform, images((1, 4, 4), 16)).masks.sum((2, 3, 4))  # one pixel a block
    assert blocks.max() - blocks.min() <= 1
    assert len({mask.numpy().tobytes() for mask in masks[0]}) > 8  # not one partition for all


@pytest.mark.parametrize("kind", ["rt1", "rt2", "rt3"])
def test_draws_are_those_of_their_generator_whatever_the_image_or_its_dtype(kind):
    transform, x = RandomTransform(kind, grid=4), images((1, 8, 8))
    one, same, exact, other = (drawn(transform, *a) for a in ((x, 1), (1 - x, 1), (x.double(), 1), (x, 2)))
    assert not torch.equal(one.masks, other.masks)
    if kind != "rt1":
        noise = drawn(RandomTransform(kind, sigma=0.1, grid=4), torch.zeros(200, 1, 8, 8)).noise
        moments = [noise.std().item(), noise.mean().item(), (noise[0] * noise[1]).mean().item()]
        assert moments == pytest.approx([0.1, 0, 0], abs=0.005)
    assert exact.masks.dtype == torch.float64
    for again in (same, exact):
        assert torch.equal(one.masks, again.masks.float())
        assert one.noise is None or torch.allclose(one.noise, again.noise.float())


def test_a_transform_knows_whether_it_is_random():
    random = [{"kind": kind} for kind in ("rt1", "rt2", "rt3")] + [{"kind": "rt2", "missing": 0.0}]
    still = [{}, {"kind": "rt1", "missing": 0.0}, {"kind": "rt2", "missing": 0.0, "sigma": 0.0}]
    assert [RandomTransform(**fields).random for fields in (*random, *still)] == [True] * 4 + [False] * 3


@pytest.mark.parametrize("kind", ["none", "gan", "mae"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 160, 160), *ODD])
def test_images_in_give_images_out_and_every_weight_learns_from_the_discriminator(kind, shape):
    purifier, critic, (x, mask) = build_purifier(kind, shape, 8), PatchDiscriminator(shape, 4), masked(shape)
    outputs = purifier.outputs(x, mask)
    assert [image.shape for image in outputs] == [x.shape] * {"none": 1, "gan": 2, "mae": 1}[kind]
    assert all(bool(((image >= 0) & (image <= 1)).all()) for image in outputs)
    assert torch.equal(purifier(x, mask), outputs[-1])
    score = critic(outputs[-1], mask)
    assert score.shape[0] == 2
    score.mean().backward()
    for name, weight in (*purifier.named_parameters(), *critic.named_parameters()):
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    if kind == "none":
        assert torch.equal(outputs[0], x)


@pytest.mark.parametrize("kind", ["gan", "mae"])
@pytest.mark.parametrize("shape", ODD)
def test_odd_sizes_are_padded_by_their_last_pixels(kind, shape):
    purifier, (x, mask) = build_purifier(kind, shape, 8), masked(shape)
    margin = [(0, 0), (0, 0), *((0, -side % purifier.multiple) for side in shape[1:])]
    padded = [torch.from_numpy(np.pad(part.numpy(), margin, mode="edge")) for part in (x, mask)]
    wanted = purifier.complete(*padded)[-1][..., : shape[1], : shape[2]]
    assert torch.equal(purifier(x, mask), wanted)


@pytest.mark.parametrize("kind", ["gan", "mae"])
def test_a_mask_is_of_its_own_image_alone(kind):
    purifier, (x, mask) = build_purifier(kind, (1, 8, 8), 8), masked((1, 8, 8), 4)
    alone = torch.cat([purifier(x[i : i + 1], mask[i : i + 1]) for i in range(4)])
    assert torch.allclose(purifier(x, mask), alone, atol=1e-6)
    assert not torch.allclose(purifier(x, mask.flip(0)), alone, atol=1e-3)


def test_the_generator_paints_in_holes_what_its_first_stage_put_there():
    generator, (x, mask) = build_purifier("gan", (1, 8, 8), 4), masked((1, 8, 8))
    seen = []
    generator.fine.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        coarse, fine = generator.outputs(x, mask)
        assert torch.equal(seen[0], torch.where(mask == 1, coarse, x))
        maps = generator.fine(seen[0], mask).double().numpy()
    keep, paint = 1 / (1 + np.exp(-maps[:, :1])), 1 / (1 + np.exp(-maps[:, 1:]))
    assert np.allclose(fine.numpy(), keep * seen[0].numpy() + (1 - keep) * paint, atol=1e-6)


def test_an_output_at_the_border_of_the_range_keeps_its_gradient():
    purifier = build_purifier("gan", (1, 8, 8), 4)
    for border in (0.0, 1.0):
        x = torch.full((1, 1, 8, 8), border, requires_grad=True)
        (gradient,) = torch.autograd.grad(purifier(x, torch.zeros(1, 1, 8, 8)).sum(), x)
        assert (gradient.abs() > 1e-3).all()  # a clamped sum would lose half of them


def test_sizes_follow_the_image():
    shapes = ((1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 256, 256))
    assert [len(Generator(shape, 4).coarse.down) for shape in shapes] == [1, 2, 2, 3]
    assert [MaskedAutoencoder(shape, 8).patch for shape in shapes] == [2, 4, 8, 16]
    weights = sum(weight.numel() for weight in build_purifier("gan", (1, 8, 8)).parameters())
    assert weights < 95_000  # small_cnn's


@pytest.mark.parametrize("kind", ["gan", "mae"])
def test_a_few_steps_complete_digits_better_and_not_by_a_constant(kind, digits):
    purifier, transform = build_purifier(kind, (1, 8, 8)), RandomTransform("rt2", sigma=0.1, grid=4)
    x, optimiser, losses = digits.train.images[:64].float() / 255, torch.optim.Adam(purifier.parameters(), 1e-3), []
    for step in range(25):
        randomness = drawn(transform, x, step)
        outputs = purifier.outputs(transform.apply(x, randomness)[0], randomness.masks[0])
        loss = torch.stack([F.l1_loss(image, x) for image in outputs]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < min(0.75 * losses[0], float((x - x.median()).abs().mean()))
    assert outputs[-1].detach().std(0).mean() > 0.1  # images differ


def test_the_discriminator_is_spectrally_normalised_and_sees_the_mask():
    critic, x = PatchDiscriminator((1, 8, 8), 8), images((1, 8, 8))
    mask = masked((1, 8, 8), 3)[1]
    for _ in range(50):
        critic(x, mask)
    critic.eval()
    for layer in critic.layers[::2]:
        matrix = layer.weight.detach().double().flatten(1).numpy()
        assert np.linalg.svd(matrix, compute_uv=False)[0] == pytest.approx(1, abs=0.02)
    assert torch.equal(critic(x, mask), critic(x, mask))
    assert not torch.allclose(critic(x, mask), critic(x, 1 - mask))


def test_weights_of_a_purifier_of_another_size_are_refused_though_they_would_fit():
    large, small = (build_purifier("gan", (3, side, side), 4) for side in (36, 32))
    shapes = [[tuple(value.shape) for value in part.state_dict().values()] for part in (large, small)]
    assert shapes[0] == shapes[1]
    with pytest.raises(InputError, match=r"images of shape \(3, 36, 36\), and this one completes \(3, 32, 32\)"):
        small.load_state_dict(large.state_dict())


GAN = build_purifier("gan", (1, 8, 8), 4)
IMPOSSIBLE = [
    ({"missing": 1.0}, r"missing=1.0: give a number of at least 0 and below 1"),
    ({"missing": -0.1}, "missing=-0.1"),
    ({"missing": float("nan")}, "missing=nan"),
    ({"sigma": -0.1}, "sigma=-0.1: .* at least 0"),
    ({"sigma": float("nan")}, "sigma=nan"),
    ({"grid": 0}, "grid=0: give a whole number"),
    ({"kind": "rt4"}, "kind 'rt4'.* Did you mean"),
    ({"missing": 0.1, "grid": 2}, r"hides 0 of 4 block\(s\)"),
    ({"missing": 0.95, "grid": 2}, r"hides 4 of 4 block\(s\)"),
    ({"kind": "rt3", "missing": 0.0}, "rt3 hides the image in"),
    ({"kind": "rt3", "missing": 0.9}, "rt3 hides the image in"),
    ({"kind": "rt3", "missing": 0.05, "grid": 4}, r"at most the 16 block\(s\)"),
    ({"kind": "rt3", "missing": 0.4}, "missing=0.4: .* 2.5 of them is no whole number: give 0.5 for 2 parts"),
    ({"kind": "rt3", "missing": 0.3}, "give 0.333 for 3 parts"),
]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda kw=kw: RandomTransform(**({"kind": "rt2"} | kw)), said) for kw, said in IMPOSSIBLE),
        (lambda: RandomTransform("rt1", grid=9).draw(images((1, 8, 12))), "grid=9 asks for more blocks.* at most 8"),
        (lambda: build_purifier("gam", (1, 8, 8)), r"Unknown purifier 'gam'. Did you mean 'gan'"),
        *((lambda w=w: build_purifier("gan", (1, 8, 8), w), f"width={w}") for w in (0, 2.5, True)),
        (
            lambda: build_purifier("gan", (1, 8, 8), 10**6),
            "width=1000000: give a whole number of at least 1 and at most 256",
        ),
        (lambda: build_purifier("mae", (1, 8, 8), 10**5), "width=100000: give a whole number .* at most 16384"),
        (lambda: build_purifier("mae", (1, 8, 8), 6), "width=6: give a multiple of 4"),
        *(
            (lambda x=x, mask=mask: GAN(torch.rand(*x), torch.rand(*mask)), r"images of shape \(1, 8, 8\), one mask")
            for x, mask in (((2, 1, 8, 6), (2, 1, 8, 6)), ((2, 1, 8, 8), (1, 1, 8, 8)), ((2, 1, 8, 8), (2, 2, 8, 8)))
        ),
    ],
)
def test_what_purifiers_and_transforms_refuse(call, says):
    with pytest.raises(InputError, match=says):
        call()
