"""A small shop for the service's tests, made from data/sample, and a running service to ask."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from recutils import models, text
from recutils.ranker import HybridRanker, RankerSettings, shop_members
from recutils.service import artifact, auth, build, onnx_encoder

SECRET = b"a secret for tests"


def small_ranker(split):
    """A `HybridRanker` with the book's nine members on the made-up shop, twelve trees, three candidates a member."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(split.items), 8)).astype(np.float32)
    members = shop_members(vectors, models.DotProduct(vectors, np.zeros(len(vectors), np.float32)))
    groups = split.items[["department", "name"]]
    ranker = HybridRanker(members, groups, None, split.validation, RankerSettings(3, n_trees=12))
    return ranker.fit(split.train)


def export_once(folder: Path) -> Path:
    """The pretrained encoder in eight bits."""
    return onnx_encoder.export_onnx(text.load_encoder(), folder)


def small_shop(split, encoder: Path, ranker=None) -> artifact.Artifact:
    """What is served from the made-up shop."""
    prices = np.where(np.arange(len(split.items)) % 7 == 0, np.nan, 2.5)
    kinds = split.items["name"].str.split().str[0]
    ranker = ranker or small_ranker(split)
    names = split.items["name"].to_list()
    names[19] = "soap <img src=x onerror=alert(1)>"  # the page must show it as it is
    households = split.households.to_list()
    shop = build.ShopData(split.items, prices, households, split.train, split.validation, names, kinds, anonymous=True)
    shop.demonstration = households[:2]
    return build.assemble(ranker, shop, encoder, SECRET)


def ask(address: str, key: str | None, body: object = None, data: bytes | None = None) -> tuple[int, dict]:
    """Status and answer of one request; `body` is sent as JSON, `data` as it is."""
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
    data = json.dumps(body).encode() if body is not None else data
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@contextlib.contextmanager
def commanded(folder: Path):
    """`recutils serve` on a folder, in a process of its own: its address, what gives its first key, the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "recutils.cli", "serve", str(folder), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "RECUTILS_SECRET"}
    with open(folder / "log.out", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield (
            f"http://127.0.0.1:{port}",
            lambda: (folder / "log.out").read_text().split("#key=")[1].split()[0],
            process,
        )
    finally:
        process.terminate()
        process.wait()


def wait_until_answering(address: str, process: subprocess.Popen, seconds: float = 60) -> int:
    """Until /ready answers, whatever it says; its status."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            return ask(f"{address}/ready", None)[0]
        time.sleep(0.1)
    raise AssertionError("the service did not answer")


@contextlib.contextmanager
def running(folder: Path, *more: str, rate: float = 1e6, wait: bool = True, secret: bytes | None = SECRET, **variables):
    """A service in a process of its own, `variables` in its environment: its address, a key, and the process."""
    if secret is not None:
        (folder / "secret").write_text(secret.decode())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = auth.create_key(folder, f"tests {port}")  # another's key would be taken up, and this one refused
    command = [
        sys.executable,
        "-m",
        "recutils.service",
        "--folder",
        str(folder),
        "--port",
        str(port),
        *(["--rate", str(rate)] if rate else []),
        *more,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RECUTILS_SECRET"}
    environment |= {"RECUTILS_MAX_DELAY": "30"} | variables  # a busy machine is no overload
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        if wait:
            wait_until_ready(address, process)
        yield address, key, process
    finally:
        process.kill()
        process.wait()


def wait_until_ready(address: str, process: subprocess.Popen, seconds: float = 60) -> None:
    """Until /ready says so."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            if ask(f"{address}/ready", None)[0] == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")


def memory(process: subprocess.Popen) -> int:
    """Memory of its own that a process holds now, in bytes: without the files that it has mapped."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")
