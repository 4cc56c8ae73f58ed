"""Notebooks where readers open them: a real JupyterLab in headless Chromium, "Run All Cells", no error.

Chapters 01 and 04, or those that RECUTILS_LAB names (make lab-check: all); two at a time, as there are two cores.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser import browsing
from conftest import ROOT
from test_book import STEMS

WANTED = [s for s in STEMS if s.startswith(tuple(os.environ.get("RECUTILS_LAB", "01 04").split()))]
SECONDS = 1800  # generous: a chapter takes minutes, on a busy machine many

# A page without the focus has no current notebook, so the panel is told that it has it.
READY = """(() => {
    const panel = window.jupyterapp && Array.from(jupyterapp.shell.widgets('main')).find(p => p.sessionContext);
    if (!panel) return false;
    jupyterapp.shell.activateById(panel.id);
    panel.content.activate();
    const session = panel.sessionContext.session;
    const current = panel == jupyterapp.shell.currentWidget && panel.context.isReady;
    return current && session && session.kernel.status == 'idle';
})()"""
RUN = "jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.allDone = true }); true"
FOUND = """(() => {
    const cells = Array.from(jupyterapp.shell.currentWidget.content.model.cells).filter(c => c.type == 'code');
    const errors = cells.flatMap(c => c.outputs.toJSON().filter(o => o.output_type == 'error'));
    return JSON.stringify({n: cells.length, counts: cells.map(c => c.executionCount),
        errors: errors.map(o => o.ename + ': ' + o.evalue)});
})()"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over copies of the notebooks without their outputs; its address."""
    folder = tmp_path_factory.mktemp("lab")
    for stem in WANTED:
        shutil.copy(ROOT / "notebooks" / f"{stem}.ipynb", folder)
        clear = ["nbconvert", "--clear-output", "--inplace", "--log-level=ERROR", str(folder / f"{stem}.ipynb")]
        subprocess.run([sys.executable, "-m", *clear], check=True)
    command = [*(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"), f"--ServerApp.root_dir={folder}"]
    command += ["--port=0", "--expose-app-in-browser", "--IdentityProvider.token="]
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen([*command, "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"], stderr=log)
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/", (folder / "lab.log").read_text())):
            assert server.poll() is None and time.monotonic() < until, (folder / "lab.log").read_text()
            time.sleep(0.2)
        yield found[0]
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()


def run_all_cells(chromium, profile, address):
    """Open one chapter and run it: its number of code cells, their execution counts, their errors."""
    with browsing(chromium, profile, address) as page:
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.wait(READY, seconds=120)
        assert {*json.loads(page.run(FOUND))["counts"]} == {None}
        page.run(RUN)
        page.wait("window.allDone == true", seconds=SECONDS, every=1)
        found = json.loads(page.run(FOUND))
        page.run("jupyterapp.shell.currentWidget.sessionContext.shutdown(); true")
        return found


@pytest.fixture(scope="module")
def runs(chromium, lab, tmp_path_factory):
    """What `run_all_cells` will find in each chapter: {stem: future}."""
    profiles = tmp_path_factory.mktemp("profiles")
    with ThreadPoolExecutor(2) as pool:
        yield {
            stem: pool.submit(
                run_all_cells, chromium, profiles / stem, f"{lab}lab/workspaces/{stem}/tree/{stem}.ipynb?reset"
            )
            for stem in WANTED
        }


@pytest.mark.parametrize("stem", WANTED)
def test_run_all_cells_in_jupyterlab(runs, stem):
    found = runs[stem].result()
    assert not found["errors"] and found["counts"] == list(range(1, found["n"] + 1))
