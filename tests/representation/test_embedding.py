import numpy as np
import pytest
import torch

from robustlib import figures
from robustlib.errors import InputError
from robustlib.representation import embed, embed_path, embedding, trustworthiness


def test_trustworthiness_agrees_with_scikit_learn():
    from sklearn.manifold import trustworthiness as reference

    f, flat = torch.randn(120, 10), torch.randn(120, 2)
    many, drawn = torch.randn(2500, 5), torch.randn(2500, 2)
    mixed = torch.cat((many[:, :1], drawn[:, :1]), 1)  # neighbours in part; estimated from 1000 of the points
    for features, view, error in ((f, flat, 1e-6), (f, f[:, :2], 1e-6), (many, mixed, 0.005)):
        theirs = reference(features.numpy(), view.numpy(), n_neighbors=15, metric="cosine")
        assert trustworthiness(features, view) == pytest.approx(theirs, abs=error)
    on_plane = torch.nn.functional.normalize(torch.randn(50, 2), dim=1)
    assert trustworthiness(on_plane, on_plane) == pytest.approx(1)


def test_joint_map_repeats_and_keeps_neighbourhoods(clouds, tmp_path):
    f, y = clouds(90)
    adversarial = torch.cat((f[:, -1:], f[:, :-1]), 1)  # another place for each class
    made = embed(f, adversarial, neighbours=10, cache=tmp_path)
    again = embed(f, adversarial, neighbours=10)
    assert np.array_equal(made.points, again.points)
    assert made.points.shape == made.pca.shape == (2, 90, 2)
    both = torch.from_numpy(made.points).flatten(0, 1)
    group = torch.cat((y, y + 3))
    group[group == 3], group[group == 4] = 1, 2  # adversarial 0 lies where class 1 is, 1 where 2 is
    near = torch.cdist(both, both).fill_diagonal_(torch.inf).topk(5, largest=False).indices
    assert (group[near] == group[:, None]).float().mean() > 0.95
    assert made.trustworthiness > 0.85
    for words in ("Trustworthiness", "10 neighbours", "seed 0", "small angle", "Distances between clusters"):
        assert words in str(made)


def test_a_map_knows_the_neighbours_of_alignment_and_exclusion(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    graphs = []

    def graph(u, start, parameters):
        graphs.append(embedding.nearest(u, parameters["neighbours"]))
        return start

    monkeypatch.setattr(embedding, "_umap", graph)
    features = 5 + torch.randn(200, 8) * torch.linspace(0.1, 3, 8)  # far off the origin, as behind a ReLU
    made = embed(features[:100], features[100:], neighbours=16)
    ((positions, distances),) = graphs
    centred = features - features.mean(0)
    by_angle, others = (
        NearestNeighbors(n_neighbors=16, metric="cosine").fit(f).kneighbors(f) for f in (features, centred)
    )
    assert np.array_equal(positions[:, 0], np.arange(200)), "itself first"
    assert np.array_equal(np.sort(positions), np.sort(by_angle[1]))
    assert distances == pytest.approx(np.sqrt(2 * by_angle[0].clip(0)), abs=1e-3)
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(positions, others[1], strict=True)]) / 16
    assert shared < 0.8, "and these are other ones"
    units = torch.nn.functional.normalize(features, dim=1)
    scores = (units - units.mean(0)) @ torch.linalg.svd(units - units.mean(0), full_matrices=False).Vh[:2].T
    assert np.abs(made.pca.reshape(200, 2)) == pytest.approx(scores.abs().numpy(), abs=1e-4)


def test_cache_is_keyed_by_features_and_parameters(tmp_path, no_umap):
    f, g = torch.randn(30, 6), torch.randn(30, 6)
    first, second = (embed(f, g, neighbours=5, cache=tmp_path) for _ in range(2))
    assert len(no_umap) == 1
    assert np.array_equal(first.points, second.points)
    assert str(first) == str(second)
    for changed in ({"neighbours": 6}, {"seed": 1}, {"min_dist": 0.25}):
        embed(f, g, **{"neighbours": 5, "cache": tmp_path, **changed})
    embed(g, f, neighbours=5, cache=tmp_path)
    assert len(no_umap) == 5
    for file in (tmp_path / "embeddings").iterdir():
        file.write_bytes(b"half")
    embed(f, g, neighbours=5, cache=tmp_path)
    assert len(no_umap) == 6


def test_a_path_of_tables_has_one_map(no_umap):
    made = embed_path([torch.randn(20, 6) for _ in range(3)], neighbours=5)
    assert made.points.shape == made.pca.shape == (3, 20, 2)
    assert "20 clean images and 40 changed ones" in str(made)
    assert embed(torch.randn(20, 2), torch.randn(20, 2), neighbours=3).explained == pytest.approx(1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: torch.ones_like(f),
        lambda f: torch.zeros_like(f),
        lambda f: f[:1] * torch.arange(1.0, len(f) + 1)[:, None],
        lambda f: f[:1] + 1e-6 * f,
        lambda f: torch.where(torch.arange(len(f))[:, None] == 3, torch.nan, f),
        lambda f: torch.where(f == f.max(), torch.inf, f),
        lambda f: f * 1e30,
    ],
    ids=["equal", "zero", "one direction", "rounding", "nan", "infinite", "overflow"],
)
def test_a_collapsed_encoder_has_no_map_and_stops_nothing(spoil, tmp_path, no_umap):
    clean, adversarial = spoil(torch.randn(40, 6)).chunk(2)
    made = embed(clean, adversarial, neighbours=5, cache=tmp_path)
    assert not no_umap
    assert not list(tmp_path.iterdir()), "nothing is kept"
    assert str(made).startswith("No map can be drawn: all features point the same way")
    assert str(made)[1:-1] == made.trust[1:]
    assert np.isnan([made.trustworthiness, made.pca_trustworthiness, made.explained]).all()
    assert not made.points.any()
    assert made.points.shape == made.pca.shape == (2, 20, 2)
    drawn = figures.umap_atlas({"h": tuple(made.points)}, torch.arange(20) % 3, notes={"h": made.trust}, note=made.made)
    figures.to_png(drawn)
    assert made.trust in drawn.alt


def test_no_map_is_trusted_that_has_no_neighbours(clouds):
    f, _ = clouds(60)
    assert np.isnan([trustworthiness(torch.ones(60, 8), f[:, :2]), trustworthiness(f, f[:, :2] * torch.nan)]).all()
    narrow = f[0] + 0.01 * torch.randn(60, 8)  # a hundredth apart is enough
    assert trustworthiness(narrow, narrow[:, :2]) > 0.5


@pytest.mark.parametrize(
    ("tables", "settings", "words"),
    [
        ([], {}, "at least one table"),
        ([(20, 6), (20, 6), (19, 6)], {}, "compare like with like"),
        ([(10, 4), (10, 4)], {}, "30 neighbours among 19 examples"),
        ([(20, 2), (20, 2)], {"neighbours": 3, "min_dist": 2}, "min_dist=2"),
    ],
)
def test_what_has_no_map_is_a_sentence(tables, settings, words):
    with pytest.raises(InputError, match=words):
        embed_path([torch.randn(*shape) for shape in tables], **settings)
