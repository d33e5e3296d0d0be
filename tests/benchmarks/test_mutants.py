import mutants
import pytest

from tests import ROOT


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_changes_one_place_and_names_tests(mutant, tmp_path):
    copy = tmp_path / "robustlib" / mutant.file
    copy.parent.mkdir(parents=True)
    source = (ROOT / "robustlib" / mutant.file).read_text()
    copy.write_text(source)
    mutants.applied(mutant, tmp_path)
    changed = copy.read_text()
    assert changed != source
    compile(changed, mutant.file, "exec")
    assert mutant.tests
    for name in mutant.tests.split():
        assert (ROOT / mutants.test_file(name)).is_file()
    copy.write_text(source + source)
    with pytest.raises(ValueError, match="mend the list"):
        mutants.applied(mutant, tmp_path)


def test_the_table_counts_what_lives():
    rows = [{"mutant": "a", "caught by": "attacks"}, {"mutant": "b", "caught by": "**alive**"}]
    assert "- holds: at most 2 of 2 mutants live (1)" in mutants.report(rows)
    assert "does not hold" in mutants.report([{"mutant": "b", "caught by": "**alive**: why"}] * 3)
