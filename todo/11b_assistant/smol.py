import jupytext, os, sys, time, json, torch
os.chdir('notebooks')
import importlib.util
from pathlib import Path
import pandas as pd
from recutils import settings, evaluate
cells=[c.source for c in jupytext.read('notebooks/11b_reviews_and_pictures.md').cells if c.cell_type=='code']
LONG=False
def get(k):
    (c,)=[x for x in cells if k in x]; return c
src=get('def installed('); exec(src.split("REVIEWS = ")[0])
exec(get('SYSTEM = ('))
exec(get('def load_smollm'))
src=get('def ask_smollm'); exec(src.split("if LONG:")[0])
torch.set_num_threads(1)
t=time.time(); model,tokenizer=load_smollm(); print('load',time.time()-t,flush=True)
asked_of = hundred["sentence"].to_list()
import builtins
def parts_of(n): return [asked_of[i:i+n] for i in range(0,100,n)]
answers=[]
for p in parts_of(25):
    t=time.time(); c=time.process_time(); answers+=ask_smollm(model,tokenizer,p); print(len(answers),time.time()-t,time.process_time()-c,answers[-25:-20],flush=True)
written_down = {"key": asked_key, "answers": answers}
written_down = json.dumps(written_down, ensure_ascii=False, indent=1)
answers_file.write_text(f"{written_down}\n", encoding="utf-8")
for a,b in zip(asked_of,answers): print(a,'->',repr(a and b))
