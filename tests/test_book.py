"""The book as files: pairs, outputs, addresses, versions, tables, links; and that a broken notebook fails the suite."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jupytext
import nbformat
import psutil
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

sys.path.insert(0, str(ROOT / "tools"))
import address
import book
import check
import runner

from recutils import settings

STEMS = sorted(p.stem for p in (ROOT / "notebooks").glob("*.md"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


@pytest.fixture(params=STEMS)
def notebook(request):
    return nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_every_notebook_has_its_pair_and_its_place_in_the_book():
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == STEMS and STEMS
    assert [p for p in book.pages() if p.startswith("notebooks/")] == [f"notebooks/{s}" for s in STEMS]


@pytest.mark.parametrize("stem", STEMS)
def test_pair_agrees(stem):
    md, ipynb = ROOT / "notebooks" / f"{stem}.md", ROOT / "notebooks" / f"{stem}.ipynb"
    assert runner.cells(jupytext.read(md)) == runner.cells(nbformat.read(ipynb, as_version=4))
    assert "jupytext_version" not in md.read_text()


def test_outputs_come_from_one_run(notebook):
    assert [c.execution_count for c in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    tagged = [c for c in code(notebook) if "nbval-check-output" in c.metadata.get("tags", [])]
    assert tagged and all(c.outputs for c in tagged)
    assert any("assert " in c.source for c in code(notebook))


def test_outputs_are_clean(notebook):
    """No path of a machine, no warning, no progress bar, no error, no changing address."""
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            shown = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if "image" not in k)]
            text = "\n".join(map(str, shown))
            found = re.search(
                r"(?<![\w.])/(?:root|home|tmp|work|opt|Users)/|it/s\]|Warning|Traceback|at 0x[0-9a-f]", text
            )
            assert not found, (found, cell.source)
    assert "language_info" not in notebook.metadata


def test_figures_have_alternative_text_and_are_not_empty(notebook):
    figures = [(c, o) for c in code(notebook) for o in c.outputs if "image/png" in o.get("data", {})]
    assert figures
    for cell, output in figures:
        assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40
        assert len(base64.b64decode(output.data["image/png"])) > 5000


def test_cells_stay_short(notebook):
    assert max(len(c.source.splitlines()) for c in code(notebook)) <= 25


@pytest.mark.parametrize("stem", STEMS)
def test_the_address_is_the_same_everywhere(stem):
    text = (ROOT / "notebooks" / f"{stem}.md").read_text()
    path = ADDRESS.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{stem}.ipynb"
    assert colab in text and f"{ADDRESS}/blob/main/notebooks/{stem}.md" in text
    assert re.search(rf'source = "recutils(\[\w+\])? @ git\+{ADDRESS}"\n', text)
    assert set(re.findall(r"github\.com/(what[\w-]*/[\w-]+)", text)) <= {path}


def test_the_address_in_the_other_places():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    assert config["html_theme_options"]["repository_url"] == ADDRESS
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == ADDRESS


# ------------------------------------------------------------------------------------ versions


def requirements(lines):
    found = map(Requirement, lines)
    return {r.name.lower().replace("_", "-"): r.specifier for r in found if r.name != "recutils"}


def test_conda_environment_mirrors_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    chapters = [name for name in extras if name not in ("test", "bench")]
    wanted = requirements(project["dependencies"] + [r for name in chapters for r in extras[name]])
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    names = {"matplotlib-base": "matplotlib", "python-duckdb": "duckdb", "pytorch": "torch", "redis-py": "redis"}
    conda = [re.sub(r"^[\w-]+", lambda m: names.get(m[0], m[0]), e) for e in listed if isinstance(e, str)]
    got = requirements([*conda, *(e for e in pip if not e.startswith("-e"))])
    assert got.pop("python") == Requirement(f"python{project['requires-python']}").specifier
    got.pop("pip")
    assert got == wanted and "-e .[book]" in pip


def test_pins_cover_every_requirement_and_lie_in_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirements(sum(project["optional-dependencies"].values(), project["dependencies"]))
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    if not lines:
        pytest.skip("constraints.txt is empty: a run with the newest versions.")
    pins = requirements(lines)
    for name, specifier in wanted.items():
        assert name in pins, f"{name} is not pinned"
        assert next(iter(pins[name])).version in specifier, name


# ------------------------------------------------------------------------------------ results, links


def test_result_rows_are_whole():
    kept = check.rows(ROOT / "data" / "results")
    fields = {"chapter", "model", "task", "split", "metric", "value", "low", "high", "n", "profile", "source"}
    assert {key[0] for key in kept} == set(STEMS)
    for row in kept.values():
        extra = {"configuration"} if row["source"] == "long_run" else set()
        assert set(row) == fields | extra and row["split"] in ("test", "validation")
        assert (row["source"], row["profile"]) in (("notebook", "cpu"), ("notebook", "gpu"), ("long_run", "long"))
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


def test_table_and_picture_of_the_readme_are_those_of_the_notebooks():
    text = (ROOT / "README.md").read_text()
    assert text.split("<!-- leaderboard -->\n")[1].split("\n<!-- end -->")[0] == book.table()
    assert (ROOT / "_static" / "islands.png").read_bytes() == book.picture()


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "intro.md",
        "mine_it_yourself.md",
        "data/README.md",
        "data/own_shop.md",
        *(f"notebooks/{s}.md" for s in STEMS),
    ],
)
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(r"```\{code-cell\}.*?\n```", "", (ROOT / page).read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http", "mailto")) and target != "executed.md":
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_no_machine_and_no_registry_in_any_text():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    registry = "|".join(["py" + "pi", "pythonhosted", "npm" + "js", "debian"])
    for name in tracked:
        if Path(name).suffix in {".js", ".png", ".ipynb", ".parquet"} or name.startswith("tests/"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(rf"https?://[\w.-]*(?:{registry})\.\w+", text), name
        assert not re.search(r"(?<![\w/.:~-])/(?:work|root|home)/\w", text), name


# ------------------------------------------------------------------------------------ can the suite fail?


@pytest.fixture(scope="module")
def excerpt():
    """The first pages of chapter 01, which run in seconds."""
    whole = nbformat.read(ROOT / "notebooks" / "01_data_preparation.ipynb", as_version=4)
    whole.cells = whole.cells[:9]
    return whole


def nbval(notebook, folder):
    nbformat.write(notebook, folder / "copy.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(folder / "copy.ipynb")], capture_output=True, text=True, cwd=folder, check=False
    )
    return run.returncode, re.sub(r"\x1b\[[\d;]*m", "", run.stdout)  # without colours


def test_the_suite_fails_when_a_notebook_is_broken(excerpt, tmp_path):
    """Both ways at once: a cell that raises, and after it one whose kept output is another."""
    status, said = nbval(excerpt, tmp_path)
    assert status == 0, said
    broken = nbformat.from_dict(json.loads(json.dumps(excerpt)))
    *_, raising, checked = code(broken)
    assert "nbval-check-output" in checked.metadata["tags"] and "lift 2.50" in checked.outputs[0].text
    checked.outputs[0].text = checked.outputs[0].text.replace("lift 2.50", "lift 2.60")
    raising.source += "\nraise RuntimeError('broken')"
    status, said = nbval(broken, tmp_path)
    assert status == 1 and f"2 failed, {len(code(broken)) - 2} passed" in said, said
    assert "RuntimeError: broken" in said and "lift 2.60" in said


# ------------------------------------------------------------------------------------ building the book


@pytest.fixture
def three(tmp_path):
    """Three small chapters; the second fails. Returns a function that starts the build in a process of its own."""
    head = (ROOT / "notebooks" / f"{STEMS[0]}.md").read_text().split("---")[1]
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for name, code in {"01_good": "print('fine')", "02_bad": "1 / 0", "03_good": "print('too')"}.items():
        (notebooks / f"{name}.md").write_text(f"---{head}---\n\n# {name}\n\n```{{code-cell}} ipython3\n{code}\n```\n")
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import runner, pathlib
runner.NOTEBOOKS = pathlib.Path({str(notebooks)!r})
sys.argv = ["runner", "run", {str(tmp_path / "out")!r}]
runner.main()
"""
    environment = {**os.environ, "RECUTILS_RESULTS": str(tmp_path / "results")}

    def build():
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)

    return notebooks, tmp_path / "out", build


def test_a_failing_notebook_is_marked_and_the_others_go_on(three):
    notebooks, out, build = three
    process = build()
    said = process.communicate()[0]
    assert process.returncode == 1 and "02_bad" in said and "FAILED in cell 2 of 2: ZeroDivisionError" in said
    page = nbformat.read(out / "02_bad.ipynb", as_version=4)
    assert "Cell 2 of 2 failed: ZeroDivisionError: division by zero" in page.cells[1].source
    assert "danger" in page.cells[1].source and "make lab" in page.cells[1].source
    assert nbformat.read(out / "03_good.ipynb", as_version=4).cells[1].outputs[0].text == "too\n"
    # Again: what is whole stays, what failed is executed anew, and what was mended is whole.
    bad = notebooks / "02_bad.md"
    bad.write_text(bad.read_text().replace("1 / 0", "1 / 2"))
    process = build()
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0 and [("executed before" in line) for line in said] == [True, False, True]


def test_ctrl_c_leaves_nothing_half_written_and_the_next_build_goes_on(three):
    notebooks, out, build = three
    started = out.parent / "started"
    slow = f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(300)"
    bad = notebooks / "02_bad.md"
    bad.write_text(bad.read_text().replace("1 / 0", slow))
    process, until = build(), time.monotonic() + 120
    while not (started.exists() and started.read_text()) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "goes on from there" in said
    assert sorted(p.name for p in out.iterdir()) == ["01_good.ipynb", "01_good.run.json"]
    while psutil.pid_exists(int(started.read_text())) and time.monotonic() < until:
        time.sleep(0.2)
    assert not psutil.pid_exists(int(started.read_text()))
    bad.write_text(bad.read_text().replace(slow, "1 / 2"))
    process = build()
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0 and [("executed before" in line) for line in said] == [True, False, False]


@pytest.mark.slow
def test_a_chapter_that_reads_the_rows_of_others_is_executed_again_when_these_change(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("RECUTILS_RESULTS", str(tmp_path))
    (tmp_path / "05_reads.md").write_text("evaluate.leaderboard(evaluate.read_results())")
    (tmp_path / "04_does_not.md").write_text("nothing")
    before = [runner.run_key("05_reads"), runner.run_key("04_does_not")]
    (tmp_path / "02_words.json").write_text("[1]")
    now = runner.run_key("05_reads")
    assert now != before[0] and runner.run_key("04_does_not") == before[1]
    for later in ("05_reads.json", "05b_later.json"):  # its own, and what a run of a later chapter makes
        (tmp_path / later).write_text("[1]")
        assert runner.run_key("05_reads") == now
    monkeypatch.setattr(settings, "REPOSITORY_RESULTS", tmp_path)  # rows of a later chapter that came with a clone
    with_later = runner.run_key("05_reads")
    (tmp_path / "05_reads.json").write_text("[2]")
    assert runner.run_key("05_reads") == with_later
    (tmp_path / "05b_later.json").write_text("[2]")
    assert runner.run_key("05_reads") != with_later


# ------------------------------------------------------------------------------------ the repository's address


def test_the_address_moves_everywhere_and_back(tmp_path):
    for path in address.places():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert len(address.move("https://github.com/you/your-book.git", tmp_path)) == len(address.places())
    for path in address.places(tmp_path):
        text = path.read_text()
        assert "what-goes-with-what/" not in text and "you/your-book" in text and address.MARK not in text, path
    address.move(ADDRESS, tmp_path)
    assert all((tmp_path / p.relative_to(ROOT)).read_bytes() == p.read_bytes() for p in address.places())
    before = (tmp_path / "pyproject.toml").read_text()
    with pytest.raises(ValueError, match=r"write it as https://github\.com/you/your-book"):
        address.move("you/your-book", tmp_path)
    assert (tmp_path / "pyproject.toml").read_text() == before


@pytest.mark.parametrize("stem", STEMS)
def test_badges_that_lead_nowhere_say_so(stem):
    text = (ROOT / "notebooks" / f"{stem}.md").read_text()
    assert (address.MARK in text) == (ADDRESS == address.PLACEHOLDER)
