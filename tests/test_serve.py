"""The service of chapter 07: fast scores, safe artefacts, an API that stays up, and numbers of drift."""

import contextlib
import copy
import hashlib
import http.client
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from urllib.parse import quote

import numpy as np
import pytest
import shop
from browser import browsing
from conftest import ROOT
from fastapi.testclient import TestClient
from scipy import sparse, stats

from recutils import explain, models, text
from recutils.ranker import HybridRanker
from recutils.service import app, artifact, auth, build, compress, onnx_encoder, pseudonyms
from recutils.service import monitor as drift
from recutils.service.artifact import ArtefactError
from recutils.service.single_basket import NOBODY, QuickRanker, one_basket


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
    """Baskets with their last item taken out, as the quick ranker wants them."""
    matrix = split.test.matrix
    for row in range(min(len(split.test), 80)):
        columns = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]][:-1]
        moment = split.test.timestamps[row].astype("datetime64[s]").item()
        yield columns, int(split.test.households[row]), moment


def test_the_quick_ranker_says_what_the_ranker_says(ranker, sample_split):
    quick, same = QuickRanker(ranker), []
    for columns, household, moment in queries(sample_split):
        for who, when in ((household, moment), (NOBODY, None), (10_000, moment)):
            whole = ranker.score(one_basket(columns, who, when, ranker))[0]
            whole[columns] = -np.inf
            items, scores = quick.recommend(columns, who, when, 5)
            assert not set(items) & set(columns) and len(set(items)) == len(items) == 5
            assert (np.diff(scores) <= 0).all()
            same.append(np.allclose(np.sort(whole)[::-1][:5], scores, atol=1e-4))
    assert np.mean(same) > 0.9  # the rest: ties at the end of a member's quota


def test_the_quick_ranker_agrees_exactly_where_nothing_is_cut_off(ranker, sample_split):
    whole = copy.copy(ranker)
    whole.quota = dict.fromkeys(ranker.quota, 30)
    quick = QuickRanker(whole)
    for columns, household, moment in queries(sample_split):
        expected = whole.score(one_basket(columns, household, moment, whole))[0]
        items, scores = quick.recommend(columns, household, moment, 20)
        np.testing.assert_allclose(scores, expected[items], atol=1e-4)


def test_the_quick_ranker_asks_strange_members_the_long_way(sample_split):
    members = {"best_sold": models.Popularity(), "rules": models.RuleRecommender(0.005, 0.05, 3)}
    groups = sample_split.items[["department"]]
    ranker = HybridRanker(members, sample_split.validation, groups, behind="best_sold", quota=30, trees=5)
    ranker.fit(sample_split.train)
    columns, household, moment = next(queries(sample_split))
    items, scores = QuickRanker(ranker).recommend(columns, household, moment, 5)
    np.testing.assert_allclose(
        scores, ranker.score(one_basket(columns, household, moment, ranker))[0][items], atol=1e-4
    )


def test_what_lies_in_the_basket_is_never_offered(ranker):
    quick = QuickRanker(ranker)
    for held in ([*range(28)], [*range(29)], [*range(2, 30)], [*range(30)]):
        items, _ = quick.recommend(held, 0, None, 5)
        assert set(items) == set(range(30)) - set(held)


def test_an_empty_basket_and_more_offers_than_candidates(ranker):
    items, scores = QuickRanker(ranker).recommend([], NOBODY, None, 50)
    assert sorted(items) == list(range(30)) and (np.diff(scores) <= 0).all()


# ---------------------------------------------------------------------------------------------- artefacts


def test_a_saved_version_gives_the_same_answers(small, folder, sample_split):
    loaded = artifact.load(folder)
    assert loaded.version == artifact.versions(folder)[0] and loaded.names == small.names
    for columns, household, moment in queries(sample_split):
        before, after = (s.quick.recommend(columns, household, moment, 10) for s in (small, loaded))
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_array_equal(before[1], after[1])
    item = int(before[0][0])
    found = [
        explain.explain(s.ranker, one_basket(columns, household, moment, s.ranker), item, s.shop)
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
    with pytest.raises(ArtefactError, match=name.split(".")[0]):
        artifact.load(folder)
    file.unlink()
    with pytest.raises(ArtefactError, match=name.split(".")[0]):
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
    artifact.make_current(folder, version)


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.exploded = True",))


def test_an_artefact_runs_no_code_even_with_a_right_manifest(folder):
    def pickled(place):
        np.save(place / "prices.npy", np.array([Bomb()], dtype=object), allow_pickle=True)

    forge(folder, pickled)
    with pytest.raises(ArtefactError, match="another kind"):
        artifact.load(folder)
    import builtins

    assert not hasattr(builtins, "exploded")


def test_an_artefact_holds_known_classes_only(folder, small):
    def strange(place):
        state = json.loads((place / "state.json").read_text())
        state["ranker"]["object"] = "Popen"
        (place / "state.json").write_text(json.dumps(state))

    forge(folder, strange)
    with pytest.raises(ArtefactError, match="another kind"):
        artifact.load(folder)
    arrays = {}
    with pytest.raises(ArtefactError, match="TIFUKNN"):
        artifact._pack(models.TIFUKNN(), "member", arrays)
    with pytest.raises(ArtefactError, match="Bomb"):
        artifact._pack(Bomb(), "thing", arrays)


def test_a_manifest_cannot_point_outside(folder):
    place = folder / artifact.versions(folder)[0]
    sums = {"../keys.json": artifact.sha256(place / "state.json")}
    shutil.copy(place / "state.json", folder / "keys.json")
    version = hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]
    (place / "manifest.json").write_text(json.dumps({"version": version, "sha256": sums}))
    place.rename(folder / version)
    with pytest.raises(ArtefactError, match="missing or damaged"):
        artifact.load(folder, version)


def test_what_is_not_there_is_said(tmp_path, folder):
    with pytest.raises(ArtefactError, match="No artefact"):
        artifact.load(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match="no version 'x'"):
        artifact.make_current(folder, "x")


SAVE_FOR_EVER = """
import itertools, pathlib, sys
from recutils.service import artifact
folder, encoder = map(pathlib.Path, sys.argv[1:])
shop = artifact.load(folder)
for n in itertools.count():
    shop.names[0] = f"name {n}"
    print(artifact.save(shop, folder, encoder), flush=True)
"""


def test_a_save_that_is_killed_leaves_a_whole_version(folder, encoder):
    for pause in (0.02, 0.05, 0.11, 0.17, 0.23):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(folder), str(encoder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # the first one is there
            time.sleep(pause)
            process.kill()
        assert artifact.load(folder).names[0].startswith("name ")
        for version in artifact.versions(folder):
            artifact.load(folder, version)


def test_saving_again_mends_a_damaged_version(small, folder, encoder):
    version = artifact.versions(folder)[0]
    (folder / version / "prices.npy").write_bytes(b"")
    assert artifact.save(small, folder, encoder) == version
    assert artifact.load(folder).version == version


def test_pseudonyms_need_the_secret():
    assert pseudonyms.pseudonym("h01", b"a") == pseudonyms.pseudonym("h01", b"a") != pseudonyms.pseudonym("h01", b"b")
    assert pseudonyms.pseudonym("h01", b"a") != pseudonyms.pseudonym("h02", b"a") and "h01" not in pseudonyms.pseudonym(
        "h01", b"a"
    )


def test_another_shop_is_served_by_the_code_on_its_page(sample, sample_split, tmp_path, monkeypatch):
    """The second piece of code on the page 'Your own shop', run as it stands there."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "data" / "own_shop.md").read_text()
    exec(page.split("```python\n")[2].split("```")[0], {"store": sample, "split": sample_split})
    with shop.running(tmp_path / "served", secret=None) as (address, key, _):
        status, answer = shop.ask(f"{address}/recommend", key, {"basket": ["i04"], "household": "h01", "k": 3})
        assert status == 200 and len(answer["items"]) == 3
        assert shop.ask(f"{address}/search?q=organic+tea", key)[1]["items"][0]["name"].endswith("tea organic")
        assert shop.ask(f"{address}/explain", key, {"basket": ["i04"], "item": "i05"})[0] == 200


# ---------------------------------------------------------------------------------------------- search, replacements


def test_search_finds_by_words_by_beginnings_and_by_meaning(small):
    assert {small.names[i] for i in small.search("organic bread", 1)} == {"bread organic"}
    assert {small.names[i].split()[0] for i in small.search("bis", 3)} == {"biscuit"}
    assert small.names[small.search("spaghetti", 1)[0]].startswith("pasta")
    assert small.search("?!") == [] and small.search("") == []


def test_replacements_are_alike_and_not_bought_together():
    vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = sparse.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]], np.float32))
    best = build.replacements(vectors, matrix, 3)
    assert best[0].tolist() == [2, 3, -1]  # 1 is closer, but lies in the same baskets


# ---------------------------------------------------------------------------------------------- smaller encoders


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
    half = compress.keep_layers(whole, [0, 2, 4])
    assert len(whole.model.encoder.layer) == 6 and len(half.model.encoder.layer) == 3
    a, b = text.encode(whole, ["pasta sauce"]), text.encode(half, ["pasta sauce"])
    assert a.shape == b.shape and 0 < float((a * b).sum()) < 0.999
    np.testing.assert_array_equal(
        text.encode(compress.keep_layers(whole, range(6)), ["tea"]), text.encode(whole, ["tea"])
    )


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
        wanted = stats.ks_2samp(a, b).statistic
        assert drift.ks(a, b) == pytest.approx(wanted)
        counts = [np.bincount(s, minlength=11) for s in (a, b)]
        assert drift.ks_of_counts(*counts) == pytest.approx(wanted)


def test_chance_alone_gives_the_psi_that_the_docstring_promises():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(20))
    found = [drift.psi(rng.multinomial(5000, share), rng.multinomial(2000, share)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(19 * (1 / 5000 + 1 / 2000), rel=0.15)


def test_the_monitor_alerts_on_drift_and_not_on_a_quiet_month(small):
    rng = np.random.default_rng(0)
    quiet, loud = drift.Monitor.of(small.usual), drift.Monitor.of(small.usual)
    usual = small.usual["counts"]["size"] / small.usual["counts"]["size"].sum()
    for monitor, share in ((quiet, usual), (loud, np.roll(usual, 2))):
        assert monitor.drift() == {}  # too few to say
        monitor.add("size", rng.choice(len(share), 3000, p=share))
    assert not any(quiet.alerts().values())
    assert loud.alerts() == {"department": False, "size": True, "score": False}
    quiet.add("size", np.zeros(150_000, int))
    assert quiet.seen["size"].sum() <= 100_000 and quiet.alerts()["size"]


# ---------------------------------------------------------------------------------------------- the API

KEY = "k" * 43


@pytest.fixture
def settings(tmp_path):
    import hashlib

    return auth.Settings(
        tmp_path, shop.SECRET, {"tests": hashlib.sha256(KEY.encode()).hexdigest()}, rate=1e6, burst=1e6
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
    wanted, scores = small.quick.recommend(columns, household, moment, 3)
    found = answer.json()["items"]
    assert [o["item"] for o in found] == [small.item_ids[i] for i in wanted]
    assert [o["score"] for o in found] == pytest.approx(scores, abs=1e-3)
    assert all(o["price"] in (None, 2.5) and o["name"] and o["department"] for o in found)
    stranger = client.post("/recommend", json={"basket": asked["basket"], "household": "nobody we know", "k": 3}).json()
    wanted = small.quick.recommend(columns, NOBODY, None, 3)[0]
    assert [o["item"] for o in stranger["items"]] == [small.item_ids[i] for i in wanted]
    twice = client.post("/recommend", json={"basket": asked["basket"] * 2, "k": 3}).json()
    assert twice["items"] == client.post("/recommend", json={"basket": asked["basket"], "k": 3}).json()["items"]


def test_the_other_routes(client, small):
    similar = client.get("/similar/i00?k=3").json()["items"]
    assert len(similar) <= 3 and "i00" not in [o["item"] for o in similar]
    bundle = client.post("/bundle", json={"items": ["i04"], "size": 3}).json()["items"]
    assert bundle[0]["item"] == "i04" and len({o["name"].split()[0] for o in bundle}) == 3
    assert client.get("/search?q=jam&k=2").json()["items"][0]["name"].startswith("jam")
    offer = client.post("/recommend", json={"basket": ["i04", "i07"], "k": 1}).json()["items"][0]
    why = client.post("/explain", json={"basket": ["i04", "i07"], "item": offer["item"]}).json()
    assert offer["name"] in why["sentence"] and why["place"] == 1
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
        ("POST", "/feedback", {"item": "i00", "event": "liked"}, 422, "'shown', 'added' or 'refused'"),
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


def test_all_keys_are_compared_whatever_the_answer(settings, monkeypatch):
    settings.keys |= {f"other {n}": "0" * 64 for n in range(5)}
    compared = []
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
    gate = auth.Gate(settings)
    assert gate.holder(KEY) == "tests" and gate.holder("wrong") is None
    assert len(compared) == 12


def test_a_short_secret_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too short"):
        auth.Settings(tmp_path, b"guess me")


def test_who_waits_too_long_in_line_is_told(client, monkeypatch):
    statistics = type("Statistics", (), {"tasks_waiting": 20})
    monkeypatch.setattr(
        client.app.state.desk, "one_at_a_time", type("Line", (), {"statistics": lambda s: statistics})()
    )
    answer = client.get("/search?q=tea")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
    assert client.post("/recommend", json={}).status_code == 200


def test_keys_are_kept_as_hashes_for_the_owner_only(tmp_path):
    key = auth.new_key(tmp_path, "till")
    other = auth.new_key(tmp_path, "page")
    found = auth.settings_from(tmp_path)
    assert set(found.keys) == {"till", "page"} and auth.Gate(found).holder(other) == "page"
    text = (tmp_path / "keys.json").read_text()
    assert key not in text and (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert found.secret == auth.settings_from(tmp_path).secret and len(found.secret) == 64


def test_a_key_that_asks_too_often_must_wait(small, settings):
    settings.rate, settings.burst = 5, 3  # a search counts two
    settings.keys["other"] = settings.keys["tests"][::-1]
    with TestClient(app.create_app(settings, small)) as client:
        answers = [client.get("/similar/i00", headers={"X-API-Key": KEY}) for _ in range(6)]
        assert [a.status_code for a in answers[:3]] == [200] * 3 and answers[-1].status_code == 429
        assert int(answers[-1].headers["Retry-After"]) >= 1
        time.sleep(0.3)
        assert client.get("/similar/i00", headers={"X-API-Key": KEY}).status_code == 200
        assert client.get("/search?q=tea", headers={"X-API-Key": KEY}).status_code == 429
        assert client.get("/search?q=tea", headers={"X-API-Key": "wrong"}).status_code == 401


def test_limits_of_size(client):
    big = b'{"basket": ["' + b"x" * 70_000 + b'"]}'
    assert client.post("/recommend", content=big, headers={"Content-Type": "application/json"}).status_code == 413
    parts = (b"x" * 1000 for _ in range(100))  # no Content-Length
    answer = client.post("/recommend", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and "error" in answer.json()


def test_every_answer_carries_the_security_headers(client):
    for answer in (client.get("/"), client.get("/health"), client.get("/nowhere"), client.post("/recommend", json=[])):
        for name, value in app.SAFE.items():
            assert answer.headers[name] == value
        assert len(answer.headers["x-request-id"]) == 16
    assert "unsafe-inline" not in app.SAFE["content-security-policy"]


def test_the_log_names_no_household_no_basket_and_no_query(client, caplog, sample_split):
    with caplog.at_level(logging.INFO, logger="recutils.service"):
        client.post("/recommend", json={"basket": ["i07"], "household": "h01"})
        client.get("/search?q=embarrassing ointment")
        client.get("/similar/i07")
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line["route"] for line in lines] == ["/recommend", "/search", "/similar/{item}"]
    assert all(line["key"] == "tests" and line["status"] == 200 and line["ms"] > 0 for line in lines)
    assert not any(word in caplog.text for word in ("h01", "i07", "embarrassing", "127.0.0.1", "testclient", KEY))


def test_a_fault_of_ours_shows_no_traceback(client, small, monkeypatch, caplog):
    monkeypatch.setattr(small.quick, "recommend", lambda *a: 1 / 0)
    answer = client.post("/recommend", json={"basket": []})
    assert answer.status_code == 500 and "Zero" not in answer.text and "in our log" in answer.json()["error"]
    assert "ZeroDivisionError" in caplog.text


def test_feedback_is_kept_by_pseudonym_and_survives_a_torn_line(client, settings):
    file = settings.folder / "feedback.jsonl"
    file.write_bytes(b'{"at": 1, "item": "i0')  # a crash cut it short
    answer = client.post("/feedback", json={"item": "i03", "event": "added", "household": "h01"})
    assert answer.status_code == 202
    client.post("/feedback", json={"item": "i04", "event": "refused"})
    lines = file.read_bytes().split(b"\n")
    assert [json.loads(line)["item"] for line in lines[1:3]] == ["i03", "i04"]
    assert (
        json.loads(lines[1])["household"] == pseudonyms.pseudonym("h01", shop.SECRET)
        and b"h01" not in file.read_bytes()
    )
    settings.max_feedback = 10
    assert client.post("/feedback", json={"item": "i04", "event": "refused"}).status_code == 503


def test_metrics_count_and_raise_the_alert(client, small):
    for _ in range(300):
        client.post("/recommend", json={"basket": ["i09", "i19", "i29"]})  # nothing but soap
    client.post("/recommend", json={"basket": ["none"]})
    found = client.get("/metrics").text
    assert 'shop_requests_total{route="/recommend",status="200"} 300.0' in found
    assert 'shop_requests_total{route="/recommend",status="422"} 1.0' in found
    assert 'shop_seconds_bucket{le="0.015",route="/recommend"}' in found
    assert 'shop_drift_alert{what="department"} 1.0' in found
    assert f'shop_model{{version="{small.version}"}} 1.0' in found
    assert 'route="none"' not in found
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
    settings.look = 0.05
    with TestClient(app.create_app(settings)) as client:
        client.headers["X-API-Key"] = KEY
        assert client.get("/health").status_code == 200
        answer = client.get("/ready")
        assert answer.status_code == 503 and answer.headers["Retry-After"] and "No artefact" in answer.json()["error"]
        assert client.post("/recommend", json={}).status_code == 503
        artifact.save(small, settings.folder, encoder)
        until = time.monotonic() + 20
        while client.get("/ready").status_code != 200 and time.monotonic() < until:
            time.sleep(0.05)
        good = client.get("/ready").json()["version"]
        (settings.folder / "CURRENT").write_text("no-such-version")  # a slip of the hand
        time.sleep(0.3)
        assert client.get("/ready").json()["version"] == good
        assert "no-such-version" in client.app.state.desk.shelf.trouble


def test_a_version_with_other_pseudonyms_is_refused(settings, small, encoder):
    artifact.save(small, settings.folder, encoder)
    settings.secret, settings.look = b"another secret altogether", 0.05
    with TestClient(app.create_app(settings)) as client:
        until = time.monotonic() + 20
        while "secret" not in client.get("/ready").json()["error"] and time.monotonic() < until:
            time.sleep(0.05)
        assert "another secret" in client.get("/ready").json()["error"]


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
    "/feedback": {"item": "i00", "event": "shown", "household": "h01"},
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
    connection, seen, start = http.client.HTTPConnection(host, int(port), timeout=20), {}, 0
    asked = list(hand_written(key))
    with requests.Session() as session:
        for n, case in enumerate(schema_driven):
            case["headers"] = {**(case.get("headers") or {}), **({"X-API-Key": key} if n % 4 else {})}
            try:
                status = session.request(**case, timeout=20).status_code
            except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
                status = 0  # it never left: not a thing that HTTP can say
            seen[status] = seen.get(status, 0) + 1
    for n, request in enumerate(asked):
        status = send(connection, *request)
        seen[status] = seen.get(status, 0) + 1
        if n == 1000:
            start = shop.memory(process)
        assert 0 < status < 500, (status, request[:2], str(request[2])[:200])
    assert not [status for status in seen if status >= 500], seen
    print(len(schema_driven), len(asked), sorted(seen.items()), start, shop.memory(process))
    assert len(schema_driven) + len(asked) >= 10_000, (len(schema_driven), len(asked))
    assert process.poll() is None and shop.ask(f"{address}/recommend", key, {"basket": ["i00"]})[0] == 200
    assert shop.memory(process) - start < 30e6, (start, shop.memory(process))
    assert seen[200] > 100 and seen[422] > 1000 and seen.get(0, 0) < 100, seen
    assert "Traceback" not in (folder / "log.txt").read_text()


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

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    name, small.names[1] = small.names[1], "another name"
    new = artifact.save(small, folder, encoder)
    small.names[1] = name
    time.sleep(2)
    artifact.make_current(folder, old)
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    turns = [version for version, _ in itertools.groupby(a["version"] for _, a in answers)]
    assert {old, new} == set(turns) and answers[-1][1]["version"] == old
    assert len(answers) > 200


def test_a_kill_during_start_up_loses_nothing(small, encoder, tmp_path):
    artifact.save(small, tmp_path, encoder)
    version = artifact.load(tmp_path).version
    with shop.running(tmp_path) as (address, key, process):
        for _ in range(20):
            shop.ask(f"{address}/feedback", key, {"item": "i00", "event": "shown"})
        process.send_signal(signal.SIGKILL)
    for pause in (0.1, 0.5, 1.0, 1.5, 2.0):
        with shop.running(tmp_path, wait=False) as (_, _, process):
            time.sleep(pause)
    with shop.running(tmp_path) as (address, key, process):
        assert shop.ask(f"{address}/ready", None)[1]["version"] == version
        shop.ask(f"{address}/feedback", key, {"item": "i01", "event": "added"})
    lines = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == ["i00"] * 20 + ["i01"]


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
    build.book_shop(folder, shop.SECRET)
    with shop.running(folder) as (address, key, _):
        yield address, key


SCREENSHOT = app.PAGE / "screenshot.png"
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
