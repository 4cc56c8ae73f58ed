"""Metrics against scikit-learn and by hand; tasks that hide, rank and keep to the past."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from recutils import data, evaluate, models


@pytest.fixture(scope="module")
def scored():
    """300 queries over 40 items, scores without ties; one relevant item each, and one to six each."""
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(40.0), (300, 1)), axis=1)
    one = sparse.csr_matrix((np.ones(300), (np.arange(300), rng.integers(40, size=300))), shape=(300, 40))
    many = sparse.csr_matrix((rng.random((300, 40)) < 0.08).astype(float) + one.toarray() > 0, dtype=float)
    return scores, one, many


def test_metrics_agree_with_scikit_learn(scored):
    scores, one, many = scored
    ranks = evaluate.rank_relevant(scores, one, 1)
    truth = one.toarray().argmax(axis=1)
    assert evaluate.hit_rate_at_k(ranks, 10).mean() == pytest.approx(
        top_k_accuracy_score(truth, scores, k=10, labels=range(40))
    )
    assert evaluate.mrr(ranks).mean() == pytest.approx(label_ranking_average_precision_score(one.toarray(), scores))
    for relevant in (one, many):
        width = int(np.diff(relevant.indptr).max())
        ranks = evaluate.rank_relevant(scores, relevant, width)
        for k in (1, 5, 10, 40):
            assert evaluate.ndcg_at_k(ranks, k).mean() == pytest.approx(ndcg_score(relevant.toarray(), scores, k=k))


def test_recall_by_hand(scored):
    scores, _, many = scored
    ranks = evaluate.rank_relevant(scores, many, int(np.diff(many.indptr).max()))
    for row in range(20):
        relevant = set(many[row].indices)
        first = set(np.argsort(-scores[row])[:10])
        assert evaluate.recall_at_k(ranks, 10)[row] == pytest.approx(len(relevant & first) / len(relevant))


def test_a_tie_counts_against_the_model_and_silence_scores_zero():
    relevant = sparse.csr_matrix([[0, 1.0, 0, 0]])
    assert evaluate.rank_relevant(np.array([[1.0, 1.0, 0.0, 1.0]]), relevant, 1).item() == 3
    assert evaluate.rank_relevant(np.zeros((1, 4)), relevant, 1).item() == 4
    silent = evaluate.rank_relevant(np.array([[0.0, -np.inf, 0.0, 0.0]]), relevant, 1)
    assert silent.item() == np.inf
    assert evaluate.hit_rate_at_k(silent) == evaluate.ndcg_at_k(silent) == evaluate.mrr(silent) == 0
    both = sparse.csr_matrix([[1.0, 1.0, 0, 0]])
    assert sorted(evaluate.rank_relevant(np.array([[1.0, 1.0, 1.0, 0.0]]), both, 2)[0]) == [2, 3]


def test_coverage_and_diversity_by_hand():
    top = np.array([[0, 1, 2], [0, 3, -1]])
    assert evaluate.coverage(top, n_items=8) == 0.5
    groups = np.array(["a", "a", "b", "a"])
    assert evaluate.diversity(top, groups) == pytest.approx((4 / 6 + 0) / 2)


def test_bootstrap_agrees_with_the_normal_interval_and_widens_with_groups():
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000)
    low, high = evaluate.bootstrap_ci(values, n=2000)
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    groups = np.repeat(np.arange(100), 20)
    alike = np.repeat(rng.normal(size=100), 20)
    width = [np.subtract(*evaluate.bootstrap_ci(alike, g)[::-1]) for g in (None, groups)]
    assert width[1] == pytest.approx(width[0] * np.sqrt(20), rel=0.25)
    assert evaluate.bootstrap_ci(values) == evaluate.bootstrap_ci(values)
    unknown = np.full(2000, -1)
    assert np.subtract(*evaluate.bootstrap_ci(values, unknown)[::-1]) == pytest.approx(2 * half, rel=0.1)


def test_hide_one_takes_one_item_of_baskets_of_three(sample_split):
    baskets = sample_split.test
    big = baskets[np.diff(baskets.matrix.indptr) >= 3]
    queries, hidden = evaluate.hide_one(baskets, seed=3)
    assert len(queries) == len(big) < len(baskets)
    assert ((queries.matrix + hidden) != big.matrix).nnz == 0
    assert (np.diff(hidden.indptr) == 1).all() and (queries.matrix.multiply(hidden)).nnz == 0
    again, other = evaluate.hide_one(baskets, seed=3)[1], evaluate.hide_one(baskets, seed=4)[1]
    assert (again != hidden).nnz == 0 and (other != hidden).nnz > 0
    assert (baskets.matrix.data == 1).all()  # the split itself is not touched


def test_every_item_of_a_basket_is_hidden_equally_often():
    matrix = sparse.csr_matrix(np.tile([1.0, 0, 1, 1, 0, 1], (4000, 1)))
    baskets = data.Baskets(matrix, np.zeros(4000, int), np.zeros(4000, "datetime64[ns]"))
    times = np.asarray(evaluate.hide_one(baskets)[1].sum(axis=0)).ravel()
    assert times[[1, 4]].sum() == 0 and stats.chisquare(times[[0, 2, 3, 5]]).pvalue > 0.001


class Oracle(models.Recommender):
    """Knows the answers; with it every task must give 1."""

    def __init__(self, answers):
        self.answers = answers

    def _fit(self, train): ...

    def _score(self, queries):
        rows = [(h, str(t)) for h, t in zip(queries.households, queries.timestamps, strict=True)]
        return np.stack([self.answers[r] for r in rows])


@pytest.mark.parametrize("task", [evaluate.complete_the_basket, evaluate.next_basket])
def test_an_oracle_is_perfect_and_a_constant_is_not(task, sample_split):
    test = sample_split.test
    rows = zip(test.households, test.timestamps, test.matrix.toarray(), strict=True)
    oracle = Oracle({(h, str(t)): row for h, t, row in rows}).fit(sample_split.train)
    result = task(oracle, sample_split, k=19)
    assert result.mean("hr@19") == result.mean("mrr") == result.mean("ndcg@19") == 1
    oracle.answers = {key: np.zeros_like(row) for key, row in oracle.answers.items()}
    assert task(oracle, sample_split).mean("mrr") < 0.3


def test_next_basket_asks_once_a_household_about_its_first_basket(sample_split):
    result = evaluate.next_basket(models.Popularity().fit(sample_split.train), sample_split)
    known = np.intersect1d(sample_split.train.households, sample_split.test.households)
    assert sorted(result.households) == sorted(known)
    first = {h: row for row, h in reversed(list(enumerate(sample_split.test.households)))}
    sizes = {h: sample_split.test.matrix[row].nnz for h, row in first.items()}
    assert [sizes[h] for h in result.households] == (~np.isnan(result.ranks)).sum(axis=1).tolist()


def test_cold_items_are_ranked_among_cold_items(journey_split):
    cold = data.hide_cold_items(journey_split)
    result = evaluate.cold_items(models.Popularity().fit(journey_split.train), cold)  # an oracle of popularity
    assert cold.cold[result.top].all() and np.nanmax(result.ranks) <= cold.cold.sum()
    assert result.mean("hr@50") > 0.3
    assert evaluate.cold_items(models.Popularity().fit(cold.train), cold).mean("hr@50") == 0
    with pytest.raises(ValueError, match="hide_cold_items"):
        evaluate.cold_items(models.Popularity().fit(journey_split.train), journey_split)


def test_wrong_questions_get_one_clear_error(sample_split):
    model = models.Popularity().fit(sample_split.train)
    with pytest.raises(ValueError, match="'validation' or 'test'"):
        evaluate.complete_the_basket(model, sample_split, on="train")
    result = evaluate.complete_the_basket(model, sample_split)
    for metric in ("precision@10", "ndcg", "mrr@5", "hr@x"):
        with pytest.raises(ValueError, match="use hr@K, ndcg@K, recall@K or mrr"):
            result.mean(metric)
    model.share = model.share * np.nan
    with pytest.raises(ValueError, match="returned NaN"):
        evaluate.complete_the_basket(model, sample_split)


def test_results_are_kept_only_where_asked_and_make_the_leaderboard(sample_split, tmp_path, monkeypatch):
    result = evaluate.complete_the_basket(models.Popularity().fit(sample_split.train), sample_split)
    rows = result.rows("99", "popularity")
    repository = tmp_path / "repository"
    monkeypatch.setattr("recutils.evaluate.results.REPOSITORY_RESULTS", repository)
    monkeypatch.delenv("RECUTILS_RESULTS", raising=False)
    assert len(evaluate.save_results("99", rows)) == 4
    monkeypatch.setenv("RECUTILS_RESULTS", str(tmp_path))
    better = [{**row, "model": "other", "value": row["value"] + 0.1} for row in rows]
    evaluate.save_results("99", rows + better)
    kept = json.loads((tmp_path / "99.json").read_text())
    assert {r["metric"] for r in kept} == {"hr@10", "ndcg@10", "mrr", "coverage@10"}
    board = evaluate.leaderboard(evaluate.read_results())
    assert board["model"].tolist() == ["popularity", "other"]
    evaluate.save_results("100", [{**row, "chapter": "999"} for row in better])
    assert evaluate.leaderboard(evaluate.read_results())["chapter"].tolist() == ["99", "999"]  # the last one counts
    # Chapters that were not executed here have the rows that came with the repository.
    repository.mkdir()
    for chapter, model in (("99", "old"), ("98", "earlier")):
        (repository / f"{chapter}.json").write_text(json.dumps([{**rows[1], "chapter": chapter, "model": model}]))
    assert set(evaluate.read_results()["model"]) == {"popularity", "other", "earlier"}
    assert board["value"].iloc[0] == pytest.approx(result.mean("ndcg@10"), abs=1e-6)
    assert (board["low"].iloc[0] < board["value"].iloc[0] < board["high"].iloc[0]) and isinstance(board, pd.DataFrame)


def test_a_long_run_is_kept_apart_and_says_with_what_settings(sample_split, tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_RESULTS", str(tmp_path))
    result = evaluate.complete_the_basket(models.Popularity().fit(sample_split.train), sample_split)
    evaluate.save_results("99", result.rows("99", "popularity"))
    monkeypatch.setenv("RECUTILS_PROFILE", "long")
    evaluate.save_results("99", result.rows("99", "popularity"), {"steps": 7, "rate": 0.1})
    kept = json.loads((tmp_path / "99.long.json").read_text())
    assert {(r["source"], r["profile"], r["configuration"]) for r in kept} == {
        ("long_run", "long", evaluate.fingerprint({"rate": 0.1, "steps": 7}))
    }
    assert evaluate.fingerprint({"steps": 8, "rate": 0.1}) != kept[0]["configuration"]
    found = evaluate.read_results(tmp_path)
    assert len(found) == 8 and len(evaluate.leaderboard(found)) == 1
    # Elsewhere, too, the rows that came with the repository are at hand, unless a folder is named.
    monkeypatch.setenv("RECUTILS_RESULTS", str(tmp_path / "elsewhere"))
    assert set(evaluate.read_results()["source"]) == {"long_run", "notebook"}
    assert set(evaluate.read_results(tmp_path / "elsewhere").columns) == set()
