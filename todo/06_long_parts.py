"""The notebook's own cells up to the long run, then its parts one by one, kept as they are done."""
import json, sys, time, os
from pathlib import Path
import jupytext
t0=time.time()
def say(*a): print(f"{time.time()-t0:7.1f}", *a, flush=True)
nb = jupytext.read("notebooks/06b_explanations_on_trial.md")
space = {"__name__": "__main__"}
os.chdir("notebooks")
for cell in nb.cells:
    if cell.cell_type != "code": continue
    src = cell.source
    if "%pip" in src or src.startswith("recutils = "):
        import importlib; space["recutils"] = importlib.import_module("recutils"); continue
    if "plots.flow_diagram(" in src or "plots.show(" in src: continue
    if "stored_key = {" in src:
        exec(compile(src, "cell", "exec"), space); continue
    if "def all_trials" in src:
        exec(compile(src.split("parts = (")[0], "cell", "exec"), space); break
    exec(compile(src, "cell", "exec"), space)
say("ready")
P = Path("/tmp/w06/parts"); P.mkdir(exist_ok=True)
key = space["evaluate"].fingerprint(space["stored_key"]); say("key", key)
def part(name, work):
    f = P / f"{name}.{key}.json"
    if f.exists(): return json.loads(f.read_text())
    rows = work(); f.write_text(json.dumps(rows, default=float)); say(name, len(rows))
    space["settings"].release_memory()
    return rows
S = space
which = sys.argv[1].split(",")
tuned=None
for w in which:
    if w == "fields": part(w, lambda: S["trial_of_texts"]("fields", 200))
    if w == "words": part(w, lambda: S["trial_of_texts"]("words", 200))
    if w.startswith("stab_"):
        c = {"r": "reworded", "a": "another seed", "n": "all random"}[w[5:]]
        part(w, lambda: S["trial_of_stability"](200, (c,)))
    if w == "ranker": part(w, lambda: S["trial_of_ranker"](200))
    if w == "graph":
        got = part("tuning", lambda: S["tuned_explainer"](4))
        rows, tuned = got
        part("graph", lambda: S["trial_of_graph"](50, tuple(tuned)))
say("done", which)
# merge: what is stored already, and the new parts
if os.environ.get("MERGE"):
    f = Path("../data/results/06b_explanations_on_trial.long.json")
    old = json.loads(f.read_text())
    assert {r["configuration"] for r in old} == {key}
    new = [r for w in which for r in json.loads((P / f"{w}.{key}.json").read_text())]
    seen = {(r["task"], r["model"], r["metric"]) for r in new}
    start = {"chapter": S["chapter"], "split": "test"} | S["evaluate"].provenance()
    rows = [r for r in old if (r["task"], r["model"], r["metric"]) not in seen] + [start | r for r in new]
    S["evaluate"].save_results(S["chapter"], rows, S["stored_key"])
    say("merged", len(rows))
