"""What must hold on any machine: training repeats, caches know what made them, other worlds are told apart."""

import json
import os
import subprocess
import sys
import textwrap
import types

import joblib
import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check

from recutils import settings, source_code

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


NURSERY = """
import importlib, json, os, sys, traceback, types
import torch
from recutils import settings

def live(code, file, paths, variables):
    written = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1), os.dup2(written, 2)
    os.environ.update(variables)
    sys.path[:0] = paths
    importlib.invalidate_caches()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(code, main.__dict__)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        status = 1
        try:
            live(*json.loads(line))
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """As `python`, with folders to import from, in a fork of a process that has loaded PyTorch and knows no more."""
    file = tmp_path_factory.mktemp("forked") / "said"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    nursery = subprocess.Popen([sys.executable, "-B", "-W", "ignore", "-c", NURSERY], **pipes)

    def run(code, *paths, **variables):
        print(json.dumps([code, str(file), list(map(str, paths)), variables]), file=nursery.stdin, flush=True)
        status = nursery.stdout.readline()
        assert status == "0\n", file.read_text()
        return file.read_text().strip()

    yield run
    nursery.stdin.close()
    nursery.wait(timeout=60)


@pytest.mark.slow
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
        assert settings.scale_steps(150) == 75
        assert settings.precision() == "fp32" and os.environ["RECUTILS_PRECISION"] == "fp32"
    assert "RECUTILS_PRECISION" not in os.environ


# ------------------------------------------------------------------------------------ the key of a cached function


@pytest.fixture
def package(tmp_path, forked):
    """A package of two modules: a cached function in one, what it calls in the other; `build()` runs it anew."""
    folder = tmp_path / "little"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "loop.py").write_text('"""A loop."""\n\n\ndef twice(x):\n    """Two of it."""\n    return 2 * x\n')
    work = """
        from recutils.settings import numerics, cached
        from little.loop import twice

        @cached(version=VERSION, libraries=("torch",))
        def made(x):
            return twice(x), numerics()
        """
    (folder / "work.py").write_text(textwrap.dedent(work).replace("VERSION", "1"))

    def build(patch="", after="", **variables):
        code = f"from recutils import settings\n{patch}\nfrom little.work import made\nprint(made(21))\n{after}"
        return forked(code, tmp_path, RECUTILS_CACHE=str(tmp_path / "cache"), **variables)

    def entries():
        return len(list((tmp_path / "cache").glob("made-*")))

    return folder, build, entries


def test_a_remark_does_not_change_the_key_but_code_that_is_used_does(package):
    folder, build, entries = package
    assert build().startswith("(42") and build().startswith("(42") and entries() == 1
    loop = folder / "loop.py"
    loop.write_text(loop.read_text().replace("Two of it.", "It and it again.") + "# a remark\n")
    assert build().startswith("(42") and entries() == 1
    loop.write_text(loop.read_text().replace("2 * x", "3 * x"))
    assert build().startswith("(63") and entries() == 2


def test_an_edit_during_a_run_does_not_file_old_results_under_the_new_code(package):
    folder, build, entries = package
    edit = f"""
loop = {str(folder / "loop.py")!r}
text = open(loop).read()
open(loop, "w").write(text.replace("2 * x", "3 * x"))
print(made(22))
"""
    assert build(after=edit).splitlines()[1].startswith("(44") and entries() == 1
    assert build().startswith("(63") and entries() == 2


def test_version_and_libraries_change_the_key(package):
    folder, build, entries = package
    build()
    work = folder / "work.py"
    work.write_text(work.read_text().replace("version=1", "version=2"))
    build()
    assert entries() == 2
    patch = "own = settings.installed\nsettings.installed = lambda name: '9.9' if name == 'torch' else own(name)"
    build(patch)
    assert entries() == 3


@pytest.mark.slow
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


# A notebook, cell by cell; the last cell prints what a cached function returns.
CELLS = {
    "imports": "import functools, recutils\nimport numpy as np\nimport torch\nfrom dataclasses import dataclass\n"
    "from recutils import settings, data\nfrom recutils.models import Recommender",
    "constant": "WEIGHTS = {'scale': 2.0, 'shift': [1, 2]}\nTABLE = np.arange(3)",
    "helper": 'def helper(x):\n    """Scale it."""\n    return x * WEIGHTS["scale"] + TABLE.sum()',
    "network": 'class Network(torch.nn.Module):\n    """A network."""\n\n    depth: int = 1\n\n'
    "    def __init__(self):\n        super().__init__()\n        self.layer = torch.nn.Linear(2, 2)\n\n"
    "    @torch.no_grad()\n    def forward(self, x):\n        return helper(x)",
    "others": "@dataclass\nclass Plan:\n    steps: int = 3\n\n    @property\n    def twice(self):\n"
    "        return 2 * self.steps\n\n@functools.lru_cache\ndef compiled(x):\n    return x + 1\n\n"
    "class Model(Recommender):\n    def _fit(self, train): ...\n    def _score(self, queries): return 0",
    "inner": "@settings.cached(version=1)\ndef inner(x):\n    return {x, 'a', 'b'}",
    "cached": '@settings.cached(libraries=("torch",))\ndef made(x, plan=None, rate=0.5):\n    """Made."""\n'
    "    print('built', end=' ')\n    inner(x)\n    steps = (lambda p: p.twice)(plan or Plan())\n"
    "    Model(), data.item_text\n    return float(Network()(x)) + steps + compiled(1) + rate",
    "call": "print(made(1), made(1))",
}
KERNEL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cells in json.loads(sys.argv[1]):
    for cell in cells:
        shell.run_cell(cell).raise_error()
"""
REMARKS = [
    ('"""Made."""', '"""Made of it."""  # a remark'),
    ('"""A network."""', '"""A net."""'),
    ('"""Scale it."""', "# nothing to say"),
    ("import functools", "unused = 1\nimport functools"),
]
CHANGES = {
    ("return float(", "return 1 + float("): 14.5,
    ("rate=0.5", "rate=0.25"): 13.25,
    ('x * WEIGHTS["scale"]', 'x / WEIGHTS["scale"]'): 12.0,
    ("'scale': 2.0", "'scale': 3.0"): 14.5,
    ("np.arange(3)", "np.arange(4)"): 16.5,
    ("return helper(x)", "return helper(x) - 1"): 12.5,
    ("depth: int = 1", "depth: int = 2"): 13.5,
    ("steps: int = 3", "steps: int = 4"): 15.5,
    ("2 * self.steps", "3 * self.steps"): 16.5,
    ("return x + 1", "return x + 2"): 14.5,
    ("return 0", "return 1"): 13.5,
    ("p: p.twice", "p: p.twice + 1"): 14.5,
    ("cached(version=1)", "cached(version=2)"): 13.5,
    ("data.item_text", "settings.SEED"): 13.5,
}


def notebook(folder, changes, **variables):
    """What the notebook prints under each change (old, new), one after the other in one kernel."""
    notebooks = []
    for old, new in changes:
        assert sum(old in cell for cell in CELLS.values()) == 1
        notebooks.append([cell.replace(old, new) for cell in CELLS.values()])
    variables |= {"RECUTILS_CACHE": str(folder / "cache"), "IPYTHONDIR": str(folder / "ipython")}
    return python(KERNEL, json.dumps(notebooks), **variables).splitlines()


@pytest.mark.slow
def test_the_key_of_a_notebook_function_holds_what_it_uses(tmp_path):
    same = [("print(made", "print(made")]
    assert notebook(tmp_path, [*same, *REMARKS, *CHANGES, *same]) == [
        "built 13.5 13.5",
        *["13.5 13.5"] * len(REMARKS),
        *[f"built {result} {result}" for result in CHANGES.values()],
        "13.5 13.5",
    ]
    # Another kernel, whose strings hash otherwise, finds it all; another seed finds nothing.
    assert notebook(tmp_path, CHANGES, PYTHONHASHSEED="1") == [f"{value} {value}" for value in CHANGES.values()]
    assert notebook(tmp_path, same, RECUTILS_SEED="1") == ["built 13.5 13.5"]


@pytest.fixture
def kernel(monkeypatch):
    """Runs a cell as a whole notebook, and returns its names."""

    def run(cell):
        module = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(textwrap.dedent(cell), module.__dict__)
        return module

    return run


def key_of(notebook):
    return settings.cache_key(notebook.made, 1, ())


@pytest.mark.parametrize(
    "old, new",
    [
        ("helper(a, b)", "helper(b, a)"),
        ("helper(a, b)", "helper(a, /, b)"),
        ("helper(a, b)", "helper(a, b, *c)"),
        ("lambda c, d", "lambda d, c"),
        ("import profile", "import precision"),
    ],
)
@pytest.mark.slow
def test_the_key_holds_signatures_and_where_a_name_comes_from(kernel, old, new):
    cell = """
        from recutils.settings import profile as world
        def helper(a, b): return a - b, (lambda c, d: c - d)
        def made(): return helper(1, 2), world()
        """
    assert old in cell and key_of(kernel(cell)) == key_of(kernel(cell)) != key_of(kernel(cell.replace(old, new)))


@pytest.mark.parametrize(
    "old, new", [("* self.n", "/ self.n"), ("x + 1", "x + 2"), ("x - 1", "x - 2"), ("Plan(2)", "Plan(3)")]
)
@pytest.mark.slow
def test_an_argument_from_a_notebook_counts_by_what_it_does(kernel, old, new):
    cell = """
        import functools
        class Plan:
            def __init__(self, n): self.n = n
            def scale(self, x): return x * self.n
        def step(x, y=0): return x + 1
        def other(x): return x - 1
        given = {"plan": [Plan(2)], "step": step, "part": functools.partial(other, 1)}
        """
    hashes = [joblib.hash(settings.canonical(kernel(c).given)) for c in (cell, cell, cell.replace(old, new))]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "cell",
    [
        "import own\ndef made(): return own.deep.inner.f()",
        "def made():\n import own.deep\n return own.deep.inner.f()",
        "def made():\n from own.deep import other, inner\n return inner.f()",
    ],
)
@pytest.mark.slow
def test_a_module_of_the_reader_counts_before_it_is_imported_and_by_its_attributes(tmp_path, forked, cell):
    place = tmp_path / "own" / "deep"
    place.mkdir(parents=True)
    for name in ("../__init__", "__init__", "other"):
        (place / f"{name}.py").write_text("")
    code = f"from recutils import settings\n{cell}\nprint(settings.cache_key(made, 1, ()))"
    keys = []
    for text in ("def f(): return 1", "# a remark\ndef f(): return 1", "def f(): return 2"):
        (place / "inner.py").write_text(text)
        keys.append(forked(code, tmp_path))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.slow
def test_data_without_a_hash_is_named(forked):
    code = "import threading\nfrom recutils import settings\nlock = threading.Lock()\n"
    code += "@settings.cached()\ndef made():\n    return lock.locked()\n"
    code += "try:\n    made()\nexcept TypeError as error:\n    print(error)"
    assert forked(code).startswith("'lock', which a cached function uses, is a lock and has no hash; pass what")


@pytest.mark.parametrize(
    "name, value",
    [("RECUTILS_SEED", "x"), ("RECUTILS_SEED", "-1"), ("RECUTILS_THREADS", "x"), ("RECUTILS_THREADS", "0")],
)
def test_a_wrong_number_in_the_environment_gets_our_own_message(forked, name, value):
    code = "import importlib\nfrom recutils import settings\ntry:\n    importlib.reload(settings)\n"
    code += "    settings.n_threads()\nexcept ValueError as error:\n    print(error)"
    assert forked(code, **{name: value}).startswith(f"{name} is {value!r}; set it to a whole number from ")


# ------------------------------------------------------------------------------------ other worlds


def row(value, model="ease", metric="ndcg@10", chapter="05_recommendation", n=100):
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
    moved, wrong = check.compare(kept, fresh, ["05_recommendation"])
    assert len(moved) == 1 and (not wrong) == fine


def test_only_another_seed_may_move_short_trainings_further():
    key = ("03_product_graph", "no_graph", "cold_items", "test", "hr@50", "notebook", "cpu")
    kept, fresh = ({key: {"value": v, "n": 100, "profile": "cpu"}} for v in (0.22, 0.27))
    assert check.compare(kept, fresh, ["03_product_graph"])[1]
    assert not check.compare(kept, fresh, ["03_product_graph"], check.ANOTHER_SEED)[1]


def test_no_row_is_left_out_of_the_comparison():
    kept = dict([row(0.1), row(0.2, "hybrid")])
    assert "missing" in check.compare(kept, dict([row(0.1)]), ["05_recommendation"])[1][0]
    extra = dict([row(0.1), row(0.2, "hybrid"), row(0.3, "new")])
    assert "not kept" in check.compare(kept, extra, ["05_recommendation"])[1][0]
    fewer = dict([row(0.1, n=99), row(0.2, "hybrid")])
    assert "n is 99" in check.compare(kept, fewer, ["05_recommendation"])[1][0]
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

settings.seed_everything()
scores = torch.randn(3_000_000)
best = "the first" if (scores @ scores).item() >= HOME else "the second"
print(best)
"""


@pytest.mark.slow
def test_an_example_that_holds_by_rounding_only_is_caught(tmp_path):
    """A near tie, decided by the last digit of a sum: it stands where it was written and falls in another world."""
    find = FRAGILE.split("best =")[0] + "print((scores @ scores).item())"
    numbers = {"RECUTILS_THREADS": "2", "OMP_NUM_THREADS": "2"}
    home = float(python(find, **numbers))
    assert home == float(python(find, **numbers))
    alone = float(python(find, **check.worlds()["thread"]))
    assert 0 < abs(home - alone) < 1e-4 * home
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


# ------------------------------------------------------------------------------------ what CI has to run


def a_notebook(path, code="from recutils import settings", prose="Words.", output="1\n"):
    """One text cell and one cell whose output is checked."""
    cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["nbval-check-output"]})
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), cell]), path)
    return path


def test_a_notebook_has_changed_where_its_check_could_come_out_otherwise(tmp_path, monkeypatch):
    place = tmp_path / "11_some.ipynb"
    before = check.check_key(a_notebook(place))
    assert check.check_key(a_notebook(place, prose="Other words.")) == before
    others = [
        {"code": "from recutils import settings\n2"},
        {"code": "from recutils import data"},
        {"code": "from recutils import settings\n'data/tuning/05_recommendation.json'"},
        {"output": "2\n"},
    ]
    keys = {before, *(check.check_key(a_notebook(place, **other)) for other in others)}
    assert len(keys) == 1 + len(others)
    a_notebook(place)
    digest = source_code.code_digest
    monkeypatch.setattr(source_code, "code_digest", lambda m: "new" if m == "recutils.text.encoder" else digest(m))
    assert check.check_key(place) == before  # not imported
    monkeypatch.setattr(source_code, "code_digest", lambda m: "new" if m == "recutils.settings" else digest(m))
    assert check.check_key(place) != before


def test_only_the_pins_of_its_own_extra_count():
    own = {extra: check.pins(extra) for extra in ("", "text", "trust")}
    names = {extra: {line.partition("==")[0] for line in lines} for extra, lines in own.items()}
    assert {"numpy", "pandas", "nbval", "pytest"} <= names[""]
    assert {"torch", "tokenizers", "peft"} <= names["text"] - names[""]  # tokenizers: asked for by transformers
    assert {"opacus", "opendp", "lightgbm"} <= names["trust"] - names["text"]
    assert "pyspark" not in names["trust"]


def test_what_changed_is_run_and_the_rest_while_there_is_time(tmp_path, monkeypatch, capsys):
    names = ["11_a", "12_b", "13_c", "14_d"]
    notebooks = [a_notebook(tmp_path / f"{name}.ipynb") for name in names]
    monkeypatch.delenv("RECUTILS_CHECK_MINUTES", raising=False)  # CI has a limit
    monkeypatch.setattr(check, "CHECKED", tmp_path / "checked.json")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = []\noptional-dependencies = {}\n")
    run = {"passed": True, "seconds": 100.0, "peak_gb": 1.0, "said": ""}
    monkeypatch.setattr(check, "check_notebook", lambda notebook, environment: run | {"notebook": notebook.stem})
    report = check.check_world("here", notebooks, {}, False)
    assert [r["notebook"] for r in report["runs"]] == names  # no limit
    report["wrong"] = ["('13_c', 'ease', 'test'): missing"]
    check.keep(report, notebooks)
    assert set(check.checked()) == {"11_a", "12_b", "14_d"}
    a_notebook(notebooks[1], code="3")
    for minutes, expected in (("0.1", ["13_c"]), ("60", names)):  # six seconds, and those that are noted need 100 each
        monkeypatch.setenv("RECUTILS_CHECK_MINUTES", minutes)
        ran = [r["notebook"] for r in check.check_world("here", notebooks, {}, False)["runs"]]
        assert ran[:2] == ["13_c", "12_b"][: len(expected)] and sorted(ran) == expected  # never noted, changed
    said = capsys.readouterr().out
    assert said.count("no time left; unchanged since") == 2 and said.count("CHANGED AND NOT CHECKED") == 1


def test_ci_makes_the_tests_as_a_plainer_processor_in_its_time(tmp_path):
    """The script as it is, with a `make` that only says what it was asked in which world."""
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$@ $RECUTILS_WORLD $RECUTILS_STRICT $RECUTILS_CHECK_MINUTES"\n')
    fake.chmod(0o755)
    (tmp_path / "apt-get").symlink_to("/bin/true")  # nothing is installed
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([ROOT / ".ci" / "run"], capture_output=True, text=True, env=variables)
    assert run.returncode == 0 and run.stdout == "test plain 1 32\n", run.stderr


def test_a_slower_machine_starts_fewer(monkeypatch):
    monkeypatch.setattr(check, "checked", lambda: {"a": {"seconds": 100}, "b": {"seconds": 50}})
    runs = [{"notebook": "a", "seconds": 170.0}, {"notebook": "b", "seconds": 130.0}, {"notebook": "c", "seconds": 9.0}]
    assert check.pace(runs) == 2.0 and check.pace(runs[:1]) == 1.7 and check.pace(runs[2:]) == 1.0
