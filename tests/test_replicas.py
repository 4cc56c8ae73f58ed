"""Three replicas behind HAProxy (chapter 10b): one is killed under load, all are renewed, and nothing is lost."""

import json
import shutil
import sys

import psutil
import pytest
import shop
from conftest import ROOT, missing

from recutils.service import artifact, auth

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
sys.path.insert(0, str(ROOT / "deploy"))
import balancer
import replicas

pytestmark = pytest.mark.slow
BODIES = [json.dumps({"basket": ["i00", "i04"], "k": 3}).encode()]


@pytest.fixture(scope="module")
def served(sample_split, tmp_path_factory):
    """A folder with a version, and two keys."""
    if not shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin"):
        missing("HAProxy is not installed (Debian: apt-get install haproxy).", "haproxy")
    encoder = shop.export_once(tmp_path_factory.mktemp("encoder"))
    folder = tmp_path_factory.mktemp("replicated")
    artifact.save(shop.small_shop(sample_split, encoder), folder, encoder)
    (folder / "secret").write_text(shop.SECRET.decode())
    return folder, [auth.create_key(folder, name) for name in ("till", "page")]


def test_one_killed_under_load_loses_nothing(served):
    folder, keys = served
    with replicas.replicated(folder) as (front, them):
        family = psutil.Process().children(recursive=True)
        places = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        asked = balancer.ask_steadily([front], keys, BODIES, 8, 40, them[1].stop)
        alone = balancer.ask_steadily([them[1].address], keys, BODIES, 0.2, 40)
    assert places == {"127.0.0.1"}
    assert set(asked["said"]) == {"200"} and len(asked) == 320
    assert set(alone["said"]) == {"ConnectionRefusedError"}  # so the load did meet its end
    assert balancer.summary(alone)["lost"] == 8


def test_a_rolling_update_loses_nothing_and_a_key_has_one_limit_where_it_stays_with_one(served):
    folder, keys = served
    with replicas.replicated(folder, "hdr(X-API-Key)", rate=5) as (front, them):
        before = [replica.process.pid for replica in them]
        asked = balancer.ask_steadily([front], keys, BODIES, 40, 5, lambda: balancer.renew_all(them))
        assert all(replica.process.pid != old for replica, old in zip(them, before, strict=True))
        many = balancer.summary(balancer.ask_steadily([front], keys[:1], BODIES, 6, 30))
    assert set(asked["said"]) == {"200"}
    assert many["lost"] == 0 and many["answered"] <= 2 * 5 + 5 * 7  # its burst, and its rate
    with replicas.replicated(folder, "leastconn", rate=5) as (front, _):
        spread = balancer.summary(balancer.ask_steadily([front], keys[:1], BODIES, 6, 30))
    assert spread["lost"] == 0 and spread["answered"] > 2 * many["answered"]  # three limits


def test_without_haproxy_there_is_one_clear_message(monkeypatch, tmp_path):
    monkeypatch.setattr(replicas.shutil, "which", lambda *a, **k: None)
    with pytest.raises(RuntimeError, match="HAProxy is not installed"), replicas.replicated(tmp_path):
        pass
