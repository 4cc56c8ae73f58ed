/* Mine it yourself: baskets to edit, the itemset lattice that Apriori walks, and the rules (mine_it_yourself.md).
 *
 * 1. Counting  pure functions. A basket, and an itemset, is a whole number with a bit for each product. Thresholds are
 *              whole per cents, compared by cross multiplication: nothing is rounded, as in recutils.rules.
 * 2. State     baskets, two thresholds, the order of the rules; the address holds it, a letter a basket.
 * 3. Baskets   a grid of toggle buttons, one stop of the Tab key; arrow keys move in it.
 * 4. Lattice   an SVG drawn once for a width; after an edit only classes and texts change.
 * 5. Rules     a table that sorts by its heads.
 * 6. Start     puts the parts into <div id="mine">; `redraw` follows every change.
 *
 * The hundred baskets are made up: drawn by tests/test_mine_it_yourself.py, which compares them with its own.
 */
(() => {
  "use strict";
  const PRODUCTS = ["bread", "butter", "milk", "jam", "coffee", "cheese"];
  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"; // the n-th stands for basket n
  const START = "CfUPlLBTfDnJIL3hLdhWUUNXSgLinHiQDpKzoUEnULLVUUUPULjUhUHDWHfjfXrDPQnPwjBPPUdPLULQULPjnLjFzVUBGHP4zdr5";
  const UNTOUCHED = "s=15&c=60&o=-confidence"; // thresholds and order of the rules in the address
  const MOST_BASKETS = 200;
  const SIZES = ["", "single products", "pairs", "triples", "sets of four", "sets of five", "all six"];

  // ---------------------------------------------------------------------------------------------- 1. counting

  const itemsOf = (set) => [...PRODUCTS.keys()].filter((i) => set & (1 << i));
  const bitsOf = (set) => itemsOf(set).map((i) => 1 << i);
  const nameOf = (set) => itemsOf(set).map((i) => PRODUCTS[i]).join(" + ");
  const sizeOf = (set) => itemsOf(set).length;
  const holders = (baskets, set) => [...baskets.keys()].filter((b) => (baskets[b] & set) === set);
  const reaches = (count, percent, of) => 100 * count >= percent * of;

  // All 63 itemsets, short ones first, and within a size in the order of the products.
  const ITEMSETS = Array.from({ length: 2 ** PRODUCTS.length - 1 }, (_, n) => n + 1).sort(
    (a, b) => sizeOf(a) - sizeOf(b) || itemsOf(a).join().localeCompare(itemsOf(b).join()));

  /* Level by level: an itemset is counted only if all of it but one product, whichever that is, is frequent. Otherwise
   * `because` names an infrequent part that was counted. Returns a Map: itemset -> {frequent, count} or {because}. */
  function apriori(baskets, percent) {
    const found = new Map();
    for (const set of ITEMSETS) {
      const parts = sizeOf(set) > 1 ? bitsOf(set).map((bit) => set ^ bit) : [];
      const missing = parts.find((part) => !found.get(part).frequent);
      if (missing) {
        found.set(set, { frequent: false, because: found.get(missing).because ?? missing });
      } else {
        const count = holders(baskets, set).length;
        found.set(set, { frequent: reaches(count, percent, baskets.length), count });
      }
    }
    return found;
  }

  // Rules with one product in the consequent, from frequent itemsets; measures as in recutils.rules.interest_measures.
  function associationRules(found, n, percent) {
    const rules = [];
    for (const [set, { frequent, count }] of found) {
      if (!frequent || sizeOf(set) < 2) continue;
      for (const consequent of bitsOf(set)) {
        const antecedent = set ^ consequent, left = found.get(antecedent).count;
        if (!reaches(count, percent, left)) continue;
        const support = count / n, confidence = count / left, right = found.get(consequent).count / n;
        rules.push({
          rule: `${nameOf(antecedent)} → ${nameOf(consequent)}`, support, confidence, lift: confidence / right,
          leverage: support - (left / n) * right,
          conviction: confidence < 1 ? (1 - right) / (1 - confidence) : Infinity,
        });
      }
    }
    return rules;
  }

  // ---------------------------------------------------------------------------------------------- 2. state

  const state = {};
  const decode = (text) => [...text].map((letter) => LETTERS.indexOf(letter));
  const encode = (baskets) => baskets.map((basket) => LETTERS[basket]).join("");
  const percentIn = (text, least, usual) => (/^\d+$/.test(text) && text >= least && text <= 100 ? Number(text) : usual);

  // What the address does not say, or says wrongly, is as at the start.
  function readAddress() {
    address = location.hash;
    const said = new URLSearchParams(location.hash.slice(1)), order = said.get("o") ?? "", by = order.replace("-", "");
    state.baskets = decode(/^[\w-]{1,200}$/.test(said.get("b") ?? "") ? said.get("b") : START);
    state.support = percentIn(said.get("s"), 1, 15);
    state.confidence = percentIn(said.get("c"), 0, 60);
    state.by = Object.hasOwn(COLUMNS, by) ? by : "confidence";
    state.down = state.by === by ? order.startsWith("-") : true;
  }

  let writing, address = ""; // the last that was read or written
  function writeAddress() {
    clearTimeout(writing); // a browser slows a page down that writes at every step of a slider
    writing = setTimeout(() => {
      if (location.hash !== address) return; // a new one has come and is about to be read
      const b = encode(state.baskets), said = new URLSearchParams({ s: state.support, c: state.confidence });
      said.set("o", (state.down ? "-" : "") + state.by);
      if (b !== START) said.set("b", b);
      if (location.hash.includes("=") || String(said) !== UNTOUCHED) history.replaceState(null, "", `#${said}`);
      address = location.hash;
    }, 250);
  }

  // ---------------------------------------------------------------------------------------------- 3. baskets

  function make(tag, more = {}, ...inside) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
    node.append(...inside);
    return node;
  }

  const grid = make("table", { role: "grid", "aria-label": "Baskets: a row each, a column a product" });
  const cellButton = (row, column) => grid.rows[row]?.querySelectorAll("button")[column];

  function drawGrid(row = 1, column = 0) {
    const button = (more, ...inside) => make("button", { type: "button", tabindex: -1, ...more }, ...inside);
    const title = "put into all baskets, or take out";
    const heads = PRODUCTS.map((name, i) => make("th", { scope: "col" },
      button({ "data-item": i, "aria-label": `${name} in all baskets`, title }, name)));
    const rows = state.baskets.map((basket, b) => make("tr", {},
      make("th", { scope: "row" }, String(b + 1)),
      ...PRODUCTS.map((name, i) => make("td", {}, button({
        "data-item": i, "aria-pressed": Boolean(basket & (1 << i)), "aria-label": `${name} in basket ${b + 1}`,
      }))),
      make("td", {}, button({ "data-remove": "", "aria-label": `remove basket ${b + 1}` }, "×"))));
    const head = make("tr", {}, make("th", { scope: "col" }, "no."), ...heads, make("td"));
    grid.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    cellButton(Math.min(row, state.baskets.length), column).tabIndex = 0;
  }

  function focusCell(row, column) {
    const last = (grid.rows[row] ?? grid.rows[1]).querySelectorAll("button").length - 1;
    cellButton(row, Math.min(column, last))?.focus();
  }

  // A product of one basket; at the head of a column of all baskets: in, or, where all have it, out.
  function toggle(row, item) {
    const bit = 1 << item, all = state.baskets.every((basket) => basket & bit);
    for (const b of row ? [row - 1] : state.baskets.keys()) {
      state.baskets[b] = row ? state.baskets[b] ^ bit : all ? state.baskets[b] & ~bit : state.baskets[b] | bit;
      cellButton(b + 1, item).setAttribute("aria-pressed", Boolean(state.baskets[b] & bit));
    }
    redraw();
  }

  function removeBasket(row) {
    if (state.baskets.length > 1) state.baskets.splice(row - 1, 1);
    drawGrid(row, PRODUCTS.length);
    focusCell(Math.min(row, state.baskets.length), PRODUCTS.length);
    redraw();
  }

  function addBasket() {
    if (state.baskets.length < MOST_BASKETS) state.baskets.push(0);
    drawGrid(state.baskets.length);
    focusCell(state.baskets.length, 0);
    redraw();
  }

  grid.addEventListener("click", ({ target }) => {
    const button = target.closest("button"), row = target.closest("tr")?.rowIndex;
    if (button?.dataset.item) toggle(row, Number(button.dataset.item));
    else if (button) removeBasket(row);
  });
  grid.addEventListener("focusin", ({ target }) => {
    grid.querySelectorAll("[tabindex='0']").forEach((old) => { old.tabIndex = -1; });
    target.tabIndex = 0;
  });
  grid.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr").rowIndex, last = state.baskets.length;
    const column = [...grid.rows[row].querySelectorAll("button")].indexOf(event.target);
    const to = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      PageUp: [Math.max(row - 8, 0), column], PageDown: [Math.min(row + 8, last), column],
      Home: [event.ctrlKey ? 0 : row, 0], End: [event.ctrlKey ? last : row, PRODUCTS.length],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    if (to[0] >= 0 && to[0] <= last && to[1] >= 0) focusCell(...to);
  });

  // ---------------------------------------------------------------------------------------------- 4. lattice

  function draw(tag, more = {}, ...inside) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
    node.append(...inside);
    return node;
  }

  const LINE = 13, HEAD = 22, GAP = 10; // heights in pixels: of a product in a box, of a level's heading, between rows
  const lattice = draw("svg", { role: "listbox", "aria-label": "The itemset lattice" });
  const frame = make("div", {}, lattice); // it listens for the focus: an SVG that did would be a stop of its own
  const detail = make("p");
  const boxes = new Map(), headings = []; // of each itemset {node, count, title, x, y, height}; of each level its text
  const edges = draw("path", { class: "edges" }), chosenEdges = draw("path", { class: "edges chosen" });
  let chosen = 0;

  function makeBox(set) {
    const names = itemsOf(set).map((i, k) => draw("text", { y: LINE * (k + 1) + 1 }, PRODUCTS[i].slice(0, 2)));
    const count = draw("text", { class: "count", y: LINE * (names.length + 1) + 3 }), title = draw("title");
    const height = LINE * (names.length + 1) + 9;
    const node = draw("g", { role: "option", tabindex: set === 1 ? 0 : -1, "data-set": set, "aria-selected": false },
      title, draw("rect", { height, y: 0 }), draw("path", { class: "struck" }), ...names, count);
    boxes.set(set, { node, count, title, height, x: 0, y: 0 });
    return node;
  }

  function makeLattice() {
    lattice.append(edges, chosenEdges);
    for (let size = 1; size <= PRODUCTS.length; size++) {
      const sets = ITEMSETS.filter((set) => sizeOf(set) === size);
      headings[size] = draw("text", { class: "level", "aria-hidden": true });
      lattice.append(draw("g", { role: "group", "aria-label": SIZES[size] }, headings[size], ...sets.map(makeBox)));
    }
  }

  // Places for the width there is: a level takes as many rows as it needs.
  function placeLattice(width) {
    let y = 0;
    const step = Math.min(Math.max(width / 20, 32), 44), box = Math.min(step - 4, 34);
    for (let size = 1; size <= PRODUCTS.length; size++) {
      const sets = ITEMSETS.filter((set) => sizeOf(set) === size), { height } = boxes.get(sets[0]);
      const nRows = Math.ceil(sets.length / Math.floor(width / step)), inRow = Math.ceil(sets.length / nRows);
      headings[size].setAttribute("y", y + 15); // at the right, where fewer lines pass
      headings[size].setAttribute("x", width);
      for (const [k, set] of sets.entries()) {
        const row = Math.floor(k / inRow), inThis = Math.min(inRow, sets.length - row * inRow);
        const place = boxes.get(set);
        place.x = width / 2 + ((k % inRow) - (inThis - 1) / 2) * step;
        place.y = y + HEAD + row * (height + GAP);
        place.node.setAttribute("transform", `translate(${place.x} ${place.y})`);
        for (const [name, value] of [["width", box], ["x", -box / 2], ["rx", 5]]) {
          place.node.querySelector("rect").setAttribute(name, value);
        }
        place.node.querySelector(".struck").setAttribute("d", `M${-box / 2} ${height}L${box / 2} 0`);
      }
      y += HEAD + nRows * (height + GAP) + GAP;
    }
    for (const [name, value] of [["width", width], ["height", y], ["viewBox", `0 0 ${width} ${y}`]]) {
      lattice.setAttribute(name, value);
    }
  }

  function explain(set, found) {
    const { frequent, count, because } = found.get(set), n = state.baskets.length;
    if (because === undefined) return `${nameOf(set)}: in ${count} of ${n} baskets, ${frequent ? "" : "in"}frequent`;
    return `${nameOf(set)}: not counted, since ${nameOf(because)} is infrequent (${found.get(because).count} of ${n})`;
  }

  function drawLattice(found) {
    let lines = "", chosenLines = "";
    for (const [set, { frequent, count }] of found) {
      const box = boxes.get(set), counted = count !== undefined;
      box.node.setAttribute("class", frequent ? "frequent" : counted ? "infrequent" : "pruned");
      box.node.setAttribute("aria-label", explain(set, found));
      box.node.setAttribute("aria-selected", set === chosen);
      box.title.textContent = explain(set, found);
      box.count.textContent = counted ? count : "–";
      for (const part of sizeOf(set) > 1 ? bitsOf(set).map((bit) => set ^ bit) : []) {
        const above = boxes.get(part), line = `M${above.x} ${above.y + above.height}L${box.x} ${box.y}`;
        if (frequent) lines += line; // then its parts are frequent too
        if (set === chosen || part === chosen) chosenLines += line;
      }
    }
    edges.setAttribute("d", lines);
    chosenEdges.setAttribute("d", chosenLines);
    for (let size = 1; size <= PRODUCTS.length; size++) {
      const level = [...found].filter(([set]) => sizeOf(set) === size).map(([, one]) => one);
      const counted = level.filter((one) => one.count !== undefined).length;
      const frequent = level.filter((one) => one.frequent).length;
      headings[size].textContent = `${SIZES[size]}: ${counted} of ${level.length} counted, ${frequent} frequent`;
    }
    drawChosen(found);
  }

  // The chosen itemset in words, and its baskets marked in the grid.
  function drawChosen(found) {
    const holding = chosen ? holders(state.baskets, chosen) : [];
    for (const b of state.baskets.keys()) grid.rows[b + 1].classList.toggle("holds", holding.includes(b));
    detail.textContent = "None yet. Choose a box of the lattice.";
    if (!chosen) return;
    const list = holding.length ? `Its baskets: ${holding.map((b) => b + 1).join(", ")}.` : "No basket holds it.";
    detail.textContent = `${explain(chosen, found)}. ${found.get(chosen).because ? "" : list}`;
  }

  function choose(set) {
    chosen = set;
    if (set) lattice.querySelectorAll("[tabindex='0']").forEach((old) => old.setAttribute("tabindex", -1));
    if (set) boxes.get(set).node.setAttribute("tabindex", 0);
    redraw();
  }

  frame.addEventListener("focusin", ({ target }) => {
    if (Number(target.dataset.set) !== chosen) choose(Number(target.dataset.set));
  });
  frame.addEventListener("keydown", (event) => {
    const at = ITEMSETS.indexOf(Number(event.target.dataset.set)), here = boxes.get(ITEMSETS[at]);
    let to = { ArrowLeft: ITEMSETS[at - 1], ArrowRight: ITEMSETS[at + 1], Home: 1, End: ITEMSETS.at(-1) }[event.key];
    if (event.key === "ArrowUp" || event.key === "ArrowDown") { // the nearest box of the next row
      const way = event.key === "ArrowUp" ? -1 : 1;
      const far = (set) => way * (boxes.get(set).y - here.y) * 1e4 + Math.abs(boxes.get(set).x - here.x);
      to = ITEMSETS.filter((set) => way * (boxes.get(set).y - here.y) > 0).sort((a, b) => far(a) - far(b))[0];
    }
    if (event.key === "Escape") choose(0);
    if (to) boxes.get(to).node.focus();
    if (to || event.key.startsWith("Arrow")) event.preventDefault();
  });

  // ---------------------------------------------------------------------------------------------- 5. rules

  const three = (value) => (value === Infinity ? "∞" : value.toFixed(3).replace(/^-(0\.000)$/, "$1"));
  const COLUMNS = { rule: String, support: three, confidence: three, lift: three, leverage: three, conviction: three };
  const heads = Object.fromEntries(Object.keys(COLUMNS).map((name) =>
    [name, make("th", { scope: "col" }, make("button", { type: "button", "data-by": name }, name))]));
  const body = make("tbody");
  const headRow = make("tr", {}, ...Object.values(heads));
  const table = make("table", { "aria-label": "Rules" }, make("thead", {}, headRow), body);

  function drawRules(rules) {
    const way = state.down ? -1 : 1, compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    rules.sort((a, b) =>
      way * compare(a[state.by], b[state.by]) || b.confidence - a.confidence || b.support - a.support);
    for (const [name, head] of Object.entries(heads)) {
      head.setAttribute("aria-sort", name !== state.by ? "none" : state.down ? "descending" : "ascending");
    }
    body.replaceChildren(...rules.map((rule) => make("tr", {},
      ...Object.entries(COLUMNS).map(([name, show]) => make("td", {}, show(rule[name]))))));
    if (!rules.length) body.append(make("tr", {}, make("td", { colspan: 6 }, "No rule reaches both thresholds.")));
  }

  table.addEventListener("click", ({ target }) => {
    const { by } = target.dataset;
    if (!by) return;
    state.down = by === state.by ? !state.down : by !== "rule"; // numbers fall at first, words rise
    state.by = by;
    redraw();
  });

  // ---------------------------------------------------------------------------------------------- 6. start

  const sliders = Object.fromEntries([["support", 1], ["confidence", 0]].map(([name, min]) => {
    const slider = make("input", { type: "range", min, max: 100, step: 1, id: `minimum-${name}` });
    slider.addEventListener("input", () => { state[name] = Number(slider.value); redraw(); });
    return [name, { slider, shown: make("output", { for: slider.id }) }];
  }));
  const summary = make("p", { role: "status" });
  const add = make("button", { type: "button" }, "Add a basket"), reset = make("button", { type: "button" }, "Reset");

  function drawThresholds(found, rules) {
    const n = state.baskets.length, least = Math.ceil((state.support * n) / 100);
    for (const [name, { slider, shown }] of Object.entries(sliders)) {
      slider.value = state[name];
      shown.textContent = name === "support" ? `${state.support} %: ${least} of ${n} baskets` : `${state.confidence} %`;
      slider.setAttribute("aria-valuetext", shown.textContent);
    }
    const all = [...found.values()], counted = all.filter((one) => one.count !== undefined).length;
    const frequent = all.filter((one) => one.frequent).length;
    const said = `Apriori counts ${counted} of ${all.length} itemsets and finds ${frequent} frequent. `
      + `${rules.length} ${rules.length === 1 ? "rule reaches" : "rules reach"} both thresholds.`;
    if (summary.textContent !== said) summary.textContent = said;
  }

  function redraw() {
    const found = apriori(state.baskets, state.support);
    const rules = associationRules(found, state.baskets.length, state.confidence);
    drawThresholds(found, rules);
    drawLattice(found);
    drawRules(rules);
    add.disabled = state.baskets.length >= MOST_BASKETS;
    writeAddress();
  }

  function load() {
    readAddress();
    drawGrid();
    redraw();
  }

  function start() {
    const root = document.getElementById("mine");
    if (!root) return; // another page of the book
    const part = (name, title, ...inside) =>
      make("section", { class: name, "aria-label": title }, make("h2", {}, title), ...inside);
    const scroll = make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Rules" }, table);
    const key = ["frequent", "infrequent", "pruned"].map((name, k) => make("li", { class: name },
      make("span", { "aria-hidden": true }, ["30", "5", "–"][k]),
      ["counted, frequent", "counted, infrequent", "not counted: a part is infrequent"][k]));
    root.classList.add("mine");
    root.replaceChildren(
      part("baskets", "Baskets", make("div", { class: "scroll" }, grid), make("div", { class: "buttons" }, add, reset)),
      part("thresholds", "Thresholds",
        ...Object.entries(sliders).map(([name, { slider, shown }]) => make("div", {},
          make("label", { for: slider.id }, `minimum ${name} `), shown, slider)), summary),
      part("lattice", "Lattice", make("ul", { class: "key" }, ...key), frame),
      part("chosen", "Chosen itemset", detail),
      part("rules", "Rules", scroll));
    makeLattice();
    add.addEventListener("click", addBasket);
    reset.addEventListener("click", () => { history.replaceState(null, "", "#"); chosen = 0; load(); });
    window.addEventListener("hashchange", () => {
      if (location.hash.includes("=")) load();
      else address = location.hash; // a heading of the page
    });
    const place = () => { placeLattice(frame.clientWidth); redraw(); };
    load();
    place();
    new ResizeObserver(place).observe(frame);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
