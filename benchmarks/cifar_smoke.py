"""Does every method train, evaluate, audit and show its features on real CIFAR-10, MNIST or Imagenette? 256 images, an epoch a stage.

    python benchmarks/cifar_smoke.py --data-root DIR                       # all methods; minutes each on a CPU
    python benchmarks/cifar_smoke.py --data-root DIR --methods claf rep_spectral
    python benchmarks/cifar_smoke.py --data-root DIR --dataset mnist       # the networks of the digits preset: quicker
    python benchmarks/cifar_smoke.py --data-root DIR --dataset imagenette --methods atop --train 64 --images 1    # 160 x 160
    ... --dataset imagenette --size 64 --methods atop --set purifier=mae arch=resnet8_w48 --train 500 --write    # real photographs

The numbers mean nothing: it asks whether the pieces fit at this size, and models that answer at random meet few steps and draws.
CIFAR-10 is trained by its short preset, a ResNet-18, MNIST by that of the digits, Imagenette by its paper's, a ResNet-34. Runs
are made in a temporary directory. With --write the table becomes <data set>_smoke.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from side_by_side import markdown, write_report

from robustlib.audit import audit_run
from robustlib.audit import binarisation as binarise
from robustlib.data import Dataset, Split, load_dataset
from robustlib.evaluation import evaluate_run, protocols
from robustlib.evaluation import runs as run_results
from robustlib.methods import METHODS, atop, make_method, parse_overrides
from robustlib.representation import measure_runs, probe_attack
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training import fit
from robustlib.training.fit import resolve_device

PRESETS = {"cifar10": "cifar10-short", "mnist": "digits", "imagenette": "imagenette-paper"}  # a data set's recipes
BRIEF = dict.fromkeys(("pgd_eot", "autoattack", "stadv", "full", "bpda"), (4, 2))  # the budget of randomised models
BRIEF |= {"images": 16, "curve": 4, "queries": 20, "votes": 2, "defence": 4}
SPLITS = ("train", "val", "test")
LOOK = 40  # images whose features are compared: measures need two of each class


def lengths(name: str, preset: str) -> dict[str, int]:
    """Hyper-parameters by which each stage of a preset's method lasts one epoch."""
    usual = make_method(name, preset).hyperparameters()
    short = {field: 1 for field in usual if field == "epochs" or field.endswith("_epochs")}
    halved = [field.replace("burn_in", "epochs") for field in usual if field.endswith("burn_in") and usual[field]]
    halved += ["epochs"] * ("aug_epochs" in usual)
    whole = {name: least for name, least in (("warm_up", 0), ("repeats", 1)) if name in usual}
    return short | dict.fromkeys(halved, 2) | whole


def resized(split: Split, size: int) -> Split:
    """The same examples at `size` x `size` pixels, shifted by an eighth of that as before."""
    small = F.interpolate(split.images.float(), (size, size), mode="bilinear", antialias=True)
    policy = replace(split.policy, pad=size // 8)
    return replace(split, images=small.round().clamp(0, 255).to(torch.uint8), policy=policy)


def train(name: str, dataset: Dataset, device: str, root: str, changes: Mapping[str, Any]) -> Run:
    """A run of the method, each stage an epoch."""
    preset = PRESETS[dataset.name]
    method = make_method(name, preset, **lengths(name, preset) | changes)
    return fit(method, dataset, root=root, device=device, progress=False)


def trained(name: str, dataset: Dataset, device: str, root: str, changes: Mapping[str, Any]) -> dict[str, object]:
    """How long each stage took and what its last validation says, as a row of the table."""
    rows = train(name, dataset, device, root, changes).metrics()
    seconds = rows.groupby("stage", sort=False)["seconds"].sum()
    spent = ", ".join(f"{stage} {number:.0f}" for stage, number in seconds.items())
    last = {name: f"{rows[name].iloc[-1]:.2f}" for name in ("clean_val", "robust_val")}
    return {"method": name, "seconds, validation included": spent, **last}


def smoke(
    name: str, dataset: Dataset, images: int, device: str, root: str, changes: Mapping[str, Any]
) -> dict[str, object]:
    """What one method did, as a row of the table."""
    began = time.process_time()
    run = train(name, dataset, device, root, changes)
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
        "CPU-minutes": f"{(time.process_time() - began) / 60:.1f}",
    }


@contextmanager
def brief() -> Iterator[None]:
    """What randomised models are asked, for as long as it lasts: an epoch teaches a purifier nothing, and its stage would say so."""
    with (
        patch.multiple(atop, MAX_L1_SHARE=float("inf"), MAX_L1_SHARE_RT3=float("inf"), MAX_HIDDEN_SHARE=float("inf")),
        patch.object(protocols, "_section", return_value=BRIEF),
        patch.multiple(sys.modules["robustlib.audit.audit"], DRAWS=2, EOT=1),
        patch.object(binarise, "FITTED", 2),
        patch.object(protocols, "EOT", 1),
        patch.object(run_results, "EOT", 1),
    ):
        yield


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", choices=PRESETS, default="cifar10")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--train", type=int, default=256, help="training images")
    parser.add_argument("--train-only", action="store_true", help="no evaluation: how long does each stage take?")
    parser.add_argument("--images", type=int, default=16, help="test images to attack")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--size", type=int, default=0, help="pixels a side to which images are made smaller; 0 for none"
    )
    parser.add_argument("--set", nargs="*", default=[], help="changes of the preset, e.g. purifier=mae")
    parser.add_argument("--write", action="store_true", help="keep the table beside this script")
    options = parser.parse_args()
    changes, whole = parse_overrides(options.set), load_dataset(options.dataset, root=options.data_root)
    dataset = replace(whole, train=whole.train.sample(options.train), val=whole.val.sample(max(2, options.train // 4)))
    if options.size:
        dataset = replace(dataset, **{name: resized(getattr(dataset, name), options.size) for name in SPLITS})
    rows = []
    with tempfile.TemporaryDirectory() as root, brief():
        for name in options.methods:
            look = trained if options.train_only else partial(smoke, images=options.images)
            rows.append(look(name, dataset, device=options.device, root=root, changes=changes))
            print(rows[-1], flush=True)
    if not options.write:
        print(markdown(rows))
        return 0
    shape = "x".join(map(str, dataset.image_shape))
    title = f"Smoke: {options.dataset} at {shape}, {options.train} training images, an epoch a stage. Its numbers mean nothing"
    words = ["DIR" if word == options.data_root else word for word in sys.argv[1:]]
    command, device = f"python benchmarks/cifar_smoke.py {' '.join(words)}", resolve_device(options.device)
    return write_report(f"{options.dataset}_smoke.md", title, command, device, [markdown(rows)], {})


if __name__ == "__main__":
    sys.exit(main())
