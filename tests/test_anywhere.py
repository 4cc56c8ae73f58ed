"""What must hold on any machine: training repeats, caches know what made them, other worlds are told apart."""

import os
import subprocess
import sys
import textwrap

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check

from recutils import settings

# ------------------------------------------------------------------------------------ training repeats

TRAIN = """
import hashlib, sys
from recutils import data, graph, text
import numpy as np
split = data.time_split(data.load_store(sys.argv[1]), min_baskets=5)
texts, matrix = data.item_text(split.items).to_list(), split.train.matrix
encoder = text.load_encoder()
text.fine_tune(encoder, texts, matrix, text.TrainingSettings(steps=4, batch_size=64))
found = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in encoder.model.parameters())).hexdigest()
vectors = text.encode(encoder, texts)
scores = graph.GraphRecommender(vectors, steps=10).fit(split.train).score(split.test[:20])
found += hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()
print(found)
"""


def python(code, *arguments, **variables):
    """What a script prints in a process of its own, with these environment variables."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_training_twice_in_two_processes_gives_the_same_bits(tmp_path):
    """The encoder and the graph network; the second time beside a busy neighbour."""
    sample = ROOT / "data" / "sample"
    first = python(TRAIN, sample, RECUTILS_CACHE=str(tmp_path / "1"))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        second = python(TRAIN, sample, RECUTILS_CACHE=str(tmp_path / "2"))
    finally:
        busy.kill()
        busy.wait()
    other = python(TRAIN, sample, RECUTILS_CACHE=str(tmp_path / "3"), RECUTILS_SEED="1")
    assert first == second and len(first) == 2 * 64
    assert all(first[i : i + 64] != other[i : i + 64] for i in (0, 64))


def test_threads_are_told_how_to_wait_before_they_are_loaded():
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = "import recutils, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    for own, expected in (
        ({}, "3000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **own}, cwd=ROOT
        )
        assert run.stdout.strip() == expected
    for notebook in (ROOT / "notebooks").glob("*.md"):
        code = "\n".join(part.split("```")[0] for part in notebook.read_text().split("```{code-cell} ipython3")[1:])
        before = code.split('recutils = importlib.import_module("recutils")')[0]
        loads = [line.split()[1].split(".")[0] for line in before.splitlines() if line.startswith(("import ", "from "))]
        assert before != code and set(loads) <= sys.stdlib_module_names, notebook.name


def test_precision_is_a_setting(monkeypatch):
    monkeypatch.setenv("RECUTILS_PRECISION", "fp32")
    assert settings.precision() == "fp32" and "fp32" in settings.numerics()
    monkeypatch.setenv("RECUTILS_PRECISION", "fp16")
    with pytest.raises(ValueError, match="'auto' or 'fp32'"):
        settings.precision()
    monkeypatch.delenv("RECUTILS_PRECISION")
    with settings.in_fp32():
        assert settings.affordable(150) == 75
        assert settings.precision() == "fp32" and os.environ["RECUTILS_PRECISION"] == "fp32"
    assert "RECUTILS_PRECISION" not in os.environ


# ------------------------------------------------------------------------------------ the key of a stage


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules: a stage in one, the function it calls in the other; `build()` runs it anew."""
    folder = tmp_path / "little"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "loop.py").write_text('"""A loop."""\n\n\ndef twice(x):\n    """Two of it."""\n    return 2 * x\n')
    stage = """
        from recutils.settings import numerics, stage
        from little.loop import twice

        @stage(version=VERSION, libraries=("torch",))
        def made(x):
            return twice(x), numerics()
        """
    (folder / "stages.py").write_text(textwrap.dedent(stage).replace("VERSION", "1"))

    def build(patch="", **variables):
        paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        code = f"from recutils import settings\n{patch}\nfrom little.stages import made\nprint(made(21))"
        return python(code, PYTHONPATH=paths, RECUTILS_CACHE=str(tmp_path / "cache"), **variables)

    def entries():
        return len(list((tmp_path / "cache").glob("made-*")))

    return folder, build, entries


def test_a_remark_does_not_change_the_key_of_a_stage_but_code_behind_it_does(package):
    folder, build, entries = package
    assert build().startswith("(42") and build().startswith("(42") and entries() == 1
    loop = folder / "loop.py"
    loop.write_text(loop.read_text().replace("Two of it.", "It and it again.") + "# a remark\n")
    assert build().startswith("(42") and entries() == 1
    loop.write_text(loop.read_text().replace("2 * x", "3 * x"))
    assert build().startswith("(63") and entries() == 2


def test_version_and_libraries_change_the_key_of_a_stage(package):
    folder, build, entries = package
    build()
    stages = folder / "stages.py"
    stages.write_text(stages.read_text().replace("version=1", "version=2"))
    build()
    assert entries() == 2
    patch = "own = settings._installed\nsettings._installed = lambda name: '9.9' if name == 'torch' else own(name)"
    build(patch)
    assert entries() == 3


def test_two_precisions_and_two_numbers_of_threads_never_share_an_entry(package):
    _, build, entries = package
    found = [
        build(RECUTILS_PRECISION="fp32", RECUTILS_THREADS="2"),
        build(RECUTILS_PRECISION="fp32", RECUTILS_THREADS="1"),
    ]
    assert entries() == 2 and "fp32 2" in found[0] and "fp32 1" in found[1]
    patch = "settings.precision = lambda: 'bf16'"  # as on a processor that has it
    assert "bf16" in build(patch, RECUTILS_THREADS="2") and entries() == 3
    assert build(RECUTILS_PRECISION="fp32", RECUTILS_THREADS="2") == found[0] and entries() == 3


# ------------------------------------------------------------------------------------ other worlds


def row(value, model="ease", metric="ndcg@10", chapter="05_recommendation_and_bundles", n=100):
    key = (chapter, model, "complete_the_basket", "test", metric, "notebook", "cpu")
    return key, {"chapter": chapter, "value": value, "n": n, "source": "notebook", "profile": "cpu"}


@pytest.mark.parametrize(
    "model, metric, before, now, fine",
    [
        ("ease", "ndcg@10", 0.1100, 0.1103, True),
        ("ease", "ndcg@10", 0.1100, 0.1107, False),
        ("ease", "ndcg@10", 0.1100, float("nan"), False),
        ("hybrid", "ndcg@10", 0.160, 0.140, True),
        ("hybrid", "ndcg@10", 0.160, 0.130, False),
        ("hybrid", "coverage@10", 0.5, 0.4, True),
        ("hybrid", "coverage@10", 0.5, 0.3, False),
    ],
)
def test_each_kind_of_row_has_its_tolerance(model, metric, before, now, fine):
    kept, fresh = dict([row(before, model, metric)]), dict([row(now, model, metric)])
    moved, wrong = check.compare(kept, fresh, ["05_recommendation_and_bundles"])
    assert len(moved) == 1 and (not wrong) == fine


def test_only_another_seed_may_move_short_trainings_further():
    key = ("03_product_graph", "no_graph", "cold_items", "test", "hr@50", "notebook", "cpu")
    kept, fresh = ({key: {"value": v, "n": 100, "profile": "cpu"}} for v in (0.22, 0.27))
    assert check.compare(kept, fresh, ["03_product_graph"])[1]
    assert not check.compare(kept, fresh, ["03_product_graph"], check.ANOTHER_SEED)[1]


def test_no_row_is_left_out_of_the_comparison():
    kept = dict([row(0.1), row(0.2, "hybrid")])
    assert "missing" in check.compare(kept, dict([row(0.1)]), ["05_recommendation_and_bundles"])[1][0]
    extra = dict([row(0.1), row(0.2, "hybrid"), row(0.3, "new")])
    assert "not kept" in check.compare(kept, extra, ["05_recommendation_and_bundles"])[1][0]
    fewer = dict([row(0.1, n=99), row(0.2, "hybrid")])
    assert "n is 99" in check.compare(kept, fewer, ["05_recommendation_and_bundles"])[1][0]
    everything = check.rows(check.KEPT)
    chapters = {key[0] for key in everything}
    moved, wrong = check.compare(
        everything, {k: r for k, r in everything.items() if r["source"] == "notebook"}, chapters
    )
    assert not wrong and len(moved) == sum(r["source"] == "notebook" for r in everything.values())


FRAGILE = """
import recutils
import torch
from recutils import settings

settings.repeatable()
scores = torch.randn(3_000_000)
best = "the first" if (scores @ scores).item() >= HOME else "the second"
print(best)
"""


def test_an_example_that_holds_by_rounding_only_is_caught(tmp_path):
    """A near tie, decided by the last digit of a sum: it stands where it was written and falls in another world."""
    find = FRAGILE.split("best =")[0] + "print((scores @ scores).item())"
    numbers = {"RECUTILS_THREADS": "2", "OMP_NUM_THREADS": "2"}
    home = float(python(find, **numbers))
    assert home == float(python(find, **numbers))
    alone = float(python(find, **check.worlds()["thread"]))
    assert 0 < abs(home - alone) < 1e-5 * home
    limit = max(home, alone)
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    cell = nbformat.v4.new_code_cell(FRAGILE.replace("HOME", repr(limit)), execution_count=1)
    cell.metadata["tags"] = ["nbval-check-output"]
    written_by = numbers if home == limit else check.worlds()["thread"]
    read_by = check.worlds()["thread"] if home == limit else numbers
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="the first\n")]
    notebook.cells = [cell]
    path = tmp_path / "fragile.ipynb"
    nbformat.write(notebook, path)
    assert check.check_notebook(path, {**os.environ, **written_by})["passed"]
    elsewhere = check.check_notebook(path, {**os.environ, **read_by})
    assert not elsewhere["passed"] and "the second" in elsewhere["said"]
