"""Networks that nobody here wrote, from weights in a file to badge and feature gaps, and what torchvision's ResNet-18 costs.

    python benchmarks/foreign_networks.py                      # a quarter of an hour on one core; writes foreign_networks.md
    python benchmarks/foreign_networks.py --only resnet18 swin_t --trial      # some of them; writes nothing
    python benchmarks/foreign_networks.py --data-root data     # and ResNet-18 on CIFAR-10

Each network is trained for seconds on made-up images of coloured shapes: random weights would make attacks trivial. Networks of
packages that are not installed (timm, transformers, robustbench) are named and left out. CPU-seconds are those of this process.
"""

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from side_by_side import absent, left_out, markdown, write_report
from torch import nn

from robustlib.attacks import Threat
from robustlib.audit import audit_run, check_run
from robustlib.data import Dataset, load_dataset
from robustlib.evaluation import evaluate_run
from robustlib.representation import gap_table, layers, run_features
from robustlib.representation.measures import mean_gaps
from robustlib.representation.runs import probe_attack
from robustlib.runs import Run
from robustlib.runs.factories import build, factory_of

SANITY_SECONDS, LEARNT = 20, 0.6
NORMAL = {"mean": (0.55,) * 3, "std": (0.15,) * 3}  # with which some want their images
USUAL = {"mean": (0.0,), "std": (1.0,)}
THREADS = 2  # for ResNet-18 on CIFAR-10
FACTORIES = '''
import importlib.util
from pathlib import Path

from torch import nn


def sequential():
    """Works in place, drops out, has frozen weights and lies with channels last."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(4), nn.Dropout(0.3),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    )
    net[5].bias.requires_grad_(False)
    return net.to(memory_format=__import__("torch").channels_last)


def checkpointed():
    """Gradient checkpointing, in double precision."""
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2), nn.GELU())
            self.classifier = nn.Linear(32, 3)

        def forward(self, x):
            return self.classifier(checkpoint(self.body, x, use_reentrant=False).mean((2, 3)))

    return Net().double()


def vit():
    """Its answer is an object with logits."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))


def wide_resnet():
    """The file of the class alone: the package itself imports more than its users need."""
    place = Path(importlib.util.find_spec("robustbench").origin).parent / "model_zoo/architectures/dm_wide_resnet.py"
    spec = importlib.util.spec_from_file_location("dm_wide_resnet", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DMWideResNet(num_classes=3, depth=10, width=1, activation_fn=module.Swish)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(35, 32), nn.ReLU(), nn.Linear(32, 2))
'''


@dataclass(frozen=True)
class Foreign:
    """A network, what builds it, and how it is trained."""

    name: str
    package: str
    model: str  # as `robustlib benchmark` takes it, "" for a function of FACTORIES called like `name`
    arguments: dict[str, Any] = field(default_factory=dict)
    grey: bool = False  # 7 x 5 grey pixels in place of 32 x 32 colours
    steps: int = 60
    rate: float = 1e-3
    normal: bool = True  # whether it wants normalised images
    images: int = 8  # that are attacked; half of them in the audit


def registered(spec: str, steps: int = 60, rate: float = 1e-3, images: int = 8, **arguments: Any) -> Foreign:
    """One that a library builds by name, as "torchvision:resnet18"."""
    library, _, name = spec.partition(":")
    return Foreign(name, library, spec, arguments, steps=steps, rate=rate, images=images)


NETWORKS = (
    registered("torchvision:resnet18"),
    registered("torchvision:vgg11_bn", steps=12, rate=2e-4, images=4),
    registered("torchvision:densenet121"),
    registered("torchvision:mobilenet_v3_small", steps=120),
    registered("torchvision:vit_b_16", steps=10, rate=1e-4, images=4, image_size=32),
    registered("torchvision:swin_t", images=4),
    registered("timm:vit_tiny_patch16_224", img_size=32),
    registered("timm:convnext_atto"),
    Foreign("sequential", "torch", "", steps=150, rate=1e-2, normal=False),
    Foreign("checkpointed", "torch", "", steps=150, rate=3e-3, normal=False),
    Foreign("vit", "transformers", "", steps=100),
    Foreign("wide_resnet", "robustbench", "", rate=1e-2),
    Foreign("mlp", "torch", "", grey=True, steps=100, rate=1e-2, normal=False),
)


def shapes(n: int = 600, size: int = 32) -> Dataset:
    """Discs, squares and bars on noise, faintly red, green or blue: three classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    at = (torch.stack(torch.meshgrid(*2 * [torch.arange(size)], indexing="ij")) + 0.5) / size - 0.5
    rows, columns = (at[:, None] + 0.2 * (torch.rand(2, n, 1, 1, generator=generator) - 0.5)).abs()
    drawn = torch.stack([rows**2 + columns**2 < 0.08, torch.maximum(rows, columns) < 0.22, rows < 0.12])
    tint = 0.12 * torch.eye(3)[y] + 0.05 * torch.rand(n, 3, generator=generator)
    noise = 0.35 + 0.3 * torch.rand(n, 3, size, size, generator=generator)
    x = noise + tint[:, :, None, None] * drawn[y, torch.arange(n)][:, None]
    return Dataset.of(x, y, name="shapes", class_names=("disc", "square", "bar"), threat=Threat("linf", 8 / 255))


def bars(n: int = 400) -> Dataset:
    """Upright and lying bars, 7 x 5 grey pixels: two classes."""
    generator, y, x = torch.Generator().manual_seed(0), torch.arange(n) % 2, torch.zeros(n, 1, 7, 5)
    x[y == 0, :, :, 2], x[y == 1, :, 3] = 0.6, 0.6
    x += 0.4 * torch.rand(x.shape, generator=generator)
    return Dataset.of(x, y, name="bars", class_names=("upright", "lying"), threat=Threat("linf", 0.2))


def trained(one: Foreign, model: str, dataset: Dataset) -> nn.Module:
    """The network after some steps of Adam, in eval mode."""
    torch.manual_seed(0)
    factory, text = factory_of(model)
    net = build(factory, one.arguments, dataset.num_classes, text).train()
    dtype = next(net.parameters()).dtype
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.2  # with MobileNet's own 0.01 the averages would still be those of the first steps
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], one.rate)
    mean, std = (torch.tensor(NORMAL[key] if one.normal else usual).view(1, -1, 1, 1) for key, usual in USUAL.items())
    for _ in range(one.steps):
        rows = torch.randint(len(dataset.train), (32,))
        answer = net(((dataset.train.images[rows] / 255 - mean) / std).to(dtype))
        loss = nn.functional.cross_entropy(getattr(answer, "logits", answer), dataset.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


class Stopwatch(Counter[str]):
    """CPU-seconds by what they were spent on."""

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Counts what is done inside under `name`."""
        started = time.process_time()
        try:
            yield
        finally:
            self[name] += time.process_time() - started


def feature_spaces(run: Run, dataset: Dataset, n: int) -> tuple[int, int, int]:
    """The length of the features, how many layers are listed, and at how many of them gaps are finite."""
    attack, names = probe_attack(dataset.threat), layers(run.model())
    clean, _ = run_features(run, dataset, attack, n=n)
    table = gap_table([run], dataset, attack, layers=names, n=4)
    finite = table[list(mean_gaps(*2 * [torch.ones(2, 2)]))].map(math.isfinite).all(axis=1)
    return next(iter(clean.layers.values())).shape[1], len(names), int(finite.sum())


def tried(one: Foreign, folder: Path) -> tuple[dict[str, object], dict[str, bool], float]:
    """A row of the table, what is claimed of it, and the seconds of its sanity page."""
    torch.set_num_threads(1)
    dataset = bars() if one.grey else shapes()
    model, spent = one.model or f"{folder / 'factories.py'}:{one.name}", Stopwatch()
    with spent.on("training"):
        net = trained(one, model, dataset)
    torch.save({"state_dict": net.state_dict()}, file := folder / f"{one.name}.pt")
    asked: dict[str, Any] = {"weights": file, "arguments": one.arguments, "root": folder / "runs"}
    asked |= NORMAL if one.normal else {}
    run = Run.from_model(model, dataset, **asked)
    with spent.on("sanity page"):
        found = check_run(run, dataset, device="cpu")
    with spent.on("attacks"):
        rows = evaluate_run(run, dataset, n=one.images, device="cpu")["rows"]
    with spent.on("audit"):
        badge = audit_run(run, dataset, n=one.images // 2, device="cpu")["badges"]["headline"]["verdict"]
    with spent.on("gaps"):
        width, listed, answered = feature_spaces(run, dataset, one.images)
    accuracy, facts, back = {row["attack"]: row["accuracy"] for row in rows}, run.params()["external"], run.model()
    x = dataset.test.images[:8].float() / 255
    with torch.no_grad():
        answer = net.float()(back.normalise(x))
        same = torch.allclose(getattr(answer, "logits", answer), back(x), atol=1e-4, rtol=1e-4)
    verdicts = Counter(finding.verdict for finding in found)
    row: dict[str, object] = {"network": one.name, "from": f"{one.package} {versions(one.package)}"}
    row["images"] = one.images
    row["parameters"] = f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M"
    row |= {"sanity": ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())}
    row |= {"clean": f"{accuracy['clean']:.0%}", "worst case": f"{accuracy['worst']:.0%}", "badge": badge}
    row |= {"features": f"{facts['last_linear'] or 'logits'}, {width}", "layers": f"{answered} of {listed}"}
    row |= {name: f"{spent[name]:.1f}" for name in ("training", "sanity page", "attacks", "audit", "gaps")}
    row["noted"] = " ".join([f.text for f in found if f.verdict != "pass"] + run.params()["about"]["said"][1:])
    claims = {"read back from its factory, it answers as it did": same, "the same network is the same run": False}
    claims["the same network is the same run"] = Run.from_model(model, dataset, **asked) == run
    claims["it was right for more than 60 % without attack"] = accuracy["clean"] > LEARNT
    claims["gaps are finite at every layer that is listed"] = listed == answered
    return row, claims, spent["sanity page"]


def versions(package: str) -> str:
    """The version of an installed package, "" of one that names none."""
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def failed(one: Foreign, error: Exception) -> dict[str, object]:
    """The row of a network that got stuck."""
    return {"network": one.name, "from": one.package, "noted": f"{type(error).__name__}: {str(error)[:200]}"}


def resnet_on_cifar(root: str, examples: int, folder: Path) -> tuple[str, float]:
    """What the standard suite costs on torchvision's ResNet-18 at 32 px, in sentences, and the seconds of its sanity page.

    At 8/255 nothing survives of a network that saw no attack in training, and the suite ends early; at 0.25/255 many images meet all of
    it, as those of a robust network do.
    """
    torch.set_num_threads(THREADS)
    dataset, spent, said = load_dataset("cifar10", root=root), Stopwatch(), []
    one = registered("torchvision:resnet18", steps=600)
    torch.save(trained(one, one.model, dataset).state_dict(), file := folder / "cifar.pt")
    for eps in (8, 0.25):
        settings: dict[str, Any] = {"threat": Threat("linf", eps / 255), **NORMAL}
        run = Run.from_model(one.model, dataset, weights=file, root=folder / "runs", **settings)
        with spent.on("sanity page"):
            check_run(run, dataset, device="cpu")
        began = time.perf_counter()
        with spent.on(f"{eps}"):
            rows = evaluate_run(run, dataset, n=examples, device="cpu")["rows"]
        minutes = (time.perf_counter() - began) / 60
        clean, worst = (next(row["accuracy"] for row in rows if row["attack"] == name) for name in ("clean", "worst"))
        text = f"- at {eps}/255 (clean {clean:.0%}, worst case {worst:.0%}): {spent[f'{eps}']:.0f} CPU-seconds"
        said.append(f"{text}, {minutes:.1f} minutes on {THREADS} threads")
    head = f"The standard suite on torchvision's ResNet-18 at 32 px, {examples} CIFAR-10 images:\n\n"
    return head + "\n".join(said) + "\n", spent["sanity page"] / 2


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in NETWORKS], help="these networks alone")
    parser.add_argument("--data-root", default="", help="where CIFAR-10 is; without it ResNet-18 is not timed on it")
    parser.add_argument("--examples", type=int, default=256, help="CIFAR-10 images")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = [one for one in NETWORKS if one.name in (options.only or [one.name])]
    missing = absent(dict.fromkeys(one.package for one in asked))
    rows, sanity = list[dict[str, object]](), list[float]()
    holds: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        folder = Path(place)
        (folder / "factories.py").write_text(FACTORIES)
        there = [one for one in asked if one.package not in missing]
        timed = pool.submit(resnet_on_cifar, options.data_root, options.examples, folder) if options.data_root else None
        for one, result in [(one, pool.submit(tried, one, folder)) for one in there]:
            try:
                row, claims, seconds = result.result()
            except Exception as error:  # the table says it
                row, claims, seconds = failed(one, error), {"it came through": False}, 0.0
            print(row, flush=True)
            rows.append(row)
            sanity.append(seconds)
            for claim, ok in claims.items():
                holds.setdefault(claim, []).extend([one.name] * (not ok))
        columns = max(rows, key=len)
        tables = [*left_out(missing), markdown([{name: row.get(name, "") for name in columns} for row in rows])]
        if timed:
            said, seconds = timed.result()
            tables, sanity = [*tables, said], [*sanity, seconds]
    verdicts = {f"{claim}{f' (not {chr(44).join(names)})' * bool(names)}": not names for claim, names in holds.items()}
    longest = max(sanity)
    verdicts[f"the sanity page takes at most {SANITY_SECONDS} CPU-seconds ({longest:.1f})"] = longest <= SANITY_SECONDS
    if options.trial:
        print(*tables, *(f"{ok}: {claim}" for claim, ok in verdicts.items()), sep="\n")
        return 0
    chosen = [f"--only {' '.join(options.only)}"] if options.only else []
    chosen += [f"--jobs {options.jobs}", *["--data-root data"] * bool(options.data_root)]
    command = " ".join(["python benchmarks/foreign_networks.py", *chosen])
    title = "Networks that nobody here wrote"
    return write_report("foreign_networks.md", title, command, torch.device("cpu"), tables, verdicts)


if __name__ == "__main__":
    sys.exit(main())
