"""Headless Chromium, driven over its DevTools protocol: open, type, look, photograph."""

import base64
import contextlib
import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
    ),
]


class Browser:
    """One page; `errors` collects what its console and its scripts complain of."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.numbers, self.errors = itertools.count(1), []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict:
        """One command of the protocol, and its answer."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            heard = json.loads(self.socket.recv())
            if heard.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(heard["params"]))
            if heard.get("id") == number:
                assert "error" not in heard, heard
                return heard["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20, every: float = 0.05) -> Any:
        """Until an expression is true, asked `every` so many seconds; its value."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = self.run(script)
            if value:
                return value
            time.sleep(every)
        raise AssertionError(f"never true: {script}; the page says {self.run('document.body.innerText')!r}")

    def type(self, text: str) -> None:
        """Letters into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """A key by its name: Enter, Tab, Space, ArrowDown, Escape and the like."""
        codes = {"Enter": 13, "Tab": 9, "Space": 32, "Escape": 27, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        more = {"Enter": {"text": "\r"}, "Space": {"text": " "}}.get(key, {})
        names = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": codes[key]}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **names, **more)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """Of the window."""
        how = {"deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **how)

    def photograph(self, file: Path) -> None:
        """The window as it is, as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(chromium: str, profile: Path, address: str) -> Iterator[Browser]:
    """A browser with an address opened in it."""
    process = subprocess.Popen(
        [chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
    )
    try:
        file, until = profile / "DevToolsActivePort", time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < until and process.poll() is None, "Chromium did not start"
            time.sleep(0.1)
        port = file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            page = next(p for p in json.loads(answer.read()) if p["type"] == "page")
        browser = Browser(page["webSocketDebuggerUrl"])
        browser.call("Page.navigate", url=address)
        browser.wait("location.href != 'about:blank' && document.readyState == 'complete'")
        yield browser
        browser.socket.close()
    finally:
        process.kill()
        process.wait()
