"""The explorer without a browser: what is computed once, what its controls do, and what it says when it cannot."""

import asyncio
import io
import re
import shutil
import threading
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from robustlib.errors import InputError
from robustlib.evaluation import accuracy
from robustlib.models import Classifier
from robustlib.representation import runs as stored
from robustlib.runs import Run, find_runs, write_json
from robustlib.workbook.explorer import Explorer, app, explore, explorer_attacks, make_grid, snapshot
from robustlib.workbook.explorer.board import FeatureMap
from robustlib.workbook.explorer.projection import Projection, pca_projection, umap_projection
from robustlib.workbook.report.clean import clean
from tests.training_fixtures import altered

N = 40


@pytest.fixture(scope="module")
def opened(tmp_path_factory, few):
    """What `explore` leaves where there are no runs, its two trainings being tiny here."""
    root, data = tmp_path_factory.mktemp("explored"), replace(few, train=few.train.sample(300))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(app, "SMALL", {"standard": 2, "pgd_at": 2})
        patch.setattr(app, "load_dataset", lambda *_, **__: data)
        explorer = explore(root, examples=8, neighbours=3, layer="logits")
    kept = list(explorer.board.run.value.path.glob("features/*"))
    return SimpleNamespace(root=root, explorer=explorer, printed=printed.getvalue(), kept=kept)


@pytest.fixture(scope="module")
def root(opened):
    return opened.root


@pytest.fixture(scope="module")
def grid(root, digits):
    return make_grid(find_runs(root)[1], digits, "FGSM", n=N)


def loaded(dataset, runs) -> Explorer:
    made = Explorer(dataset, runs, examples=N, neighbours=5)
    made.board.attack.value = "FGSM"  # loads, since FGSM was not chosen before
    return made


@pytest.fixture
def explorer(root, digits):
    return loaded(digits, find_runs(root))


def test_a_saved_notebook_shows_a_sentence_and_a_picture(opened, monkeypatch):
    assert "Run this notebook in JupyterLab" in opened.printed
    assert "How the explorer opened. standard" in opened.printed
    bundles = []
    monkeypatch.setattr(snapshot, "_display", lambda bundle, _: bundles.append(bundle))
    snapshot.show_widget(opened.explorer.widget)
    opened.explorer.save()
    live, saved = bundles
    assert (live["text/plain"], "application/vnd.jupyter.widget-view+json" in live) == (snapshot.NEEDED, True)
    assert "Maps of clean and adversarial features of 8 images" in saved["text/html"]
    assert 'src="data:image/png;base64,' in clean(saved["text/html"]), "a report shows it"
    assert f".{snapshot.HIDDEN} {{ display: none; }}" in (Path(app.__file__).parent / "style.css").read_text()


@pytest.fixture
def board(explorer):
    return explorer.board


def test_a_grid_goes_from_clean_to_twice_the_threat_with_the_accuracies_of_its_logits(grid, digits):
    assert np.allclose(grid.radii, np.arange(9) * 0.05)
    sizes = [(step.images.int() - grid.clean.images.int()).abs().amax() / 255 for step in grid.steps]
    assert all(size <= eps + 0.003 for size, eps in zip(sizes, grid.radii, strict=True))
    assert sizes[0] == 0 < sizes[1]
    assert grid.clean.images.equal(digits.test.sample(N).images)
    assert grid.is_adversarial(0).sum() == 0
    right = int((grid.steps[4].predictions == grid.steps[4].labels).sum())
    assert grid.curve(torch.ones(N, dtype=torch.bool))[4] == {"eps": grid.radii[4], **accuracy(right, N)}
    of_class = grid.clean.labels == 3
    assert [row["n"] for row in grid.curve(of_class)] == [int(of_class.sum())] * 9
    p = grid.probabilities(3, 4)
    assert float(p.sum()) == pytest.approx(1)
    assert int(p.argmax()) == int(grid.steps[4].predictions[3])


def test_neighbours_are_the_nearest_by_cosine_and_never_the_image_itself(grid):
    unit = [torch.nn.functional.normalize(step["features"], dim=1) for step in (grid.clean, grid.steps[5])]
    likeness = unit[1][7] @ unit[0].T
    likeness[7] = -2
    assert grid.neighbours("features", 7, 5, 6).tolist() == likeness.argsort(descending=True)[:6].tolist()
    assert 7 not in grid.neighbours("features", 7, 0, N - 1).tolist()


def test_a_second_opening_attacks_nothing(grid, root, digits, monkeypatch):
    monkeypatch.setattr(stored, "features", None)
    calls = []
    again = make_grid(find_runs(root)[1], digits, "FGSM", n=N, report=lambda *args: calls.append(args))
    assert again.steps[8]["features"].equal(grid.steps[8]["features"])
    assert [(done, total) for done, total, _ in calls] == [(k, 8) for k in range(8)]
    with pytest.raises(InputError, match="Unknown attack of the explorer 'PGD-30'"):
        make_grid(find_runs(root)[1], digits, "PGD-30", n=N)
    for stochastic, draws in ((True, 8), (False, 1)):
        assert {attack.eot for attack in explorer_attacks(digits.threat, stochastic=stochastic).values()} == {draws}


def shown(board) -> dict[str, object]:
    panels = {name: getattr(board, name).value for name in ("pictures", "bars", "near", "curve", "note")}
    return panels | {"moving": board.map.moving, "still": board.map.still}


def html_of(board) -> str:
    return "".join(value for value in shown(board).values() if isinstance(value, str))


def changed(board, before: dict[str, object]) -> set[str]:
    return {name for name, value in shown(board).items() if value != before[name]}


def test_a_slider_move_asks_no_model_and_moves_what_depends_on_eps(explorer, board, monkeypatch):
    assert explorer.grid.radii[board.eps.value] == 0.2
    assert board.eps.options[board.eps.value] == "0.2 (threat model)"
    assert [len(board.map.moving[name]) for name in ("path", "crosses")] == [5, N]
    monkeypatch.setattr(Classifier, "forward", None)
    monkeypatch.setattr(app, "make_grid", None)
    before = shown(board)
    board.eps.value = 8
    assert changed(board, before) == {"pictures", "bars", "near", "curve", "moving"}
    assert "eps 0.4" in board.pictures.value
    for control, value in {"image": 5, "layer": "encoder.stage1", "label": 2}.items():
        before = shown(board)
        getattr(board, control).value = value
        assert changed(board, before), control
    board.eps.value = 0
    assert "moved by <b>0 %</b> of their length" in board.near.value


def test_a_click_on_the_map_and_buttons_choose_the_image(explorer, board):
    other = next(k for k in range(N) if int(explorer.split.labels[k]) != 0)
    board.label.value = 0
    assert [int(explorer.split.labels[place]) for _, place in board.image.options] == [0] * len(board.image.options)
    board.map.clicked = [other, 1]
    assert (board.image.value, board.label.value) == (other, -1)
    assert f"Image {other}:" in board.pictures.value
    board.eps.value, board.image.value = 8, 0
    fooled = next(place for place in explorer.grid.is_adversarial(8).nonzero().flatten().tolist() if place > 0)
    for button, image in ((board.back, N - 1), (board.forth, 0), (board.fooled, fooled)):
        button.click()
        assert board.image.value == image
    board.eps.value = 0
    board.fooled.click()
    assert "No image of any class is fooled at eps 0: take a larger eps" in board.status.said


def test_another_run_shows_the_same_image(explorer, board):
    board.image.value, before = 9, explorer.grid
    (title, _), (_, other) = board.run.options
    assert title.startswith("PGD adversarial training · small_cnn · seed 0 · epochs=2")
    board.run.value = other
    assert explorer.grid is not before
    assert (board.image.value, board.status.doing) == (9, "")


def test_two_runs_share_one_slider_one_image_and_one_map(explorer, board, root, digits):
    first, other = (run for _, run in board.run.options)
    board.second.value, board.eps.value, board.image.value = other, 8, 3
    assert len(board.sides) == 2
    titles = [side.title.value for side in board.sides]
    assert all(words in title for words, title in zip(("PGD adversarial", "Standard"), titles, strict=True))
    frames = [side.map.still["frame"] for side in board.sides]
    assert frames[0] == frames[1]
    for side in board.sides:
        low, high = np.array(frames[0][:2]), np.array(frames[0][2:])
        crosses = np.array(side.map.moving["crosses"])
        assert ((crosses >= low - 1e-3) & (crosses <= high + 1e-3)).all()
        assert "Image 3:" in side.pictures.value
        assert "orthogonal Procrustes" in side.note.value
    assert board.map.moving["crosses"] != board.beside.map.moving["crosses"]
    grids = [make_grid(run, digits, "FGSM", n=N) for run in (first, other)]
    assert board.beside.curve.value.count("circle") == board.curve.value.count("circle") > 0
    said = board.status.said
    board.beside.map.clicked = [5, 1]
    assert (board.image.value, board.status.said == said) == (5, False)
    board.second.value = None
    assert (len(board.sides), board.title.value) == (1, "")
    assert "Procrustes" not in board.note.value
    turned, same = pca_projection([(grids[0], "features"), (turn(grids[0]), "features")])
    assert np.allclose(turned.points, same.points, atol=1e-4), "the same network in other coordinates is the same map"
    wider = turn(grids[0], 7)
    both = pca_projection([(grids[0], "features"), (wider, "features")])
    assert "dimensions" in both[0].note
    assert np.allclose(both[0].points, both[1].points, atol=1e-4)


def turn(grid, more: int = 0):
    """The same answers in other coordinates, and in more of them."""
    width = grid.clean["features"].shape[1]
    turned, _ = torch.linalg.qr(torch.randn(width + more, width, generator=torch.Generator().manual_seed(0)))
    layers = lambda step: {**step.layers, "features": step.layers["features"] @ turned.T}  # noqa: E731
    return replace(grid, steps=tuple(replace(step, layers=layers(step)) for step in grid.steps))


def test_the_explorer_opens_with_two_runs_or_says_why_not(root, digits, monkeypatch):
    made, runs = Explorer(digits, find_runs(root), examples=8, neighbours=3), find_runs(root)
    made.open(runs[1].path, runs[0].path)
    assert [grid.run for grid in made._shown] == [runs[1], runs[0]]
    with pytest.raises(InputError, match="Unknown run"):
        made.open(root / "gone")
    other = replace(make_grid(runs[0], digits, "PGD-20", n=8), radii=(0.0, 0.1))
    monkeypatch.setitem(made._grids, (str(runs[0].path), "PGD-20"), other)
    with pytest.raises(InputError, match="trained for another threat"):
        made.open(runs[1].path, runs[0].path)
    assert made.board.second.value == runs[0], "what was shown before stays"


@pytest.fixture
def umap(monkeypatch):
    """In place of UMAP: a list of the layers that a map was made of, or what it raises."""

    def project(places, seed):
        made.calls.append(places[0][1])
        made.go.wait(30)
        if made.error:
            raise made.error
        return tuple(Projection(np.zeros((9, N, 2)), "a map") for _ in places)

    made = SimpleNamespace(calls=[], error=None, go=threading.Event())
    made.go.set()
    monkeypatch.setattr(app, "umap_projection", project)
    return made


def test_umap_is_made_on_request_and_once(board, umap):
    for view, note in (("UMAP", "a map"), ("PCA", "PCA of clean"), ("UMAP", "a map")):
        board.view.value = view
        assert note in board.note.value
    assert umap.calls == ["features"]


def test_a_umap_in_a_notebook_leaves_the_last_sentence_and_its_failure_is_told_and_not_repeated(explorer, board, umap):
    """In a running loop the map is made in a task that nobody awaits."""

    async def in_a_notebook():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        umap.go.clear()
        board.view.value = "UMAP"
        await asyncio.sleep(0.1)
        assert board.status.doing.startswith("UMAP, 0 s")
        board.view.value, board.image.value = "PCA", 7
        umap.go.set()
        await explorer._task
        assert board.status.said.startswith("Image 7, class"), "the map is not wanted any more"
        for calls in (2, 3):  # asked for again
            board.view.value = "UMAP"
            await explorer._task
            assert board.status.said.endswith("MemoryError: <no> room")
            board.image.value, board.eps.value = calls, 8
            assert explorer._task.done()
            assert "MemoryError: &lt;no&gt; room" in board.note.value
            assert len(umap.calls) == calls
            board.view.value = "PCA"
            assert "room" not in board.note.value
        del explorer._task

    unheard, umap.error = [], MemoryError("<no> room")
    asyncio.run(in_a_notebook())
    assert (unheard, board.status.doing) == ([], "")


def test_a_run_or_an_attack_that_cannot_be_loaded_is_told_and_another_can_be_chosen(root, digits, monkeypatch):
    runs = find_runs(root)
    with monkeypatch.context() as patch:
        patch.setattr(app, "make_grid", None)
        board = loaded(digits, runs).board
    board.fooled.click()
    assert board.status.said == "Nothing is loaded: choose another run or attack."
    board.run.value = runs[1]
    assert board.status.said.startswith("Image 0, class")
    monkeypatch.setattr(app, "make_grid", None)
    board.attack.value = "APGD-CE"
    assert board.status.said == "TypeError: 'NoneType' object is not callable"
    assert board.attack.value == "FGSM", "what failed is not shown as chosen"


def test_a_run_deleted_meanwhile_leaves_everything_as_it_was(root, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("robustlib.representation.embedding._umap", lambda u, start, _: start.copy())
    shutil.copytree(root, tmp_path / "runs")
    first, second = find_runs(tmp_path / "runs")
    explorer = loaded(digits, [first, second])
    shutil.rmtree(tmp_path / "runs")
    board = explorer.board
    board.eps.value = 7  # what is loaded needs no file
    assert "at eps 0.35" in board.status.said
    before = shown(board)
    board.run.set_state({"index": 1})  # as from the browser
    assert f"There is no finished run in {second.path} any more" in board.status.said
    assert (board.run.value, explorer.grid.run, changed(board, before)) == (first, first, set())
    umap_projection([(explorer.grid, "logits")], 0)
    assert not first.path.exists()


def test_everything_that_is_drawn_has_words(board):
    html = html_of(board)
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 3 + 5
    assert all(re.search(r'alt="[^"]{8,}"', image) for image in images)
    assert 'aria-label="Accuracy of 40 images under FGSM alone: ' in html
    assert "http" not in html
    assert "Chosen: image 0, eps 0.2" in board.map.moving["alt"]


def test_a_class_without_survivors_is_told(explorer, board):
    survivors = [explorer.grid.steps[8].correct[explorer.split.labels == k].sum() for k in range(10)]
    assert min(survivors) == 0
    board.label.value, board.eps.value = int(np.argmin(survivors)), 8
    words = r"None of the \d images of class \d survives</b> FGSM at eps 0.4: take a smaller eps"
    assert re.search(words, board.curve.value)


def test_names_and_messages_are_words_and_never_tags(root, digits):
    odd = replace(digits, class_names=tuple(f"<b>{k}</b>&" for k in range(10)))
    board = loaded(odd, find_runs(root)).board
    for label in (8, 9):
        board.label.value = label
        assert not re.search(r"<b>\d</b>&", html_of(board))
    assert "images of class &lt;b&gt;9&lt;/b&gt;&amp;" in board.curve.value
    assert "class <b>9</b>&" in board.status.said  # plain text, as its widget shows it


@pytest.mark.parametrize(("classes", "colours", "words"), [(10, 10, "in the colour of the class"), (11, 1, "(blue)")])
def test_the_legend_says_what_the_colours_mean(classes, colours, words):
    grid = SimpleNamespace(radii=[0.0], steps=[SimpleNamespace(predictions=torch.arange(classes))])
    made = FeatureMap(np.arange(classes), [str(k) for k in range(classes)])
    made.draw(Projection(np.zeros((1, classes, 2)), ""), grid, 0, 0, np.ones(classes, bool))
    assert len(set(made.still["colours"][0])) == colours
    assert words in made.legend


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": "stage9", "examples": N}, "Unknown layer 'stage9'.*features, logits, stage1, stage2, stage3"),
        ({"examples": 8}, "10 neighbours among 7 examples"),
        ({"examples": -5}, "n=-5: give a whole number of at least 0"),
        ({"neighbours": "5"}, "neighbours='5': give a whole number"),
        ({"seed": -1}, "seed=-1: give a whole number of at least 0"),
        ({"runs": []}, "There are no runs"),
    ],
)
def test_what_cannot_be_looked_at_is_said_at_once(root, digits, options, sentence):
    with pytest.raises(InputError, match=sentence):
        Explorer(digits, **({"runs": find_runs(root)} | options))


def test_runs_of_no_or_two_data_sets(root, tmp_path):
    with pytest.raises(InputError, match=r"no finished runs in .*robustlib run.*train_missing"):
        explore(tmp_path, train_missing=False)
    with pytest.raises(InputError, match="no finished runs of mnist"):
        explore(tmp_path, dataset="mnist")
    assert not list(tmp_path.iterdir())
    shutil.copytree(root / "digits", tmp_path / "digits")
    for run in find_runs(tmp_path):
        altered(run, dataset="mnist")
    with pytest.raises(InputError, match=r"runs of digits and mnist.*dataset='digits'"):
        explore(tmp_path)
    assert len(app.finished_runs(tmp_path, "digits")) == 2
    for run in find_runs(tmp_path, dataset="digits"):
        altered(
            run, dataset="own-8px-01234567", images={"path": str(tmp_path / "gone"), "threat": run.params()["threat"]}
        )
    with pytest.raises(InputError, match=r"images of own-8px-01234567 are not at .*gone"):
        explore(tmp_path, dataset="own-8px-01234567")


def test_without_runs_two_small_baselines_are_trained_and_kept(opened, root):
    board, split = opened.explorer.board, opened.explorer.split
    offered = [label for _, label in board.label.options]
    assert offered == [-1, *sorted(set(split.labels.tolist()))], "only classes with images are offered"
    assert len(offered) < 11
    assert opened.printed.startswith("There are no finished runs in")
    assert [run.changes() for run in find_runs(root)] == [{"epochs": 2}] * 2
    assert (opened.explorer.dataset.name, board.layer.value, len(opened.kept)) == ("digits", "logits", 8)


HOSTILE = "'\"><script>hit()</script><img src=x onerror=hit()> [red]x[/] **x** [x](javascript:hit) $\\frac$"


def test_what_files_say_is_text_on_the_board(root, digits, tmp_path):
    """Of a stranger's run, its title, preset, changes and audit; of a folder of images, the names of its classes."""
    run = find_runs(root)[1]
    strange = Run(Path(shutil.copytree(run.path, tmp_path / run.place)))
    facts = {"title": HOSTILE, "preset": HOSTILE, "changes": {HOSTILE: HOSTILE}, "changed": HOSTILE}
    write_json(strange.path / "params.json", strange.params() | facts)
    write_json(strange.path / "audit.json", {"badges": {"headline": {"verdict": HOSTILE, "text": HOSTILE}}})
    board = loaded(replace(digits, class_names=(HOSTILE,) * 10), find_runs(tmp_path)).board
    ((title, _),) = board.run.options
    assert HOSTILE in title, "a choice, a slider and a sentence hold text"
    assert HOSTILE in board.status.said
    board.label.value = int(digits.test.sample(N).labels[0])
    assert HOSTILE in BeautifulSoup(board.curve.value, "html.parser").get_text(), "of class ..."
    made = BeautifulSoup(html_of(board), "html.parser")
    assert made.get_text().count(HOSTILE) > 10
    assert not made.find_all(["script", "a", "strong"])
    assert {node["src"].partition(",")[0] for node in made.find_all("img")} == {"data:image/png;base64"}
    assert not [name for node in made.find_all() for name in node.attrs if name.startswith("on")]
    scripts = [file.read_text() for file in Path(app.__file__).parent.glob("*.js")]
    assert len(scripts) == 3
    assert not [said for said in scripts if re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write", said)]
