"""Chapter 10: generated baskets, engines that count pairs, Spark, the cluster script and the stored benchmark.

The functions are executed from the notebook's cells. Tests that need Java are skipped with one message without it.
"""

import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from chapter import definitions
from conftest import ROOT, missing
from scipy import sparse

from recutils import rules

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
sys.path.insert(0, str(ROOT / "deploy"))
import catalogue
import scale
import spark_cluster

FIVE = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1]])  # bread, butter, jam, tea


def chapter(*names):
    return definitions("10_scale", *names)


@pytest.fixture(scope="module")
def files_code():
    return chapter("write_part", "read_part", "count_baskets", "generate_baskets", "take_a_step")


@pytest.fixture(scope="module")
def engines():
    return chapter("PAIR_ENGINES").PAIR_ENGINES


@pytest.fixture
def written(tmp_path, files_code):
    """A matrix as files of 70 baskets."""

    def write(matrix):
        files = []
        for number, start in enumerate(range(0, matrix.shape[0], 70)):
            files.append(tmp_path / f"part-{number}.parquet")
            files_code.write_part(files[-1], sparse.csr_matrix(matrix[start : start + 70]), start)
        return files

    return write


# ------------------------------------------------------------------------------------ generated baskets


def test_a_step_goes_where_the_hand_says(files_code):
    rows = sparse.csr_matrix(FIVE)
    tea = np.full(200_000, 3)
    went = files_code.take_a_step(tea, rows, rows.tocsc(), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(went) / len(went), [1 / 9, 1 / 9, 1 / 3, 4 / 9], atol=0.005)


def test_a_step_leaves_popularity_as_it_was(files_code):
    rng = np.random.default_rng(0)
    rows = sparse.csr_matrix(rng.random((300, 12)) < np.linspace(0.05, 0.6, 12)).astype(np.int32)
    lines = rng.choice(rows.indices, size=300_000)
    went = files_code.take_a_step(lines, rows, rows.tocsc(), rng)
    share = rows.getnnz(axis=0) / rows.nnz
    np.testing.assert_allclose(np.bincount(went, minlength=12) / len(went), share, atol=0.004)


def test_kept_lines_are_the_stores_own_baskets(files_code, two_worlds):
    made = files_code.generate_baskets(two_worlds, 50, np.random.default_rng(0), keep=1)
    own = {tuple(row) for row in two_worlds.toarray().astype(int)}
    assert all(tuple(row) in own for row in made.toarray())
    moved = files_code.generate_baskets(two_worlds, 2000, np.random.default_rng(0), keep=0.5).toarray()
    assert set(np.unique(moved)) == {0, 1} and moved.sum(axis=1).min() >= 1
    assert not (moved[:, :10].any(axis=1) & moved[:, 10:].any(axis=1)).any()  # steps stay in a world
    assert not all(tuple(row) in own for row in moved)


# ------------------------------------------------------------------------------------ files and engines


def test_a_file_gives_its_baskets_back(files_code, tmp_path, two_worlds):
    files_code.write_part(tmp_path / "a.parquet", two_worlds, first_basket=5)
    again = files_code.read_part(tmp_path / "a.parquet", two_worlds.shape[1])
    assert (again != two_worlds).nnz == 0 and again.shape == two_worlds.shape
    assert files_code.count_baskets([tmp_path / "a.parquet"]) == 805


@pytest.mark.parametrize("basket", [[], [1, 0]])
def test_a_file_out_of_order_is_refused(files_code, tmp_path, basket):
    lines = {"basket": np.array(basket, np.int32), "item": np.zeros(len(basket), np.int32)}
    pa.parquet.write_table(pa.table(lines), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"bad.parquet is empty or not in the order of baskets"):
        files_code.read_part(tmp_path / "bad.parquet", 3)


def test_five_baskets_by_every_engine(engines, written):
    files = written(FIVE)
    for name, engine in engines.items():
        assert engine(files, 4, 0.6).to_numpy().tolist() == [[0, 1, 3]], name
        assert engine(files, 4, 0.4).to_numpy().tolist() == [[0, 1, 3], [2, 3, 2]], name
        assert len(engine(files, 4, 1.0)) == 0, name


def test_engines_agree_with_plain_counting(engines, written):
    rng = np.random.default_rng(1)
    dense = rng.random((300, 15)) < np.linspace(0.05, 0.5, 15)
    dense[~dense.any(axis=1), 0] = True
    counts = dense.astype(int).T @ dense.astype(int)
    a, b = np.nonzero(np.triu(counts >= 30, 1))
    expected = pd.DataFrame({"a": a, "b": b, "n": counts[a, b]})
    files = written(dense.astype(np.int32))
    assert len(files) == 5
    for name, engine in engines.items():
        pd.testing.assert_frame_equal(engine(files, 15, 0.1), expected, check_dtype=False, obj=name)


def test_itemsets_in_sql_are_ours(written):
    rng = np.random.default_rng(2)
    dense = (rng.random((200, 8)) < 0.5).astype(np.int32)
    dense[~dense.any(axis=1), 0] = 1
    found = chapter("itemsets_by_duckdb").itemsets_by_duckdb(written(dense), 0.1)
    ours = rules.frequent_itemsets(sparse.csr_matrix(dense), 0.1)
    assert ours["length"].max() >= 3
    assert found == dict(zip(ours["itemset"], ours["count"], strict=True))


def test_a_task_counts_each_pair_once_however_often_a_line_comes():
    count = chapter("count_pairs_of_task").count_pairs_of_task
    lines = {"basket": [7, 7, 7, 9, 9], "item": [0, 2, 2, 2, 0]}
    (found,) = count([pa.RecordBatch.from_pydict(lines)])
    assert found.to_pydict() == {"a": [0], "b": [2], "n": [2]}
    assert list(count([])) == []


# ------------------------------------------------------------------------------------ what is stored


def test_the_stored_benchmark_is_of_this_code_and_under_its_limit():
    rows = json.loads(scale.KEPT.read_text(encoding="utf-8"))
    assert {r["engine"] for r in rows if r["size"] == 100_000_000} >= set(chapter("PAIR_ENGINES").PAIR_ENGINES)
    assert {r["size"] for r in rows} >= set(scale.SIZES)
    for row in rows:
        assert row["code"] == scale.fingerprint(row["engine"]), (row["engine"], "make bench")
    for size in scale.SIZES:
        assert len({(r["pairs"], r["checksum"]) for r in rows if r["size"] == size and "pairs" in r}) == 1
    large = {r["engine"]: r for r in rows if r["size"] == 100_000_000}
    assert large["sparse product, parts"]["lines"] > 99_000_000 and large["sparse product, parts"]["peak GB"] < 1


def test_the_benchmark_ends_what_grows_too_large(tmp_path, monkeypatch):
    (tmp_path / "n_items").write_text("4")
    definitions("10_scale", "write_part").write_part(tmp_path / "part-0.parquet", sparse.csr_matrix(FIVE))
    monkeypatch.setattr(scale, "LIMIT_GB", 0.01)
    found = scale.measure("sparse product", tmp_path)
    assert found["stopped"] == "memory" and found["peak GB"] >= 0.01


# ------------------------------------------------------------------------------------ Spark


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def test_without_java_there_is_one_clear_message(no_java):
    with pytest.raises(RuntimeError, match="Spark needs Java 17 or newer"):
        chapter("spark_session").spark_session()
    with pytest.raises(RuntimeError, match="Spark needs Java 17 or newer"), spark_cluster.standalone_cluster():
        pass


@pytest.mark.parametrize("memory", [64, 10**9])
def test_memory_that_is_not_there_is_refused(memory, monkeypatch, tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.touch(mode=0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"memory_mb is {memory}; Spark's driver needs at least 512"):
        chapter("check_machine").check_machine(memory)


def test_a_missing_week_is_named(tmp_path):
    read = chapter("read_weeks").read_weeks
    with pytest.raises(ValueError, match="lacks every district"):
        read(None, tmp_path, [1])
    for place in ("district=0/week=1", "district=0/week=2", "district=1/week=1"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"lacks district=1/week=2\.$"):
        read(None, tmp_path, [1, 2])
    with pytest.raises(ValueError, match=r"lacks district=0/week=3 and 2 more\.$"):
        read(None, tmp_path, [2, 3])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PySpark does not yet")
def test_two_workers_give_the_same_pairs_and_nothing_listens_outside(tmp_path):
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        missing("Java is not installed (Debian: apt-get install openjdk-17-jre-headless).", "java")
    code = chapter("spark_session", "spark_pair_counts", "itemsets_by_spark")
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    rng = np.random.default_rng(3)
    matrix = sparse.csr_matrix((rng.random((200, 8)) < 0.4).astype(np.int32))
    with spark_cluster.standalone_cluster() as master:
        session = code.spark_session(master, 512, spark_executor_memory="512m")
        try:
            entries = matrix.tocoo()
            table = pa.table({"basket": entries.row.astype(np.int64), "item": entries.col.astype(np.int64)})
            lines = session.createDataFrame(table)
            pairs = code.spark_pair_counts(lines, 20)
            assert session.sparkContext.master == master
            assert session.sparkContext._jsc.sc().getExecutorMemoryStatus().size() == 3  # the driver and two executors
            lists = lines.groupBy("basket").agg({"item": "collect_set"}).toDF("basket", "items")
            found = code.itemsets_by_spark(lists, 0.1)
            family = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
            places = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        finally:
            session.stop()
    counts = (matrix.T @ matrix).toarray()
    a, b = np.nonzero(np.triu(counts >= 20, 1))
    assert pairs.to_numpy().tolist() == np.column_stack([a, b, counts[a, b]]).tolist()
    held = matrix[matrix.getnnz(axis=1) > 0]  # a basket without lines is no row in Spark
    ours = rules.frequent_itemsets(held, 0.1)
    assert found == dict(zip(ours["itemset"], ours["count"], strict=True))
    assert {ip.removeprefix("::ffff:") for ip in places} == {"127.0.0.1"}
    running = " ".join(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    assert "deploy.master.Master" not in running and "deploy.worker.Worker" not in running


# ------------------------------------------------------------------------------------ 10b: processes, streams


def second(*names):
    return definitions("10b_training_and_serving", *names)


def test_a_count_is_never_too_low_and_exact_without_company():
    sketch_of = second("CountMin").CountMin
    keys = np.arange(1, 2001, dtype=np.uint64) << np.uint64(20)
    counts = np.random.default_rng(0).integers(1, 100, size=len(keys))
    crowded, roomy = sketch_of(6).add(keys, counts), sketch_of(20).add(keys, counts)
    assert (crowded.estimate(keys) >= counts).all() and (crowded.estimate(keys) > counts).any()
    assert (roomy.estimate(keys) == counts).mean() > 0.999
    assert (crowded.counts.sum(axis=1) == counts.sum()).all()  # every row counts everything
    again = sketch_of(6).add(keys[:700], counts[:700]).add(keys[700:], counts[700:])
    assert (again.counts == crowded.counts).all()
    twice = sketch_of(20).add(np.array([7, 7], np.uint64), [1, 2])
    assert twice.estimate(np.array([7], np.uint64)).tolist() == [3]


def test_counts_that_a_counter_cannot_hold_are_refused():
    full = second("CountMin").CountMin(4)
    full.add(np.array([1, 2], np.uint64), [2**30, 2**30 - 1])
    with pytest.raises(ValueError, match=r"below 2\*\*31"):
        full.add(np.array([3], np.uint64), [1])


def test_sketches_of_two_halves_of_baskets_are_the_sketch_of_all():
    code = second("CountMin", "keys_of")
    baskets = sparse.csr_matrix(np.vstack([FIVE] * 4).astype(np.int32))

    def sketch_of(matrix):
        pairs = sparse.triu(rules.pair_counts(matrix), 1).tocoo()
        return code.CountMin(6).add(code.keys_of(pairs), pairs.data).counts

    assert (sketch_of(baskets[:7]) + sketch_of(baskets[7:]) == sketch_of(baskets)).all()
    keys = code.keys_of(sparse.coo_matrix(np.triu(np.ones((4, 4)), 1)))
    assert len(set(keys.tolist())) == 6 and (0 << 32) + 1 in keys and (2 << 32) + 3 in keys


@pytest.mark.parametrize(("bits", "depth"), [(0, 4), (31, 4), (10, 0)])
def test_a_sketch_without_counters_is_refused(bits, depth):
    with pytest.raises(ValueError, match=f"bits is {bits}, depth {depth}"):
        second("CountMin").CountMin(bits, depth)


def test_recall_counts_the_true_neighbours_that_were_found():
    recall = second("recall_at").recall_at
    assert recall(np.array([[1, 2], [3, 9]]), np.array([[2, 1], [3, 4]])) == 0.75
    assert recall(np.array([[-1, -1]]), np.array([[0, 1]])) == 0


def test_an_inverted_file_misses_across_the_border():
    search = second("ivf_search").ivf_search
    vectors = np.array([[1.0, 0.1], [0.7, 0.69], [0.1, 1.0]])
    query = np.array([0.69, 0.7])
    assert search(query, vectors, np.eye(2), 1) == 2 and search(query, vectors, np.eye(2), 2) == 1


def test_made_items_have_unit_length_and_a_parent():
    factors = np.eye(4, 32, dtype=np.float32)
    made = second("many_items").many_items(factors, 400, spread=0.5)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    best = (made @ factors.T).max(axis=1)
    assert 0.85 < best.mean() < 0.95  # 1 / sqrt(1.25), about
    assert len(np.unique((made @ factors.T).argmax(axis=1))) == 4


def test_an_example_alone_with_its_partner_has_no_loss():
    torch = pytest.importorskip("torch")
    loss = second("in_batch_loss").in_batch_loss
    assert loss(torch.eye(1), torch.eye(1)).item() == 0
    assert loss(torch.eye(3), torch.eye(3), 1.0).item() == pytest.approx(np.log(np.e + 2) - 1, rel=1e-5)


def test_a_process_takes_its_own_share_and_no_unequal_ones():
    shard_of = second("shard_of").shard_of
    assert [shard_of(list("abcdefgh"), rank, 2, 2) for rank in (0, 1)] == [list("abcd"), list("efgh")]
    assert [shard_of(list("abc"), rank, 3, 1) for rank in range(3)] == [["a"], ["b"], ["c"]]
    for size, world, parts in ((5, 2, 1), (6, 2, 2), (0, 1, 1)):
        with pytest.raises(ValueError, match=f"{size} pairs do not divide by {world} x {parts} parts"):
            shard_of(list(range(size)), 0, world, parts)
    with pytest.raises(ValueError, match="3 pairs do not divide by 2 x 1 parts"):
        second("run_jobs").run_jobs([{"name": "odd", "batches": [["ab", "cd", "ef"]], "parts": 1}], 2)


def test_the_length_of_a_gradient_is_over_all_that_is_trained():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert second("gradient_norm").gradient_norm(model) == pytest.approx(np.sqrt(9 + 16 + 1))
    model.bias.grad = None  # what is frozen has none
    assert second("gradient_norm").gradient_norm(model) == pytest.approx(5)


@pytest.mark.slow
def test_two_processes_have_the_losses_and_gradient_of_one_and_of_a_run_that_was_killed():
    run_jobs = second("run_jobs").run_jobs
    words = ["milk", "bread", "jam", "tea", "beer", "crisps", "pasta", "sauce"]
    batches = [[[words[i], words[(i + k) % 8]] for i in range(4)] for k in (1, 2, 3)]
    job = {"batches": batches, "exchange": True, "parts": 1, "dies_at": -1}
    one = run_jobs([job | {"name": "one"}], 1)["one"]
    two = run_jobs([job | {"name": "two"}], 2)["two"]
    killed = run_jobs([job | {"name": "two", "dies_at": 1}], 2, restarts=1)["two"]
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-3)
    np.testing.assert_allclose(one["losses"], killed["losses"], rtol=1e-3)
    assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-2) and one["gradient"][0] > 0
    assert (one["restarts"], two["restarts"], killed["restarts"]) == (0, 0, 1)
    assert one["seconds"] > 0 and two["seconds"] > 0
    with pytest.raises(RuntimeError, match="torchrun failed"):
        run_jobs([job | {"name": "two", "dies_at": 1}], 2)


def test_the_stored_catalogue_is_of_this_code():
    rows = json.loads(catalogue.KEPT.read_text(encoding="utf-8"))
    assert {row["code"] for row in rows} == {catalogue.fingerprint()}
    assert rows[0]["index"] == "exact" and rows[0]["recall"] == 1
