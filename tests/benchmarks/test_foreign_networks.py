"""A network that nobody here wrote goes all the way: weights in a file, sanity, attacks, audit, gaps, and back."""

from foreign_networks import FACTORIES, NETWORKS, tried


def test_a_network_comes_through_and_its_claims_hold(tmp_path):
    (tmp_path / "factories.py").write_text(FACTORIES)
    row, claims, _ = tried(next(one for one in NETWORKS if one.name == "mlp"), tmp_path)
    assert all(claims.values()), claims
    assert (row["sanity"], row["features"], row["layers"]) == ("5 pass", "3, 32", "5 of 5")
