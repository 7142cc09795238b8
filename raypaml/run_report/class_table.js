// The table of all classes: sorted by its headers, searched by name or id, and only the rows in view are in the page.
// A class that is chosen shows its precision-recall curve. Names are set as text, never as HTML.
"use strict";
(() => {
  const ROW = 30; // pixels, as in style.css
  const SPARE = 12; // rows that are drawn above and below the view
  const SVG = "http://www.w3.org/2000/svg";
  const part = (id) => document.getElementById(id);
  const { columns, curves } = JSON.parse(part("classes-data").textContent);
  const titled = (title) => columns.findIndex((column) => column.title === title);
  const [names, ids] = ["class", "id"].map((title) => columns[titled(title)].values);
  const searched = names.map((name, k) => `${name}\n${ids[k]}`.toLowerCase());
  const collator = new Intl.Collator(undefined, { numeric: true });
  const view = part("classes-view"), body = part("classes-rows"), search = part("classes-search");
  const isText = (column) => column.digits === undefined;

  let sorted = { column: titled("AP, %"), up: true };
  let order = []; // classes that match, in the order of the table
  let chosen = -1;
  let drawn = new Map(); // rows in the page, by class

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const shown = (column, k) => {
    const value = column.values[k];
    if (value === null) return "–";
    if (isText(column)) return value;
    const fixed = { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits };
    return value.toLocaleString("en", fixed);
  };

  // --- Order and search ---------------------------------------------------------------------------------------------

  function arrange() {
    const words = search.value.trim().toLowerCase();
    const { values } = columns[sorted.column], text = isText(columns[sorted.column]);
    const compare = (a, b) => {
      const [one, other] = [values[a], values[b]];
      if (one === null || other === null) return (one === null) - (other === null) || a - b; // none last, either way
      const difference = text ? collator.compare(one, other) : one - other;
      return (sorted.up ? difference : -difference) || a - b;
    };
    order = names.map((_, k) => k).filter((k) => searched[k].includes(words)).sort(compare);
    const count = order.length.toLocaleString("en"), all = names.length.toLocaleString("en");
    part("classes-count").textContent = order.length === names.length ? `${all} classes` : `${count} of ${all} classes`;
    part("classes-table").setAttribute("aria-rowcount", order.length + 1);
    view.scrollTop = 0;
    drawn.clear();
    draw();
  }

  function drawHead() {
    const cells = columns.map((column, number) => {
      const up = sorted.up ? "ascending" : "descending", mine = number === sorted.column;
      const cell = make("th", { scope: "col", className: isText(column) ? "text" : "" });
      cell.setAttribute("aria-sort", mine ? up : "none");
      const sort = make("button", { type: "button", textContent: column.title, onclick: () => sortBy(number) });
      cell.append(sort);
      return cell;
    });
    part("classes-head").replaceChildren(...cells);
  }

  function sortBy(number) {
    const falls = !isText(columns[number]); // numbers fall at first: the most, the best
    sorted = { column: number, up: number === sorted.column ? !sorted.up : !falls };
    drawHead();
    part("classes-head").children[number].firstChild.focus();
    arrange();
  }

  // --- Rows in view -------------------------------------------------------------------------------------------------

  function draw() {
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - SPARE);
    const last = Math.min(order.length, first + Math.ceil(view.clientHeight / ROW) + 2 * SPARE);
    const focused = document.activeElement;
    const rows = new Map();
    for (let place = first; place < last; place++) {
      rows.set(order[place], drawn.get(order[place]) ?? row(order[place], place));
    }
    drawn = rows;
    body.replaceChildren(space(first), ...rows.values(), space(order.length - last));
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }

  const space = (count) => {
    const gap = make("tr", { ariaHidden: "true" }, make("td", { colSpan: columns.length }));
    gap.className = "gap";
    gap.firstChild.style.height = `${count * ROW}px`;
    return gap;
  };

  function row(k, place) {
    const line = make("tr", { onclick: () => choose(k) });
    line.setAttribute("aria-rowindex", place + 2);
    line.classList.toggle("chosen", k === chosen);
    columns.forEach((column, number) => {
      const text = shown(column, k);
      const inside = number ? make("bdi", { textContent: text }) : make("button", { type: "button" }, make("bdi", { textContent: text }));
      const cell = make(number ? "td" : "th", { className: isText(column) ? "text" : "" }, inside);
      if (!number) cell.scope = "row";
      if (isText(column)) cell.title = text;
      line.append(cell);
    });
    return line;
  }

  // --- The chosen class ---------------------------------------------------------------------------------------------

  function choose(k) {
    drawn.get(chosen)?.classList.remove("chosen");
    chosen = k;
    drawn.get(k)?.classList.add("chosen");
    part("class-name").replaceChildren(make("bdi", { textContent: names[k] }));
    const facts = columns.slice(1).map((column) => [column.title, shown(column, k)]);
    part("class-facts").replaceChildren(
      ...facts.flatMap(([title, text]) => [make("dt", { textContent: title }), make("dd", {}, make("bdi", { textContent: text }))]),
    );
    part("class-curve").replaceChildren(curve(k));
  }

  function curve(k) {
    const points = [];
    for (let n = 0; n < curves[k].length; n += 2) points.push([curves[k][n] / 1000, curves[k][n + 1] / 1000]);
    if (!points.length) return make("p", { className: "muted", textContent: "No positive in the test split, and so no curve." });
    const [positives, negatives] = ["test positives", "test negatives"].map((title) => columns[titled(title)].values[k]);
    return plot(points, positives / (positives + negatives));
  }

  function plot(points, chance) {
    const [width, height, left, low] = [330, 244, 40, 34], right = 14, high = 22;
    const x = (recall) => left + recall * (width - left - right), y = (precision) => height - low - precision * (height - low - high);
    const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const ends = `${(100 * points[0][1]).toFixed(0)} % at the highest scores, ${(100 * points.at(-1)[1]).toFixed(0)} % at full recall`;
    drawing.setAttribute("aria-label", `Precision over recall: precision ${ends}; chance ${(100 * chance).toFixed(0)} %`);
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      drawing.append(shape("path", { d: `M${left},${y(share)}H${x(1)}`, class: "grid" }));
      drawing.append(label(left - 5, y(share) + 4, `${100 * share}`, "end"), label(x(share), height - low + 15, `${100 * share}`, "middle"));
    }
    drawing.append(shape("path", { d: `M${left},${y(chance)}H${x(1)}`, class: "chance" }));
    const steps = points.map(([recall, precision]) => `V${y(precision)}H${x(recall)}`).join("");
    drawing.append(shape("path", { d: `M${left},${y(points[0][1])}${steps}`, class: "curve" }));
    drawing.append(label((left + width) / 2, height - 4, "recall, %", "middle"), label(left, 12, "precision, %", "start"));
    return drawing;
  }

  function shape(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  function label(x, y, text, anchor) {
    const element = shape("text", { x, y, "text-anchor": anchor });
    element.textContent = text;
    return element;
  }

  view.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  addEventListener("resize", draw);
  search.addEventListener("input", arrange);
  part("classes-table").style.minWidth = `${8 + 6.2 * (columns.length - 1)}rem`;
  part("classes").hidden = false;
  drawHead();
  arrange();
  choose(order[0]);
})();
