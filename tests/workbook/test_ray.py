"""Ray: a cluster of two nodes on this machine, of which one dies; drivers that die; a cluster that is lost."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from robustlib.errors import InputError
from robustlib.runs import Run, read_json
from robustlib.workbook.engines import device_type, run_all
from robustlib.workbook.task import Task
from tests import ROOT
from tests.methods.test_own_method import OWN
from tests.training_fixtures import tiny, train
from tests.workbook import wait_for
from tests.workbook.notebooks import WAIT, Notebook, maker, outputs

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head that executes one task at a time; started in a folder of its own."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        site = tmp_path_factory.mktemp("site")  # for Ray's processes, which would compile grammars for seconds each
        (site / "sitecustomize.py").write_text("import sys\nsys.modules['rfc3987_syntax'] = None\n")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
            made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        ray.init(address=made.address, log_to_driver=False)
        yield made
        with contextlib.suppress(Exception):
            ray.shutdown()
        for node in (made.head_node, *made.worker_nodes):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


@pytest.fixture
def make(tmp_path: Path) -> Notebook:
    return maker(tmp_path)


def test_what_nodes_do_not_see_or_have_is_a_sentence(cluster: Any, tmp_path: Path) -> None:
    assert device_type("ray", "auto", [tmp_path / "runs"], [str(ROOT)]) == "cpu"
    assert not list((tmp_path / "runs").iterdir())
    for device, files, options, sentence in (
        ("auto", [str(tmp_path / "gone")], {}, "does not see .*gone: put it in a folder that all nodes share"),
        ("cuda", [], {}, "'cuda': this machine has no such device.* Tasks see the GPUs that --gpus-per-task asks for"),
        ("auto", [], {"gpus_per_task": 0.5}, r"No node of the Ray cluster has a CPU and 0\.5 GPUs"),
    ):
        with pytest.raises(InputError, match=sentence):
            device_type("ray", device, [], files, **options)


@pytest.mark.slow
def test_paths_and_code_are_those_of_the_caller_and_who_dies_twice_is_killed(
    cluster: Any, make: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_defence.py").write_text(OWN)
    cell = "import os; from my_defence import MixedAT\n"
    cell += "print(MixedAT.name, os.getcwd() == word, repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    good, bad = make(cell, word=str(tmp_path)), make("1 / 0", name="bad")
    deadly = "import json, os, pathlib, time\nos.kill(json.loads(pathlib.Path(word).read_text())['pid'], 9)\ntime.sleep(3600)"
    dead = make(deadly, name="dead", word=str(tmp_path / "out" / "dead.status.json"))
    tasks = [Task(Path("note.ipynb"), good.parameters, Path("out/note.ipynb")), dead, bad]
    statuses = run_all(tasks, 2, engine="ray")
    assert [status["state"] for status in statuses] == ["done", "killed", "failed"]
    assert re.match(r"Its Ray worker died \(.*\), for the second time\.", statuses[1]["reason"])
    assert outputs(good) == "mixed_at True ''\n"


TRAIN = """
import pathlib, time
from robustlib.data import load_dataset
from tests.conftest import hardly_validated
from robustlib.training import fit
from robustlib.training.progress import Progress
from tests.training_fixtures import tiny
show = Progress.show
def wait_once(self, rows):
    mark = pathlib.Path(word) / "mark"
    if rows[-1]["epoch"] == 2 and not mark.exists():
        mark.touch()
        time.sleep(3600)
    show(self, rows)
Progress.show = wait_once
fit(tiny("standard", epochs=3), hardly_validated(load_dataset("digits")), root=word, device="cpu")
"""


def test_a_node_that_dies_takes_its_task_only_which_ends_with_the_same_numbers(
    cluster: Any, make: Notebook, tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    mark, other, release = (tmp_path / name for name in ("mark", "other", "release"))
    meet = f"import pathlib, time\npathlib.Path(word).touch()\nwhile not pathlib.Path({str(release)!r}).exists():\n"
    pair = [make(meet + "    time.sleep(.1)", name="other", word=str(other)), make(TRAIN, word=str(tmp_path))]
    nodes, seen, listed = list[Any](), list[tuple[str, str]](), list[Any]()

    def follow(statuses: list[dict[str, Any]]) -> None:
        seen.append((statuses[1]["state"], statuses[1]["reason"]))
        assert seen[-1][0] != "failed", seen[-1]
        if other.exists() and not nodes:  # which keeps the head busy
            nodes.append(cluster.add_node(num_cpus=1))
        elif mark.exists() and not release.exists():
            listed.extend(ray.nodes())
            cluster.remove_node(nodes[0], allow_graceful=False)
            release.touch()

    assert [status["state"] for status in run_all(pair, 2, follow, engine="ray")] == ["done", "done"]
    (again,) = {reason for state, reason in seen if state == "queued" and reason}
    assert again.startswith("Its Ray worker died (Task failed because the node it was running on is dead")
    (run,) = [Run(file.parent) for file in tmp_path.rglob("params.json")]
    undisturbed = train(tiny("standard", epochs=3), few, tmp_path / "undisturbed")
    for which in ("best", "last"):
        one, two = (each.model(which).state_dict() for each in (run, undisturbed))
        assert all(torch.equal(one[name], two[name]) for name in two)
    assert [row.seconds == 0 for row in run.metrics().itertuples()] == [True] + 3 * [False]

    # one that dies between being listed and being asked
    head = ray.get_runtime_context().get_node_id()
    for of, answer in ((listed, "cpu"), ([node for node in listed if node["NodeID"] != head], "All nodes .* died")):
        monkeypatch.setattr(ray, "nodes", lambda of=of: of)
        with nullcontext() if of is listed else pytest.raises(InputError, match=answer):
            assert device_type("ray", "auto") == answer


DRIVER = """
import sys
from pathlib import Path
from robustlib.workbook.engines import run_all
from robustlib.workbook.task import Task
tasks = [Task(Path(sys.argv[1]), {"word": sys.argv[2] + str(n)}, Path(sys.argv[2] + f"{n}.ipynb")) for n in range(2)]
print([status["state"] for status in run_all(tasks, engine="ray", address=sys.argv[3])])
"""


def driver(make: Notebook, mark: Path, address: str) -> tuple[subprocess.Popen[str], list[Task]]:
    """A process that executes a notebook on the cluster, with another one queued."""
    command = [sys.executable, "-c", DRIVER, str(make(WAIT).notebook), str(mark), address]
    made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for(lambda: Path(f"{mark}0").exists())
    return made, [Task(Path(), {}, Path(f"{mark}{n}.ipynb")) for n in range(2)]


def states(tasks: list[Task]) -> list[str]:
    """As they stand in the files."""
    return [read_json(task.status_path)["state"] for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_death_of_the_driver_leaves_nothing_running(
    cluster: Any, make: Notebook, tmp_path: Path, number: int
) -> None:
    made, tasks = driver(make, tmp_path / "mark", cluster.address)
    made.send_signal(number)
    made.communicate()
    wait_for(lambda: "running" not in states(tasks))
    assert states(tasks) == ["interrupted", "interrupted" if number == signal.SIGINT else "queued"]


@pytest.mark.slow
def test_a_lost_cluster_leaves_nothing_running(cluster: Any, make: Notebook, tmp_path: Path) -> None:
    made, tasks = driver(make, tmp_path / "mark", cluster.address)
    for node in (cluster.head_node, *cluster.worker_nodes):
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    said, _ = made.communicate()
    assert made.returncode == 0
    assert "['killed', 'killed']" in said, "among Ray's own words"
    assert all("The Ray cluster at" in read_json(task.status_path)["reason"] for task in tasks)
