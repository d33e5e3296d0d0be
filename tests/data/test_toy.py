"""Rep-spectral on its toy: what the penalty is for can be seen there."""

import torch

from robustlib.data import load_dataset
from robustlib.methods import make_method
from robustlib.representation import Plane, metric_over_plane
from robustlib.training import fit

RECIPE = {"arch": "mlp_8", "epochs": 20, "lr": 0.3, "batch_size": 20, "burn_in": 0.5}


def test_rep_spectral_flattens_the_metric_of_xor(tmp_path):
    toy, models = load_dataset("xor"), {}
    for title, strength in (("none", 0.0), ("rep-spectral", 5e-3)):
        method = make_method("rep_spectral", "digits", strength=strength, **RECIPE)
        run = fit(method, toy, root=tmp_path, device="cpu", progress=False)
        models[title] = run.model("last").eval()
        assert run.metrics()["clean_val"].iloc[-1] >= 0.9
        assert "--dataset xor" in method.command("xor", "mlp_8", 0, "32-true")
    images = toy.train.images.float() / 255
    plane = Plane.through(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(3, 1, 1, 2))
    table = metric_over_plane(models, plane, images, steps=21)
    tops = table.groupby("model")["top_eigenvalue"].max()
    assert tops["rep-spectral"] < 0.6 * tops["none"]
