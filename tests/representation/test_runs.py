from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from robustlib.attacks import PGD, Threat
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.representation import embed_runs, gap_table, measure_runs, run_features, stored_measures
from robustlib.representation import runs as module
from tests.training_fixtures import train

ATTACK = PGD(Threat("linf", 0.2), steps=3)


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    methods = [make_method(name, "digits", epochs=1, train_examples=200) for name in ("n_fgsm", "standard")]
    return [train(method, few, root) for method in methods]


def test_gap_table_per_layer_eps_and_class(runs, digits):
    table = gap_table(runs, digits, ATTACK, layers=["stage1", "features"], eps=[0.0, 0.1, 0.2], n=60)
    assert len(table) == 2 * 2 * 3
    curve = table[(table.run == runs[1].name) & (table.layer == "features")].relative_l2.tolist()
    assert curve[0] < 1e-5 < curve[1] < curve[2]
    by_class = gap_table(runs[1:], digits, ATTACK, classes=True, n=60)
    assert by_class["class"].tolist() == ["", *digits.class_names]
    parts = by_class[1:]
    assert by_class.n.tolist()[0] == parts.n.sum() == 60
    assert by_class.l2.tolist()[0] == pytest.approx((parts.n * parts.l2).sum() / 60)
    assert set(by_class.title) == {"Standard training"}
    none = replace(digits, class_names=(*digits.class_names, "ten"))
    with pytest.raises(InputError, match="None of the 60 images is of class 'ten'"):
        gap_table(runs[1:], none, ATTACK, classes=True, n=60)


def test_measures_of_runs_are_made_once(runs, digits, monkeypatch):
    table = measure_runs(runs, digits, ATTACK, n=60)
    monkeypatch.setattr(module, "features", None)  # nothing is computed again
    assert table.equals(measure_runs(runs, digits, ATTACK, n=60))
    assert stored_measures(runs, ATTACK, n=60).equals(table)
    assert len(table) == 2
    wanted = {"relative_l2", "cosine", "alignment", "nearest", "margin", "uniformity", "cka", "effective_rank"}
    assert wanted | {"adversarial_margin", "class_alignment", "variability", "self_duality"} <= set(table)
    assert table[sorted(wanted)].notna().all().all()
    assert table.title.tolist() == [run.params()["title"] for run in runs]
    with pytest.raises(TypeError):
        measure_runs(runs, digits, ATTACK, n=50)


def test_a_damaged_copy_or_one_of_an_older_form_is_made_again(runs, digits):
    run = runs[1]
    for file in (run.path / "features").glob("*"):
        file.unlink()
    clean, adversarial = run_features(run, digits, ATTACK, n=40)
    assert clean.images.equal(digits.test.sample(40).images)
    assert not clean.images.equal(adversarial.images)
    (file,) = (run.path / "features").iterdir()
    whole, tables = file.read_bytes(), load_file(file)
    assert tables.pop("adversarial/images").equal(adversarial.images)
    for spoil in (lambda: file.write_bytes(whole[:100]), lambda: save_file(tables, file)):
        file.unlink()  # or tensors that are mapped from it would change
        spoil()
        again = run_features(run, digits, ATTACK, n=40)
        assert file.read_bytes() == whole
        assert again[0]["features"].equal(clean["features"])
        assert again[1]["features"].equal(adversarial["features"])
        assert again[1].images.equal(adversarial.images)


def test_maps_of_runs_show_the_same_images(runs, digits, no_umap):
    maps, _ = (embed_runs(runs, digits, ATTACK, n=40, neighbours=5) for _ in range(2))
    assert [one.points.shape for one in maps] == [(2, 40, 2)] * 2
    assert len(no_umap) == 2, "the second time they are kept"
    one, other = (run_features(run, digits, ATTACK, n=40)[0] for run in runs)
    assert one.indices.equal(other.indices)


def test_runs_that_cannot_be_compared(runs, digits):
    with pytest.raises(InputError, match="There are no runs to compare"):
        measure_runs([], digits, ATTACK)
    with pytest.raises(InputError, match="compare runs of one data set"):
        gap_table(runs, replace(digits, name="mnist"), ATTACK)
