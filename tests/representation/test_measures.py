"""Measures on geometry where the answer is known; layers, streaming, maps and finished runs."""

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustlib.attacks import FGSM, PGD, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.representation import (
    Features,
    Pairs,
    alignment,
    at_eps,
    attacked_pairs,
    cka,
    class_alignment,
    effective_rank,
    embed,
    embed_path,
    embed_runs,
    embedding,
    exclusion,
    feature_gap,
    feature_jacobian_norm,
    features,
    gap_probe,
    gap_rows,
    gap_table,
    knn_probe,
    layers,
    linear_probe,
    local_lipschitz,
    measure_runs,
    neural_collapse,
    principal_components,
    run_features,
    trustworthiness,
    uniformity,
)
from robustlib.representation import (
    measures as geometry,
)
from robustlib.representation import (
    runs as stored,
)
from robustlib.training import fit
from tests.conftest import Hidden, Linear


def table(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


def on_circle(*degrees: float) -> Tensor:
    """Points of different lengths in given directions: only the directions may count."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), 1) * torch.arange(1, len(degrees) + 1)[:, None]


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def clouds(n: int = 60, classes: int = 3, dims: int = 8, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % classes
    centres = torch.eye(dims)[:classes] * 2
    return centres[y] + spread * torch.randn(n, dims, generator=generator), y


# Distances


COSINE = 8 / (5 * math.sqrt(17))  # of (3, 4) and (4, -1)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("relative_l2", math.sqrt(26) / 5), ("cosine", 1 - COSINE), ("l1", 6), ("l2", math.sqrt(26)), ("linf", 5)],
)
def test_feature_gap_by_hand(measure, expected):
    clean, adversarial = table((3.0, 4.0), (1.0, 0.0)), table((4.0, -1.0), (1.0, 0.0))
    assert feature_gap(clean, adversarial, measure).tolist() == pytest.approx([expected, 0.0], abs=1e-6)


def test_headline_gaps_are_free_of_scale_and_raw_ones_are_not():
    clean, adversarial = torch.randn(20, 5), torch.randn(20, 5)
    for measure, factor in {"relative_l2": 1, "cosine": 1, "l1": 7, "l2": 7, "linf": 7}.items():
        once, scaled = feature_gap(clean, adversarial, measure), feature_gap(7 * clean, 7 * adversarial, measure)
        torch.testing.assert_close(scaled, factor * once, rtol=1e-4, atol=1e-5)


def test_gap_of_zero_features_is_finite():
    zero = torch.zeros(2, 3)
    assert feature_gap(zero, zero).tolist() == [0, 0]
    assert feature_gap(zero, zero, "cosine").tolist() == [0, 0]


def test_alignment_by_angle():
    pairs = alignment(on_circle(0, 0, 0), on_circle(0, 90, 180))
    assert pairs.tolist() == pytest.approx([0, 2, 4], abs=1e-5)


def test_class_alignment_is_the_mean_over_pairs():
    f, y = clouds(30)
    u = f / f.norm(dim=1, keepdim=True)
    squares = torch.cdist(u, u).square()
    by_pairs = [float(squares[i][(y == y[i]) & (torch.arange(30) != i)].mean()) for i in range(30)]
    assert class_alignment(f, y).tolist() == pytest.approx(by_pairs, abs=1e-5)
    with pytest.raises(InputError, match="Class 3 has a single example"):
        class_alignment(torch.cat((f, f[:1])), torch.cat((y, torch.tensor([3]))))


def test_exclusion_on_a_circle():
    found = exclusion(on_circle(0, 10, 70, 90), torch.tensor([0, 0, 1, 1]))
    assert found.nearest.tolist() == pytest.approx([chord(70), chord(60), chord(60), chord(80)], abs=1e-4)
    mean = [(chord(70) + chord(90)) / 2, (chord(60) + chord(80)) / 2]
    assert found.mean[:2].tolist() == pytest.approx(mean, abs=1e-4)
    margins = [chord(70) - chord(10), chord(60) - chord(10), chord(60) - chord(20), chord(80) - chord(20)]
    assert found.margin.tolist() == pytest.approx(margins, abs=1e-4)


def test_exclusion_of_adversarial_features_ignores_the_own_natural_image():
    natural, y = on_circle(0, 10, 90, 100), torch.tensor([0, 0, 1, 1])
    crossed = natural.clone()
    crossed[0] = torch.tensor([0.0, 1.0])  # the first is now where class 1 is
    found = exclusion(crossed, y, natural)
    assert float(found.nearest[0]) == pytest.approx(0, abs=1e-3)
    assert float(found.margin[0]) == pytest.approx(-chord(80), abs=1e-3)  # to the other of its class, not to itself


def test_exclusion_needs_two_classes_and_has_no_margin_for_a_lonely_example():
    with pytest.raises(InputError, match=r"All 2 examples are of class 4"):
        exclusion(on_circle(0, 1), torch.tensor([4, 4]))
    assert exclusion(on_circle(0, 1, 2), torch.tensor([0, 0, 1])).margin.isnan().tolist() == [False, False, True]


def test_uniformity():
    assert uniformity(on_circle(0, 180)) == pytest.approx(-8, abs=1e-4)
    assert uniformity(on_circle(20, 20, 20)) == pytest.approx(0, abs=1e-5)
    assert uniformity(on_circle(0, 90), t=1) == pytest.approx(-2, abs=1e-5)
    even = torch.randn(800, 200, generator=torch.Generator().manual_seed(0))
    assert uniformity(even) == pytest.approx(-4, abs=0.1)
    assert uniformity(even) < uniformity(even + 2)
    with pytest.raises(InputError, match="at least two"):
        uniformity(table((1.0, 2.0)))


def test_pieces_change_nothing(monkeypatch):
    f, y = clouds(50)
    whole = (exclusion(f, y).margin, uniformity(f), neural_collapse(f, y).variability, cka(f, f[:, :3]))
    few = importlib.import_module("robustlib.representation.features")
    for module in (geometry, few):
        monkeypatch.setattr(module, "rows_at_once", lambda columns: 7)
    torch.testing.assert_close(exclusion(f, y).margin, whole[0])
    assert (uniformity(f), neural_collapse(f, y).variability, cka(f, f[:, :3])) == pytest.approx(whole[1:])


# Shape of the cloud


def test_cka_is_blind_to_rotation_shift_and_scale_and_matches_its_gram_form():
    f, g = torch.randn(400, 6), torch.randn(400, 9)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    assert cka(f, 3 * f @ turn + 5) == pytest.approx(1, abs=1e-5)
    assert cka(f, g) < 0.1
    a, b = (t - t.mean(0) for t in (f, f @ torch.randn(6, 4)))
    k, m = a @ a.T, b @ b.T
    assert cka(a, b) == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())), abs=1e-4)
    assert cka(f, torch.ones(400, 2)) == 0
    with pytest.raises(InputError, match="not 400 with 3"):
        cka(f, f[:3])


def test_effective_rank_counts_equal_directions():
    axes = torch.cat((torch.eye(4), -torch.eye(4)))
    wide = torch.cat((axes, torch.zeros(8, 6)), 1) + 3
    assert effective_rank(wide) == pytest.approx(4, abs=1e-4)
    assert effective_rank(torch.arange(9.0)[:, None] * torch.ones(5)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(5, 3)) == 0
    stretched = axes * torch.tensor([3.0, 1.0, 0.0, 0.0])
    shares = torch.tensor([0.75, 0.25])
    assert effective_rank(stretched) == pytest.approx(float((-(shares * shares.log()).sum()).exp()), abs=1e-4)


def simplex(classes: int) -> Tensor:
    return torch.eye(classes) - 1 / classes


def test_neural_collapse_is_zero_when_complete():
    means, y = simplex(4), torch.arange(20) % 4
    head = nn.Linear(4, 4)
    with torch.no_grad():
        head.weight.copy_(3 * means)
        head.bias.zero_()
    found = neural_collapse(means[y] + 7, y, head)
    assert found.nearest_centre == 0.0
    measured = (found.variability, found.equinorm, found.equiangular, found.self_duality)
    assert measured == pytest.approx((0, 0, 0, 0), abs=1e-5)


def test_neural_collapse_by_hand():
    # Means -1 and +1, each with two examples 0.5 away: within 0.25, between 1, K = 2.
    f = table((-1.5, 0.0), (-0.5, 0.0), (0.5, 0.0), (1.5, 0.0))
    y, head = torch.tensor([0, 0, 1, 1]), nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(table((1.0, 0.0), (-1.0, 0.0)))  # the wrong way round
        head.bias.zero_()
    found = neural_collapse(f, y, head)
    assert found.variability == pytest.approx(0.125)
    assert found.self_duality == pytest.approx(2)
    assert found.nearest_centre == 1.0
    assert math.isnan(neural_collapse(f, y).self_duality)


def test_unequal_class_means_are_seen():
    f = table((5.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)).repeat(2, 1)
    found = neural_collapse(f, torch.tensor([0, 1, 2] * 2))
    assert found.equinorm > 0.2
    assert found.equiangular > 0.1


def test_neural_collapse_names_what_is_missing():
    with pytest.raises(InputError, match="Class 1 has no example"):
        neural_collapse(torch.randn(4, 3), torch.tensor([0, 0, 2, 2]))
    with pytest.raises(InputError, match="The head has"):
        neural_collapse(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), nn.Linear(5, 2))


def test_principal_components_find_the_long_direction():
    long = torch.linspace(-5, 5, 50)[:, None] * table((0.6, -0.8, 0.0)) + 0.01 * torch.randn(50, 3)
    scores, shares = principal_components(long, 2)
    assert float(shares[0]) > 0.99
    assert float(shares.sum()) <= 1 + 1e-6
    along = scores[:, 0]
    assert float(along[0]) > 4.9
    assert float(along[-1]) < -4.9
    assert scores.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(0, 2), table((1.0, math.nan))])
def test_bad_features_are_refused(bad):
    with pytest.raises(InputError):
        effective_rank(bad)


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match="not of the same examples"):
        feature_gap(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(InputError, match="Unknown measure of the feature gap 'l3'"):
        feature_gap(torch.ones(3, 2), torch.ones(3, 2), "l3")
    with pytest.raises(InputError, match="as many labels"):
        class_alignment(torch.ones(3, 2), torch.zeros(2, dtype=torch.int64))


# Slopes


def test_local_lipschitz_of_a_linear_map_is_its_norm():
    model, x = Linear(3), torch.full((4, 1, 4, 4), 0.5)
    spectral = float(torch.linalg.matrix_norm(model.map.weight.detach(), 2))
    found = local_lipschitz(model, x, Threat("l2", 0.4), layer="logits", steps=60)
    assert float(found.max()) <= spectral * (1 + 1e-4)
    assert float(found.min()) > 0.98 * spectral
    one = Linear(1)
    steepest = local_lipschitz(one, x, Threat("linf", 0.1), layer="logits", steps=12)
    assert steepest.tolist() == pytest.approx([float(one.map.weight.detach().abs().sum())] * 4, rel=1e-3)
    with pytest.raises(InputError, match="eps > 0"):
        local_lipschitz(model, x, Threat("l2", 0.0))


def test_feature_jacobian_norm_of_a_linear_map_is_its_frobenius_norm():
    model, x = Linear(12), torch.rand(200, 1, 4, 4)
    frobenius = float(model.map.weight.detach().norm())
    assert feature_jacobian_norm(model, x[:5], layer="logits", projections=0).tolist() == pytest.approx([frobenius] * 5)
    generator = torch.Generator().manual_seed(0)
    estimate = feature_jacobian_norm(model, x, layer="logits", projections=8, generator=generator)
    assert float(estimate.square().mean().sqrt()) == pytest.approx(frobenius, rel=0.05)
    assert float(estimate.std()) / frobenius < math.sqrt(1 / 16)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="projections=-1"):
        feature_jacobian_norm(model, x, projections=-1)


# Probes


def test_probes_read_separable_classes_and_not_noise():
    f, y = clouds(90)
    other = f + 0.1 * torch.randn(90, 8)
    for probe in (linear_probe(f, y), knn_probe(f, y, k=5)):
        assert probe.accuracy(other, y) == 1.0
        assert probe.accuracy(f[:, torch.randperm(8)], y) < 1.0
    noise = torch.randn(300, 4)
    guess = linear_probe(noise[:150], torch.arange(150) % 3).accuracy(noise[150:], torch.arange(150) % 3)
    assert 0.2 < guess < 0.5


def test_nearer_neighbours_weigh_more():
    bank, y = on_circle(0, 40, 41), torch.tensor([0, 1, 1])
    probe = knn_probe(bank, y, k=3)
    assert probe.predict(on_circle(2, 38)).tolist() == [0, 1]


def test_fewer_examples_than_neighbours():
    with pytest.raises(InputError, match="20 neighbours among 8 examples"):
        knn_probe(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(InputError, match="a probe needs two classes"):
        linear_probe(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(InputError, match="30 neighbours among 19 examples"):
        embed(torch.randn(10, 4), torch.randn(10, 4))


# Layers and streaming


def split_of(n: int, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> Split:
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(n) % classes, torch.arange(n) + 100)


@pytest.fixture(scope="module")
def net(digits):
    torch.manual_seed(0)
    model = build_model("small_cnn", digits)
    model(digits.train.sample(64).images.float() / 255)
    return model.eval()


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "resnet18", "preact_resnet18"])
def test_every_listed_layer_can_be_looked_at(arch, digits):
    model = build_model(arch, digits)
    names = layers(model)
    found = features(model, split_of(3), layers=names)
    assert names[-2:] == ("features", "logits")
    assert len(names) >= 4
    assert list(found.layers) == list(names)
    assert found["features"].shape == (3, model.head.in_features)
    assert found["logits"].shape == (3, 10)


def test_layers_of_a_model_that_is_no_classifier(conv_net):
    assert layers(conv_net) == ("0", "1", "2", "3", "4", "logits")
    assert features(conv_net, split_of(2, (3, 8, 8)), layers="0")["0"].shape == (2, 8)


def test_features_agree_with_the_model_in_any_batches(net):
    split = split_of(23)
    x = split.images.float() / 255
    found = features(net, split, layers=["stage2", "features", "logits"], batch_size=5)
    with torch.no_grad():
        torch.testing.assert_close(found["features"], net.features(x))
        torch.testing.assert_close(found["logits"], net(x))
        maps = net.encoder.stage2(net.encoder.stage1(net.normalise(x)))
        torch.testing.assert_close(found["encoder.stage2"], maps.mean((2, 3)))
        flat = features(net, split, layers="stage2", pool="flat")["stage2"]
        torch.testing.assert_close(flat, maps.flatten(1))
        assert found.predictions.equal(net(x).argmax(1))
        assert found.indices.equal(split.indices)
    with pytest.raises(InputError, match="'stage3' was not kept"):
        found["stage3"]


def test_what_a_later_module_changes_in_place_is_kept_as_it_was(net):
    before_relu = features(net, split_of(8), layers="encoder.stage1.1", pool="flat")["stage1.1"]
    assert before_relu.min() < 0


def test_the_model_is_left_as_found(net):
    model = net.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.head.eval()
    features(model, split_of(6), attack=PGD(Threat("linf", 0.1), steps=2))
    assert model.encoder.training
    assert not model.head.training
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()


def test_attacked_features_are_those_of_the_attack(net):
    split, attack = split_of(12), PGD(Threat("linf", 0.2), steps=3)
    found = features(net, split, attack=attack, seed=3)
    assert feature_gap(features(net, split)["features"], found["features"]).min() > 0
    again = features(net, split, attack=attack, seed=3, batch_size=5)["features"]
    torch.testing.assert_close(found["features"], again)
    assert not found["features"].equal(features(net, split, attack=attack, seed=4)["features"])


def test_attacks_look_at_the_attack_view(net):
    """The deployed outputs hide their gradient: without the view the images, and so the features, would be other ones."""
    split, attack = split_of(40), PGD(Threat("linf", 0.2), steps=3)
    plain, hidden, known = (
        features(model, split, attack=attack, keep_images=True)
        for model in (net, Hidden(net, open=False), Hidden(net, open=True))
    )
    assert known.images.equal(plain.images)
    assert not hidden.images.equal(plain.images)
    assert known.predictions.equal(plain.predictions)
    batch = next(iter(split.batches(40)))
    outside = gap_probe(attack, {"h": "encoder.stage3"})(net, batch)["h/relative_l2"]
    inside = gap_probe(attack, {"h": "model.encoder.stage3"})
    with_view, without = (inside(Hidden(net, open=seen), batch)["h/relative_l2"] for seen in (True, False))
    assert with_view == outside > without


def test_images_are_kept_when_asked(net):
    split, threat = split_of(12), Threat("linf", 0.2)
    assert features(net, split).images is None
    found = features(net, split, attack=PGD(threat, steps=3), batch_size=5, keep_images=True)
    moved = (found.images.int() - split.images.int()).abs()
    assert found.images.dtype == torch.uint8
    assert 0 < moved.amax() <= round(0.2 * 255)
    assert found.select(found.labels == 3).images.equal(found.images[found.labels == 3])
    assert features(net, split, keep_images=True).images.equal(split.images)


def test_two_augmentations_of_one_image(digits, net):
    split = digits.test.sample(20)
    first, second = (features(net, split, augment="weak", seed=s)["features"] for s in (0, 1))
    assert first.equal(features(net, split, augment="weak", seed=0)["features"])
    shuffled = second[torch.randperm(20)]
    assert 0 < alignment(first, second).mean() < alignment(first, shuffled).mean()


def test_unknown_layers_are_answered_with_those_that_exist(net):
    with pytest.raises(InputError) as error:
        features(net, split_of(2), layers="stage9")
    for name in ("stage9", "encoder.stage1", "encoder.stage2", "encoder.stage3", "features", "logits"):
        assert name in str(error.value)
    with pytest.raises(InputError, match="No layer was asked for"):
        features(net, split_of(2), layers=[])
    with pytest.raises(InputError, match="holds no image"):
        features(net, split_of(0))
    with pytest.raises(InputError, match="Unknown pool 'max'"):
        features(net, split_of(2), pool="max")


def test_a_layer_that_is_not_reached(net):
    net.spare = nn.Linear(2, 2)
    try:
        with pytest.raises(InputError, match="does not reach 'spare'"):
            features(net, split_of(2), layers="spare")
    finally:
        del net.spare


def made_up(right: list[bool]) -> Features:
    y = torch.tensor([0, 0, 1, 1])
    return Features({"features": torch.randn(4, 3)}, y, torch.arange(4), torch.where(torch.tensor(right), y, 5))


def test_a_class_without_adversarial_survivors_is_named():
    clean, adversarial = made_up([True] * 4), made_up([True, True, False, False])
    assert len(adversarial.of_class(0, adversarial.correct)) == 2
    with pytest.raises(InputError, match="class 1 is kept: it has no adversarial survivors"):
        adversarial.of_class(1, adversarial.correct)
    with pytest.raises(InputError, match="no adversarial survivors"):
        list(gap_rows(clean, adversarial, ("zero", "one"), "survivors"))
    with pytest.raises(InputError, match=r"no example of class 7: the classes here are 0, 1"):
        clean.of_class(7)
    with pytest.raises(InputError, match="No example belongs to the survivors"):
        list(gap_rows(clean, made_up([False] * 4), only="survivors"))
    rows = list(gap_rows(clean, adversarial, ("zero", "one")))
    assert [(row["class"], row["n"]) for row in rows] == [("", 4), ("zero", 2), ("one", 2)]
    assert rows[0]["l2"] == pytest.approx((rows[1]["l2"] + rows[2]["l2"]) / 2)


def test_pairs_have_distances_by_hand():
    pairs = Pairs(
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.5, math.sqrt(0.75)], [3.0, 0.0]]),
        torch.tensor([[-1.0, 0.0], [0.0, 1.0]]),
    )
    cosine, l2 = pairs.distances(), pairs.distances("l2")
    assert cosine["attacked copy"].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert cosine["another class, pulled"].tolist() == pytest.approx([2.0, 1.0], abs=1e-6)
    assert l2["attacked copy"].tolist() == pytest.approx([1.0, 2.0], abs=1e-6)
    with pytest.raises(InputError, match="'l1'"):
        pairs.distances("l1")


def test_pairs_are_an_image_its_copy_and_a_pulled_one_of_another_class(digits, net):
    split, threat = digits.test.sample(60), Threat("linf", 0.1)
    pairs = attacked_pairs(net, split, threat, embed=lambda x: x.flatten(1))
    clean = split.images.flatten(1).float() / 255
    assert torch.equal(pairs.images, clean)
    assert 0 < float((pairs.copies - clean).abs().max()) <= 0.1 + 1e-6
    apart = (pairs.others[:, None] - clean).abs().amax(2)
    origin = apart.argmin(1)
    assert float(apart.amin(1).max()) <= 0.1 + 1e-6
    assert bool((split.labels[origin] != split.labels).all())
    before, after = (
        net(x.view(-1, 1, 8, 8)).log_softmax(1).gather(1, split.labels[:, None]) for x in (clean[origin], pairs.others)
    )
    assert bool((after > before).all()), "pulled towards the class of its partner"
    with torch.no_grad():
        net.eval()
        assert torch.allclose(
            attacked_pairs(net, split, threat).images, net.features(clean.view(-1, 1, 8, 8)), atol=1e-5
        )
    with pytest.raises(InputError, match="are of class 3"):
        attacked_pairs(net, split.select(split.labels == 3), threat)


def test_at_eps_keeps_the_protocol():
    threat = Threat("linf", 0.2)
    assert at_eps(PGD(threat), 0.1) == PGD(Threat("linf", 0.1))
    assert at_eps(FGSM(threat), 0.1) == FGSM(Threat("linf", 0.1))
    assert at_eps(PGD(threat, step_size=0.02), 0.0).threat.eps == 0
    with pytest.raises(InputError, match="has no threat"):
        at_eps(lambda model, x, y: x, 0.1)


# Maps


def test_trustworthiness_agrees_with_scikit_learn():
    from sklearn.manifold import trustworthiness as reference

    f, flat = torch.randn(120, 10), torch.randn(120, 2)
    for view in (flat, f[:, :2]):
        theirs = reference(f.numpy(), view.numpy(), n_neighbors=15, metric="cosine")
        assert trustworthiness(f, view) == pytest.approx(theirs, abs=1e-6)
    many, drawn = torch.randn(2500, 5), torch.randn(2500, 2)
    mixed = torch.cat((many[:, :1], drawn[:, :1]), 1)  # neighbours in part
    theirs = reference(many.numpy(), mixed.numpy(), n_neighbors=15, metric="cosine")
    assert trustworthiness(many, mixed) == pytest.approx(theirs, abs=0.005)
    on_plane = torch.nn.functional.normalize(torch.randn(50, 2), dim=1)
    assert trustworthiness(on_plane, on_plane) == pytest.approx(1)


def test_joint_map_repeats_and_keeps_neighbourhoods(tmp_path):
    f, y = clouds(90)
    adversarial = torch.cat((f[:, -1:], f[:, :-1]), 1)  # another place for each class
    made = embed(f, adversarial, neighbours=10, cache=tmp_path)
    again = embed(f, adversarial, neighbours=10)
    assert np.array_equal(made.clean, again.clean)
    assert np.array_equal(made.adversarial, again.adversarial)
    assert made.clean.shape == made.pca_adversarial.shape == (90, 2)
    both = torch.from_numpy(np.concatenate((made.clean, made.adversarial)))
    group = torch.cat((y, y + 3))
    group[group == 3], group[group == 4] = 1, 2  # adversarial 0 lies where class 1 is, 1 where 2 is
    near = torch.cdist(both, both).fill_diagonal_(torch.inf).topk(5, largest=False).indices
    assert (group[near] == group[:, None]).float().mean() > 0.95
    assert made.trustworthiness > 0.85
    for word in (
        "Trustworthiness",
        "10 neighbours",
        "seed 0",
        "small angle between features",
        "Distances between clusters",
    ):
        assert word in str(made)


def test_a_map_knows_the_neighbours_of_alignment_and_exclusion(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    seen = {}

    def graph(u, start, parameters):
        seen["positions"], seen["distances"] = embedding.nearest(u, parameters["neighbours"])
        return start

    monkeypatch.setattr(embedding, "_umap", graph)
    features = 5 + torch.randn(200, 8) * torch.linspace(0.1, 3, 8)  # far off the origin, as behind a ReLU
    made = embed(features[:100], features[100:], neighbours=16)
    by_angle = NearestNeighbors(n_neighbors=16, metric="cosine").fit(features).kneighbors(features)
    assert np.array_equal(seen["positions"][:, 0], np.arange(200)), "itself first"
    assert np.array_equal(np.sort(seen["positions"]), np.sort(by_angle[1]))
    assert seen["distances"] == pytest.approx(np.sqrt(2 * by_angle[0].clip(0)), abs=1e-3)
    about_mean = features - features.mean(0)
    others = NearestNeighbors(n_neighbors=16, metric="cosine").fit(about_mean).kneighbors(about_mean)[1]
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(seen["positions"], others, strict=True)]) / 16
    assert shared < 0.8, "and these are other ones"
    units = torch.nn.functional.normalize(features, dim=1)
    scores = (units - units.mean(0)) @ torch.linalg.svd(units - units.mean(0), full_matrices=False).Vh[:2].T
    assert np.abs(made.pca.reshape(200, 2)) == pytest.approx(scores.abs().numpy(), abs=1e-4)


@pytest.fixture
def no_umap(monkeypatch):
    """UMAP takes ten seconds to compile; here only what is around it counts."""
    calls = []

    def stand_in(u, start, parameters):
        calls.append(parameters)
        return start.copy()

    monkeypatch.setattr(embedding, "_umap", stand_in)
    return calls


def test_cache_is_keyed_by_features_and_parameters(tmp_path, no_umap):
    f, g = torch.randn(30, 6), torch.randn(30, 6)
    first = embed(f, g, neighbours=5, cache=tmp_path)
    second = embed(f, g, neighbours=5, cache=tmp_path)
    assert len(no_umap) == 1
    assert np.array_equal(first.clean, second.clean)
    assert str(first) == str(second)
    for changed in ({"neighbours": 6}, {"seed": 1}, {"min_dist": 0.25}):
        embed(f, g, **{"neighbours": 5, "cache": tmp_path, **changed})
    embed(g, f, neighbours=5, cache=tmp_path)
    assert len(no_umap) == 5
    for file in (tmp_path / "embeddings").iterdir():
        file.write_bytes(b"half")
    embed(f, g, neighbours=5, cache=tmp_path)
    assert len(no_umap) == 6


def test_a_path_of_tables_has_one_map(tmp_path, no_umap):
    tables = [torch.randn(20, 6) for _ in range(3)]
    made = embed_path(tables, neighbours=5, cache=tmp_path)
    assert made.points.shape == made.pca.shape == (3, 20, 2)
    assert np.array_equal(made.adversarial, made.points[2])
    assert np.array_equal(made.points, embed_path(tables, neighbours=5, cache=tmp_path).points)
    assert len(no_umap) == 1
    assert "20 clean images and 40 changed ones" in str(made)
    with pytest.raises(InputError, match="at least one table"):
        embed_path([])
    with pytest.raises(InputError, match="compare like with like"):
        embed_path([torch.randn(20, 6), torch.randn(20, 6), torch.randn(19, 6)])


def test_features_of_one_dimension_have_a_map(no_umap):
    made = embed(torch.randn(20, 2), torch.randn(20, 2), neighbours=3)
    assert made.explained == pytest.approx(1)
    with pytest.raises(InputError, match="min_dist=2"):
        embed(torch.randn(20, 2), torch.randn(20, 2), neighbours=3, min_dist=2)


# Runs


SMALL = {"epochs": 2, "train_examples": 200}


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    kinds = [make_method(name, "digits", **SMALL) for name in ("n_fgsm", "standard")]
    return [fit(method, digits, root=root, progress=False, threads=1) for method in kinds]


ATTACK = PGD(Threat("linf", 0.2), steps=3)


def test_gap_table_per_layer_eps_and_class(runs, digits):
    found = gap_table(runs, digits, ATTACK, layers=["stage1", "features"], eps=[0.0, 0.1, 0.2], n=60)
    assert len(found) == 2 * 2 * 3
    curve = found[(found.run == runs[1].name) & (found.layer == "features")].relative_l2.tolist()
    assert curve[0] < 1e-5 < curve[1] < curve[2]
    by_class = gap_table(runs[1:], digits, ATTACK, classes=True, n=60)
    assert by_class["class"].tolist() == ["", *digits.class_names]
    assert by_class.n.tolist()[0] == 60
    assert set(by_class.title) == {"Standard training"}
    with pytest.raises(InputError, match="Unknown choice of examples 'some'"):
        gap_table(runs, digits, ATTACK, only="some")


def test_measures_of_runs_are_made_once(runs, digits, monkeypatch):
    found = measure_runs(runs, digits, ATTACK, n=60)
    monkeypatch.setattr(stored, "features", None)  # nothing is looked at again
    again = measure_runs(runs, digits, ATTACK, n=60)
    assert found.equals(again)
    assert len(found) == 2
    wanted = {"relative_l2", "cosine", "alignment", "nearest", "margin", "uniformity", "cka", "effective_rank"}
    assert wanted | {"adversarial_margin", "class_alignment", "variability", "self_duality"} <= set(found)
    assert found[sorted(wanted)].notna().all().all()
    assert found.title.tolist() == [run.params()["title"] for run in runs]
    with pytest.raises(TypeError):
        measure_runs(runs, digits, ATTACK, n=50)


def test_a_damaged_copy_is_made_again(runs, digits):
    clean, adversarial = run_features(runs[1], digits, ATTACK, n=40)
    for file in (runs[1].path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    again = run_features(runs[1], digits, ATTACK, n=40)
    assert clean["features"].equal(again[0]["features"])
    assert adversarial["features"].equal(again[1]["features"])
    assert again[0].images.equal(digits.test.sample(40).images)
    assert adversarial.images.equal(again[1].images)
    assert not again[0].images.equal(again[1].images)


def test_a_copy_of_an_older_form_is_made_again(runs, digits):
    run = runs[1]
    _, adversarial = run_features(run, digits, ATTACK, n=30)
    files = (run.path / "features").iterdir()
    file = max(files, key=lambda path: path.stat().st_mtime)
    tables = load_file(file)
    assert tables.pop("adversarial/images").equal(adversarial.images)
    save_file(tables, file)
    assert run_features(run, digits, ATTACK, n=30)[1].images.equal(adversarial.images)


def test_maps_of_runs_show_the_same_images(runs, digits, no_umap):
    maps = embed_runs(runs, digits, ATTACK, n=40, neighbours=5)
    assert [len(one.clean) for one in maps] == [40, 40]
    assert len(no_umap) == 2
    embed_runs(runs, digits, ATTACK, n=40, neighbours=5)
    assert len(no_umap) == 2
    one, other = (run_features(run, digits, ATTACK, n=40)[0] for run in runs)
    assert one.indices.equal(other.indices)


def test_runs_that_cannot_be_compared(runs, digits):
    with pytest.raises(InputError, match="There are no runs to compare"):
        measure_runs([], digits, ATTACK)
    with pytest.raises(InputError, match="compare runs of one data set"):
        gap_table(runs, replace(digits, name="mnist"), ATTACK)
