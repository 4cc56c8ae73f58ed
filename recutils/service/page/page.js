"use strict";
const at = (id) => document.getElementById(id);
const basket = new Map(), refused = new Set();
let key = new URLSearchParams(location.hash.slice(1)).get("key") || sessionStorage.getItem("key") || "";
if (location.hash) history.replaceState(null, "", location.pathname); // the key does not stay in the address

async function ask(path, body) {
  const headers = { "X-API-Key": key };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const found = await answer.json();
  if (answer.status === 401) enter();
  if (!answer.ok) throw new Error([found.error, ...found.fields.map((f) => `${f.where}: ${f.what}`)].join(" "));
  return Object.assign(found, { request: answer.headers.get("x-request-id") });
}

async function attempt(work) {
  try {
    at("message").textContent = "";
    await work();
  } catch (error) {
    at("message").textContent = error.message;
  }
}

function make(tag, text, more = {}) {
  const node = Object.assign(document.createElement(tag), more);
  if (text) node.textContent = text; // never HTML: names come from outside
  return node;
}

function line(item, ...buttons) {
  const li = make("li"), row = make("div", "", { className: "row" });
  const name = make("span", item.name, { className: "name" });
  const price = item.price === null ? "" : ` · $${item.price.toFixed(2)}`;
  name.append(make("span", item.department.toLowerCase() + price, { className: "small" }));
  row.append(name, ...buttons);
  li.append(row);
  return li;
}

function button(text, label, act) {
  const made = make("button", text, { type: "button" });
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// search: what is typed, a list below it, arrow keys, Enter, Escape
let found = [], chosen = -1, typed = 0;
function showFound(items) {
  found = items;
  chosen = items.length ? 0 : -1;
  at("query").setAttribute("aria-expanded", String(items.length > 0));
  at("found").replaceChildren(...items.map((item, n) => {
    const li = make("li", item.name, { id: `found-${n}` });
    li.append(make("span", item.department.toLowerCase(), { className: "small" }));
    li.setAttribute("role", "option");
    li.addEventListener("mousedown", (event) => { event.preventDefault(); put(item); });
    return li;
  }));
  mark();
}
function mark() {
  [...at("found").children].forEach((li, n) => li.setAttribute("aria-selected", String(n === chosen)));
  if (chosen >= 0) at("query").setAttribute("aria-activedescendant", `found-${chosen}`);
  else at("query").removeAttribute("aria-activedescendant");
}
at("query").addEventListener("input", () => {
  const now = ++typed, words = at("query").value.trim();
  setTimeout(() => {
    if (now !== typed) return; // more was typed meanwhile
    if (!words) return showFound([]);
    attempt(async () => {
      const answer = await ask(`/search?k=6&q=${encodeURIComponent(words)}`);
      if (now === typed) showFound(answer.items);
    });
  }, 150);
});
at("query").addEventListener("keydown", (event) => {
  if (event.key === "Escape") { typed++; showFound([]); }
  if (event.key === "Enter") { event.preventDefault(); if (chosen >= 0) put(found[chosen]); }
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (found.length) chosen = (chosen + (event.key === "ArrowDown" ? 1 : found.length - 1)) % found.length;
    mark();
  }
});

const household = () => at("household").value || undefined;

function put(item) {
  basket.set(item.item, item);
  typed++;
  at("query").value = "";
  showFound([]);
  at("query").focus();
  attempt(renew);
}

// the basket, and what goes with it
let asked = 0;
async function renew() {
  const now = ++asked;
  at("empty").hidden = basket.size > 0;
  at("make").disabled = basket.size === 0;
  at("bundle").replaceChildren();
  at("basket").replaceChildren(...[...basket.values()].map((item) => line(item, button("Remove", `Remove ${item.name}`, () => {
    basket.delete(item.item);
    attempt(renew);
    at("query").focus();
  }))));
  const who = household();
  const answer = await ask("/recommend", { basket: [...basket.keys()], household: who, k: Math.min(5 + refused.size, 50) });
  if (now !== asked) return; // the basket has changed meanwhile
  const shown = answer.items.map((item, n) => [item, n + 1]).filter(([item]) => !refused.has(item.item)).slice(0, 5);
  const tell = (event, ...offers) => { // what became of these offers; a lost word spoils nothing
    if (!offers.length) return;
    const events = offers.map(([item, rank]) => ({ item: item.item, event, rank }));
    ask("/feedback", { events, household: who, version: answer.version, request: answer.request }).catch(() => {});
  };
  tell("shown", ...shown);
  at("offers").replaceChildren(...shown.map((offer) => {
    const [item] = offer;
    const li = line(
      item,
      button("Why?", `Why ${item.name}?`, () => attempt(() => why(item, li))),
      button("Add", `Add ${item.name}`, () => { tell("added", offer); put(item); }),
      button("Not for me", `Not for me: ${item.name}`, () => {
        tell("refused", offer);
        refused.add(item.item);
        attempt(renew);
        at("query").focus();
      }),
    );
    return li;
  }));
}

const ruleText = (rule) =>
  `Of baskets with ${rule.if.join(" and ")}, ${Math.round(100 * rule.confidence)} % hold it (lift ${rule.lift.toFixed(1)}).`;

async function why(item, li) {
  const old = li.querySelector(".why");
  if (old) return old.remove();
  const answer = await ask("/explain", { basket: [...basket.keys()], household: household(), item: item.item });
  const box = make("div", "", { className: "why" }), evidence = make("details");
  box.append(make("p", answer.sentence), evidence);
  evidence.append(make("summary", "Evidence"));
  const helps = answer.basket.filter((part) => part[2] > 0).slice(0, 3);
  const most = Math.max(...helps.map((part) => part[2]));
  for (const [, name, value] of helps) {
    const row = make("div", "", { className: "row" });
    row.append(make("span", name, { className: "name small" }), make("meter", "", { max: most, value }));
    row.lastChild.setAttribute("aria-label", `${name} speaks for it`);
    evidence.append(row);
  }
  const list = make("ul");
  for (const [name, value] of Object.entries(answer.evidence)) {
    list.append(make("li", `${name}: ${value > 0 ? "+" : ""}${value.toFixed(2)}`, { className: "small" }));
  }
  for (const rule of answer.rules) list.append(make("li", ruleText(rule), { className: "small" }));
  if (answer.counterfactual) {
    const [without, first] = answer.counterfactual;
    list.append(make("li", `Without ${without}, ${first} would be offered first.`, { className: "small" }));
  }
  evidence.append(list);
  li.append(box);
}

at("make").addEventListener("click", () => attempt(async () => {
  const last = [...basket.keys()].slice(-1);
  const answer = await ask("/bundle", { items: last, size: 4 });
  at("bundle").replaceChildren(...answer.items.map((item) => line(item)));
}));

at("household").addEventListener("change", () => attempt(renew));

// the key
function enter() {
  sessionStorage.removeItem("key");
  at("shop").hidden = true;
  at("entrance").hidden = false;
  at("key").focus();
}
at("entrance").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  start();
});
function start() {
  attempt(async () => {
    if (!key) return enter();
    at("entrance").hidden = true;
    at("shop").hidden = false;
    const known = await ask("/households");
    for (const { household, habits } of known.households) {
      at("household").append(make("option", `household ${household}: ${habits}`, { value: household }));
    }
    at("as").hidden = !known.households.length;
    await renew();
    sessionStorage.setItem("key", key);
    at("query").focus();
  });
}
start();
