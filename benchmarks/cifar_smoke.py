"""Does every method train, evaluate, audit and show its features on real CIFAR-10, or MNIST? 256 images, an epoch a stage.

    python benchmarks/cifar_smoke.py --data-root DIR                       # all methods; minutes each on a CPU
    python benchmarks/cifar_smoke.py --data-root DIR --methods claf rep_spectral
    python benchmarks/cifar_smoke.py --data-root DIR --dataset mnist       # the networks of the digits preset: quicker

The numbers mean nothing: it asks whether the pieces fit at this size. CIFAR-10 is trained by its short preset, a ResNet-18,
MNIST by that of the digits. Runs are made in a temporary directory.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace

from side_by_side import markdown

from robustlib.audit import audit_run
from robustlib.data import Dataset, load_dataset
from robustlib.evaluation import evaluate_run
from robustlib.methods import METHODS, make_method
from robustlib.representation import measure_runs, probe_attack
from robustlib.threat import Threat
from robustlib.training import fit

PRESETS = {"cifar10": "cifar10-short", "mnist": "digits"}  # a data set's recipes
LOOK = 40  # images whose features are compared: measures need two of each class


def lengths(name: str, preset: str) -> dict[str, int]:
    """Hyper-parameters by which each stage of a preset's method lasts one epoch."""
    usual = make_method(name, preset).hyperparameters()
    short = {field: 1 for field in usual if field == "epochs" or field.endswith("_epochs")}
    halved = [field.replace("burn_in", "epochs") for field in usual if field.endswith("burn_in") and usual[field]]
    halved += ["epochs"] * ("aug_epochs" in usual)
    return short | dict.fromkeys(halved, 2)


def smoke(name: str, dataset: Dataset, images: int, device: str, root: str) -> dict[str, object]:
    """What one method did, as a row of the table."""
    began = time.monotonic()
    method = make_method(name, PRESETS[dataset.name], **lengths(name, PRESETS[dataset.name]))
    run = fit(method, dataset, root=root, device=device, progress=False)
    rows = {row["attack"]: row["accuracy"] for row in evaluate_run(run, dataset, n=images, device=device)["rows"]}
    badges = audit_run(run, dataset, n=images, device=device)["badges"]
    look = probe_attack(Threat(**run.params()["threat"]))
    gap = measure_runs([run], dataset, look, n=max(images, LOOK))["relative_l2"].iloc[0]
    return {
        "method": name,
        "clean": f"{rows['clean']:.2f}",
        "worst case": f"{rows['worst']:.2f}",
        "headline": badges["headline"]["verdict"],
        "relative L2 gap": f"{gap:.2f}",
        "minutes": f"{(time.monotonic() - began) / 60:.1f}",
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", choices=PRESETS, default="cifar10")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--images", type=int, default=16, help="test images to attack")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    whole = load_dataset(options.dataset, root=options.data_root)
    dataset = replace(whole, train=whole.train.sample(256), val=whole.val.sample(64))
    with tempfile.TemporaryDirectory() as root:
        rows = []
        for name in options.methods:
            rows.append(smoke(name, dataset, options.images, options.device, root))
            print(rows[-1], flush=True)
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
