"use strict";
// Tables of answers, of what differs between two sets of them, and confusion over the run. All text comes from models and
// rows: it is put in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [LINE, SAMPLE, OUTCOME, GOLD, VERDICT, REWARD, ADVANTAGE, TOKENS, COMPLETION, PROMPT] = Array(10).keys();
  const PAGE = 25;
  const IS_TEXT = new Set([OUTCOME, GOLD, VERDICT, COMPLETION, PROMPT]);
  const CLASSES = { right: "exact", malformed: "malformed" };
  const value = (row, column) => {
    const found = row[column];
    return found !== null && IS_TEXT.has(column) ? data.texts[found] : found;
  };
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const short = (number) => (number === null ? "-" : String(Math.round(number * 1000) / 1000));
  const oneLine = (text) => {
    const line = text.replace(/\s+/g, " ").trim();
    return line === "" ? "(empty)" : line.length > 110 ? line.slice(0, 110) + " ..." : line;
  };
  const folded = (title, text) => make("details", {}, make("summary", { textContent: title }), make("pre", { textContent: text }));
  const prompt = (row) => (row[PROMPT] === null ? "" : folded("prompt", value(row, PROMPT)));
  const chip = (row) => {
    const outcome = value(row, OUTCOME);
    return make("span", { className: "chip " + (CLASSES[outcome] || "wrong"), textContent: outcome });
  };

  // Every set of answers, with the name that menus show.
  const sets = data.runs.flatMap((run, i) =>
    run.sets.map((set) => ({ ...set, run: i, title: (data.runs.length > 1 ? run.name + ", " : "") + (set.kind === "rollouts" ? "rollouts of " : "") + set.name })));
  const chooser = (label, chosen, onchange) => {
    const select = make("select", { onchange });
    data.runs.forEach((run, i) => {
      const group = make("optgroup", { label: run.name });
      sets.forEach((set, at) => {
        if (set.run === i) group.append(make("option", { value: at, textContent: set.title, selected: at === chosen }));
      });
      select.append(group);
    });
    return [select, make("label", {}, label + " ", select)];
  };
  const lastOf = (run) => sets.findLastIndex((set) => set.kind === "evaluation" && (run === undefined || set.run === run));

  // Pages of `rows`, drawn by `draw(row)`; `head`: a heading or a button that sorts.
  const table = (name, head, draw) => {
    const body = make("tbody");
    const place = make("span", { className: "soft" });
    const step = (by) => () => { page += by; show(); };
    const back = make("button", { type: "button", textContent: "back", onclick: step(-1) });
    const next = make("button", { type: "button", textContent: "next", onclick: step(1) });
    const row = make("tr");
    const element = make("div", {},
      make("div", { className: "wide", tabIndex: 0 }, make("table", { className: "answers", ariaLabel: name }, make("thead", {}, row), body)),
      make("p", { className: "controls" }, back, next, place));
    row.append(...head);
    let rows = [], page = 0;
    const show = () => {
      const pages = Math.max(1, Math.ceil(rows.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      const shown = rows.slice(page * PAGE, (page + 1) * PAGE);
      body.replaceChildren(...shown.map((one) => make("tr", {}, ...draw(one).map((cell, i) => {
        const td = make("td", {}, cell);
        td.dataset.name = head[i].textContent;
        return td;
      }))));
      back.disabled = page === 0;
      next.disabled = page === pages - 1;
      const first = rows.length === 0 ? 0 : page * PAGE + 1;
      place.textContent = `${first}-${page * PAGE + shown.length} of ${rows.length}`;
    };
    return { element, fill: (all) => { rows = all; page = 0; show(); } };
  };
  const heading = (textContent) => make("th", { scope: "col", textContent });

  const explorer = document.getElementById("explorer");
  if (explorer && sets.length > 0) {
    const columns = [["row", LINE], ["outcome", OUTCOME], ["gold", GOLD], ["verdict", VERDICT], ["reward", REWARD],
      ["advantage", ADVANTAGE], ["tokens", TOKENS], ["answer", COMPLETION]];
    let sort = LINE, descending = false;
    const redraw = () => update();
    const [choice, choiceLabel] = chooser("answers of", lastOf(), redraw);
    const search = make("input", { type: "search", placeholder: "in answers and prompts", oninput: redraw });
    const filters = [["outcome", OUTCOME], ["gold", GOLD], ["verdict", VERDICT]].map(([name, column]) => {
      const select = make("select", { onchange: redraw });
      const found = [...new Set(sets.flatMap((set) => set.rows.map((row) => value(row, column))))].sort();
      select.append(make("option", { value: "", textContent: "all" }),
        ...found.map((text) => make("option", { value: text, textContent: text })));
      return { column, select, label: make("label", {}, name + " ", select) };
    });
    const headings = columns.map(([name, column]) => {
      const order = () => { descending = sort === column && !descending; sort = column; update(); };
      const th = make("th", { scope: "col" }, make("button", { type: "button", textContent: name, onclick: order }));
      th.dataset.column = column;
      return th;
    });
    const all = table("answers", headings, (row) => [
      String(row[LINE]), chip(row), value(row, GOLD), value(row, VERDICT), short(row[REWARD]), short(row[ADVANTAGE]),
      short(row[TOKENS]),
      make("div", {}, folded(oneLine(value(row, COMPLETION)), value(row, COMPLETION)), prompt(row)),
    ]);
    const said = make("p", { className: "soft" });
    const update = () => {
      const set = sets[choice.value];
      const wanted = search.value.toLowerCase();
      const has = (row, column) => row[column] !== null && value(row, column).toLowerCase().includes(wanted);
      const rows = set.rows.filter((row) =>
        filters.every(({ column, select }) => select.value === "" || value(row, column) === select.value) &&
        (wanted === "" || has(row, COMPLETION) || has(row, PROMPT)));
      const compare = (a, b) => (a === b ? 0 : a === null ? -1 : b === null ? 1 : a < b ? -1 : 1);
      rows.sort((a, b) => (descending ? -1 : 1) * compare(value(a, sort), value(b, sort)) || a[LINE] - b[LINE] || a[SAMPLE] - b[SAMPLE]);
      headings.forEach((th) => {
        th.ariaSort = Number(th.dataset.column) === sort ? (descending ? "descending" : "ascending") : "none";
      });
      said.textContent = set.rows.length < set.count ? `${set.rows.length} of ${set.count} answers are in this page.` : "";
      all.fill(rows);
    };
    explorer.append(make("p", { className: "controls" }, choiceLabel, ...filters.map((f) => f.label), make("label", {}, "search ", search)),
      said, all.element);
    update();
  }

  const differences = document.getElementById("differences");
  if (differences && sets.length > 1) {
    const evaluations = sets.map((set, at) => at).filter((at) => sets[at].kind === "evaluation");
    const first = data.runs.length > 1 ? lastOf(0) : evaluations[0];
    const second = data.runs.length > 1 ? lastOf(1) : lastOf(0);
    const redraw = () => update();
    const [a, aLabel] = chooser("A", first, redraw);
    const [b, bLabel] = chooser("B", second, redraw);
    const isRight = (row) => row[GOLD] === row[VERDICT];
    const kinds = {
      "verdicts differ": ([x, y]) => x[VERDICT] !== y[VERDICT],
      "texts differ": ([x, y]) => x[COMPLETION] !== y[COMPLETION],
      "only A is right": ([x, y]) => isRight(x) && !isRight(y),
      "only B is right": ([x, y]) => !isRight(x) && isRight(y),
    };
    const which = make("select", { onchange: redraw }, ...Object.keys(kinds).map((textContent) => make("option", { textContent })));
    const said = make("p", { className: "soft" });
    const side = (row) => make("div", {}, chip(row), " " + value(row, VERDICT) + ", reward " + short(row[REWARD]),
      make("pre", { textContent: value(row, COMPLETION) }));
    const pairs = table("answers that differ", ["row", "gold", "A", "B"].map(heading), ([x, y]) => [
      String(x[LINE]), value(x, GOLD), make("div", {}, side(x), prompt(x[PROMPT] === null ? y : x)), side(y)]);
    pairs.element.querySelector("table").classList.add("pairs");
    const update = () => {
      const [left, right] = [sets[a.value], sets[b.value]];
      const key = (row) => row[LINE] + " " + row[SAMPLE];
      const known = new Map(right.rows.map((row) => [key(row), row]));
      const both = left.rows.map((row) => [row, known.get(key(row))]).filter(([, other]) => other !== undefined);
      // The same line of other data is another row.
      const isSame = ([x, y]) => x[GOLD] === y[GOLD] && (x[PROMPT] === null || y[PROMPT] === null || x[PROMPT] === y[PROMPT]);
      const same = both.filter(isSame);
      const count = (test) => same.filter(test).length;
      said.textContent = `${same.length} answers to the same rows: ${count(([x, y]) => isRight(x) && isRight(y))} right in both, ` +
        `${count(kinds["only A is right"])} only in A, ${count(kinds["only B is right"])} only in B, ` +
        `${count(([x, y]) => !isRight(x) && !isRight(y))} in neither.` +
        (same.length < both.length ? ` ${both.length - same.length} lines have other rows in A than in B.` : "");
      pairs.fill(same.filter(kinds[which.value]));
    };
    differences.append(make("p", { className: "controls" }, aLabel, bLabel, make("label", {}, "show ", which)), said, pairs.element);
    differences.hidden = false;
    update();
  }

  // A slider over the evaluations above each confusion matrix.
  document.querySelectorAll("table.matrix").forEach((matrix) => {
    const { name, confusions } = data.runs[matrix.dataset.run];
    if (confusions.length < 2) return;
    const caption = matrix.parentElement.previousElementSibling;
    const output = make("output");
    const slider = make("input", { type: "range", min: 0, max: confusions.length - 1, step: 1, value: confusions.length - 1 });
    const show = () => {
      const { name: evaluation, rows } = confusions[slider.value];
      output.textContent = evaluation;
      caption.textContent = matrix.ariaLabel = `${name}, ${evaluation}: gold label (rows) by verdict (columns)`;
      [...matrix.tBodies[0].rows].forEach((row, i) => {
        const total = Math.max(1, rows[i].reduce((sum, count) => sum + count, 0));
        [...row.cells].slice(1).forEach((cell, j) => {
          cell.textContent = rows[i][j];
          cell.style.background = `rgba(var(--heat), ${((rows[i][j] / total) * 0.55).toFixed(2)})`;
        });
      });
    };
    slider.oninput = show;
    matrix.parentElement.before(make("p", { className: "controls" }, make("label", {}, name + ", evaluation ", slider), output));
    show();
  });
})();
