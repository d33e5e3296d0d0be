"""The site's parts: generated text, rendered reports, and the check that nothing in it is broken or comes from elsewhere."""

import base64
from types import ModuleType

import nbformat
import pytest
import site_check
import site_parts
import site_reports
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from robustlib.errors import InputError
from robustlib.runs import find_runs
from robustlib.workbook.experiments import page
from robustlib.workbook.task import Task
from tests.benchmarks.test_export_reference import write_run


def test_links_of_the_readme_lead_to_the_repository():
    text = "![a](x/y.png) [b](reports/r.md) [c](https://host/d) [e](repo:f) [g](#h) 68.3 ± 1.3 %, −3.3 points (−5.6 to −1.1)"
    linked = site_parts.linked(text, "../../")
    assert linked.startswith("![a](../../x/y.png) [b](repo:reports/r.md) [c](https://host/d) [e](repo:f) [g](#h) ")
    assert "68.3\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}1.3\N{NO-BREAK SPACE}%, −3.3\N{NO-BREAK SPACE}points" in linked
    assert linked.endswith("(−5.6\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}−1.1)")


def test_the_api_has_every_public_name_and_none_without_words():
    pages = site_parts.api()
    assert set(pages) == {"index", *(package.replace(".", "-") for package in site_parts.PACKAGES)}
    assert ".. autoclass:: robustlib.attacks.PGD\n   :members:" in pages["attacks"]
    assert ".. autofunction:: robustlib.training.fit" in pages["training"]
    assert ".. py:data:: robustlib.methods.METHODS\n\n   The same by name." in pages["methods"]
    assert "LAYERS" not in pages["representation"]
    module = ModuleType("robustlib.bare")
    module.bare = lambda: None
    with pytest.raises(SystemExit, match=r"robustlib.bare.bare has no docstring"):
        site_parts._entry(module, "bare")
    import robustlib.threat

    with pytest.raises(SystemExit, match=r"robustlib.threat.TINY has no comment"):
        site_parts._entry(robustlib.threat, "TINY")


@pytest.fixture
def reports(tmp_path):
    """A finished run and its executed notebook, with a picture, and a comparison of it, as `robustlib run` leaves them."""
    write_run(tmp_path / "runs", "trades", 0, 340)
    (run,) = find_runs(tmp_path / "runs")
    Image.effect_noise((60, 60), 90).convert("RGB").save(tmp_path / "noise.png")
    png = base64.b64encode((tmp_path / "noise.png").read_bytes()).decode()
    for file in (page(run, tmp_path / "reports", "digits"), tmp_path / "reports" / "digits" / "compare.ipynb"):
        shown = new_output("display_data", {"image/png": png}, metadata={"image/png": {"alt": "noise"}})
        nb = new_notebook(cells=[new_markdown_cell("# A title"), new_code_cell("1", outputs=[shown])])
        nb.metadata["papermill"] = {"input_path": str(tmp_path / "trades.ipynb"), "parameters": {"seed": 0}}
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, file)
        Task(file, {}, file).record(state="done")
    return tmp_path


def test_reports_are_kept_small_and_rendered_anew(reports):
    names = site_reports.export("digits", reports / "runs", reports / "reports", reports / "kept")
    assert [name.partition("-")[0] for name in names] == ["trades", "compare.ipynb"]
    index = site_reports.render_all(reports / "site", reports / "kept")
    assert {file.relative_to(reports / "site").as_posix() for file in reports.glob("site/**/*.html")} == {
        "index.html",
        "digits/trades.html",
        "digits/compare.html",
    }
    assert 'href="digits/trades.html"' in index.read_text()
    text = (reports / "site" / "digits" / "trades.html").read_text()
    assert 'href="../index.html"' in text
    assert 'alt="noise"' in text
    assert str(reports) not in text
    assert not [*site_check.loaded_from_elsewhere(reports / "site"), *site_check.broken_links(reports / "site")]


def test_a_report_that_failed_is_not_exported(reports):
    failed = reports / "reports" / "digits" / "compare.ipynb"
    Task(failed, {}, failed).record(state="failed")
    with pytest.raises(InputError, match="did not end well"):
        site_reports.export("digits", reports / "runs", reports / "reports", reports / "kept")
    assert not (reports / "kept").exists()


def test_the_check_finds_what_is_broken_and_what_comes_from_elsewhere(tmp_path, capsys):
    here, repository = tmp_path / "index.html", site_parts.REPOSITORY
    good = f'<h1 id="top">A</h1><a href="#top">a</a><a href="b/c.html#d">b</a><a href="https://host/x">c</a><a href="{repository}README.md">d</a>'
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.html").write_text(
        '<p id="d"></p><link rel="canonical" href="https://host/y"><a href="../index.html">up</a>'
    )
    here.write_text(good)
    assert site_check.main([str(tmp_path)]) == 0
    elsewhere = (
        '<script src="https://host/a.js"></script><img src="//host/b.png"><style>@import "https://host/c.css"</style>'
    )
    broken = (
        f'<a href="none.html">x</a><a href="#bottom">y</a><a href="b/c.html#e">z</a><a href="{repository}none.md">w</a>'
    )
    here.write_text(good + elsewhere + broken)
    (tmp_path / "own.css").write_text("@font-face { src: url('https://host/f.woff') }")
    assert site_check.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    loaded = [line.rpartition(" loads ")[2] for line in said if " loads " in line]
    assert sorted(loaded) == ["//host/b.png", "https://host/a.js", "https://host/c.css", "https://host/f.woff"]
    named = [line.rpartition(" names ")[2] for line in said if " names " in line]
    assert sorted(named) == ["#bottom", "b/c.html#e", f"{repository}none.md", "none.html"]
