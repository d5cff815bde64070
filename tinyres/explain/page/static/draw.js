// Elements, numbers as text, maps, axes, handles that can be dragged, and the frame of a view.

const SVG = "http://www.w3.org/2000/svg";
const DIGITS = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3", 4: "\u2074", 5: "\u2075", 6: "\u2076", 7: "\u2077", 8: "\u2078", 9: "\u2079" };

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return node;
}
const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

// Formulas in MathML: m("mi", "x"); a plain string stands for an identifier, a number or an operator, as it looks.
const MATH = "http://www.w3.org/1998/Math/MathML";
const atom = (word) => (typeof word === "string" ? m(/^[\d.]+$/.test(word) ? "mn" : /^[\p{L}]+$/u.test(word) ? "mi" : "mo", word, true) : word);
function m(tag, ...children) {
  const plain = children.at(-1) === true;
  const upright = tag === "mo" ? { stretchy: "false" } : {};
  return fill(document.createElementNS(MATH, tag), upright, plain ? children.slice(0, -1) : children.map(atom));
}
const sub = (base, index) => m("msub", base, index);
const jacobian = (of) => m("msubsup", "J", of, "T");
const formula = (words, ...parts) => { const found = m("math", ...parts); found.setAttribute("alttext", words); return h("p", { class: "formula" }, found); };

const power = (n) => "10" + String(n).split("").map((c) => DIGITS[c]).join("");

// To three digits; very large and very small ones with a power of ten.
function text(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) {
    const plain = Number(value.toPrecision(digits));
    const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(plain))));
    return plain.toFixed(places).replace(/\B(?=(\d{3})+(?!\d))/g, size >= 1e4 ? "\u202f" : "").replace("-", "\u2212");
  }
  const [front, exponent] = value.toExponential(digits - 1).split("e");
  return `${front.replace("-", "\u2212")} \u00d7 ${power(Number(exponent))}`;
}
// A number that is shown: its exact value stays with it.
const num = (value, digits) => h("data", { value: String(value) }, text(value, digits));
const fixed = (value) => h("data", { value: String(value) }, value === null || !Number.isFinite(value) ? "\u2013" : (Math.round(value * 100) / 100 + 0).toFixed(2).replace("-", "\u2212"));
const percent = (value) => h("data", { value: String(value) }, `${(100 * value).toFixed(1)} %`);
const times = (ratio) => (ratio >= 1 ? `${text(ratio, 2)} times larger` : `${text(1 / ratio, 2)} times smaller`);

function announce(words) { document.getElementById("live").textContent = words; }

// --- maps ------------------------------------------------------------------------------------------------------------

const BLUE = [8, 81, 156], WHITE = [247, 247, 247], ORANGE = [179, 88, 6];

function shade(value) { // -1 .. 1
  const end = value < 0 ? BLUE : ORANGE, part = Math.min(1, Math.abs(value));
  return WHITE.map((c, i) => Math.round(c + (end[i] - c) * part));
}

// A canvas of one plane; a click tells the cell. `scale` is the value of the darkest colour.
function map(found, scale, label, onpick) {
  const canvas = h("canvas", { width: found.width, height: found.height, role: "img", "aria-label": label, class: "map" });
  const context = canvas.getContext("2d"), image = context.createImageData(found.width, found.height);
  found.values.forEach((value, i) => image.data.set([...shade(value / scale), 255], 4 * i));
  context.putImageData(image, 0, 0);
  if (onpick) {
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const column = Math.min(found.width - 1, Math.floor(((event.clientX - box.left) / box.width) * found.width));
      const row = Math.min(found.height - 1, Math.floor(((event.clientY - box.top) / box.height) * found.height));
      onpick(row, column);
    });
  }
  return canvas;
}

function photo(i) {
  const [height, width] = Data.images[i].size;
  const canvas = h("canvas", { width, height, class: "photo", "aria-hidden": "true" });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let p = 0; p < width * height; p++) image.data.set([...pixels[i].subarray(3 * p, 3 * p + 3), 255], 4 * p);
  context.putImageData(image, 0, 0);
  return canvas;
}

// The key to a map's colours.
function colourKey(scale) {
  return h("p", { class: "key" }, h("span", {}, text(-scale, 2)), h("span", { class: "ramp", "aria-hidden": "true" }), h("span", {}, `+${text(scale, 2)}`),
    h("span", { class: "muted" }, "one scale for all of them; 0 is white"));
}

// --- charts -------------------------------------------------------------------------------------------------------------

const NARROW = window.matchMedia("(max-width: 760px)").matches; // drawings have as many units as they have pixels, about

// A logarithmic axis: log(value) -> place.
function logScale(low, high, from, to) {
  const a = Math.log10(low), b = Math.log10(high);
  const place = (value) => from + ((Math.log10(Math.max(value, low / 10)) - a) / (b - a)) * (to - from);
  place.value = (at) => 10 ** (a + ((at - from) / (to - from)) * (b - a));
  const step = Math.max(1, Math.round((b - a) / 7));
  place.ticks = [];
  for (let n = Math.ceil(a); n <= Math.floor(b); n++) if (n % step === 0) place.ticks.push([10 ** n, Math.abs(n) > 3 ? power(n) : String(10 ** n >= 1 ? 10 ** n : Number((10 ** n).toFixed(3)))]);
  if (b - a < 2) for (const n of [Math.floor(a), Math.floor(a) + 1, Math.floor(a) + 2]) for (const d of [2, 5]) if (d * 10 ** n >= low && d * 10 ** n <= high) place.ticks.push([d * 10 ** n, text(d * 10 ** n, 1)]);
  return place;
}

const arrowHead = (x, y, angle, size) => {
  const point = (turn) => `${x - size * Math.cos(angle + turn)},${y - size * Math.sin(angle + turn)}`;
  return `${x},${y} ${point(0.45)} ${point(-0.45)}`;
};

function arrow(x1, y1, x2, y2, cls, title) {
  const long = Math.hypot(x2 - x1, y2 - y1), angle = Math.atan2(y2 - y1, x2 - x1);
  if (long < 1) return s("circle", { cx: x2, cy: y2, r: 4, class: `dot ${cls}` }, s("title", {}, title));
  const size = Math.min(13, long), back = size * 0.8;
  return s("g", { class: `arrow ${cls}` }, s("title", {}, title),
    s("line", { x1, y1, x2: x2 - back * Math.cos(angle), y2: y2 - back * Math.sin(angle) }),
    s("polygon", { points: arrowHead(x2, y2, angle, size) }));
}

// Something to drag in an SVG, or to move with the arrow keys. `move(x, y)` gets places, `nudge(dx, dy)` steps of the keys.
function handle(svg, label, move, nudge) {
  const grip = s("circle", { r: 12, class: "handle", tabindex: 0, role: "slider", "aria-label": label, "aria-valuenow": 0 });
  const place = (event) => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    move(((event.clientX - box.left) / box.width) * view.width, ((event.clientY - box.top) / box.height) * view.height);
  };
  grip.addEventListener("pointerdown", (event) => { grip.setPointerCapture(event.pointerId); event.preventDefault(); grip.focus(); });
  grip.addEventListener("pointermove", (event) => { if (grip.hasPointerCapture(event.pointerId)) place(event); });
  grip.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (step) { nudge(...step); event.preventDefault(); event.stopPropagation(); }
  });
  return grip;
}

// --- the frame of a view ----------------------------------------------------------------------------------------------------

const Views = [];

// A question, a prediction, then what is so, why, and something to break.
function view(name, title, question, ...lead) {
  const id = `v${Views.length + 1}`;
  const predict = h("div", { class: "predict", role: "group", "aria-label": "Your prediction" });
  const verdict = h("p", { class: "verdict", hidden: true });
  const reveal = h("div", { class: "reveal", hidden: true });
  const why = h("p", { class: "why", hidden: true });
  const broken = h("div", { class: "break", hidden: true });
  const section = h("section", { id, class: "view", "aria-labelledby": `${id}-q`, tabindex: -1 },
    h("p", { class: "kicker" }, h("span", { class: "number" }, String(Views.length + 1)), title),
    h("h2", { id: `${id}-q` }, question), ...lead.map((words) => (words instanceof Node ? words : h("p", { class: "text" }, words))),
    predict, verdict, reveal, why, broken);
  const one = {
    id, name, title, section, predict, verdict, reveal, why, broken, answer: null, onreveal: null,
    answered(answer, words) { // reveals
      this.answer = answer;
      Answers.keep(name, answer);
      verdict.replaceChildren(...[words].flat());
      const first = !section.classList.contains("answered");
      section.classList.add("answered");
      if (first && this.onreveal) this.onreveal(answer);
      for (const part of [verdict, reveal, why, broken]) part.hidden = part.childNodes.length === 0;
      announce(verdict.textContent);
      App.set({ answered: name });
    },
    giveUp() { if (this.answer === null) this.predict.querySelector(".unsure")?.click(); },
  };
  Views.push(one);
  return one;
}

// Buttons of which one is chosen.
function choices(options, onchoose, label) {
  const group = h("div", { class: "choices", role: "group", "aria-label": label });
  const choose = (value) => {
    for (const button of group.children) button.setAttribute("aria-pressed", String(button.value === String(value)));
    onchoose(value);
  };
  for (const [value, words, cls] of options) {
    group.append(h("button", { type: "button", value: String(value), "aria-pressed": "false", class: cls || "", onclick: () => choose(value) }, words));
  }
  return group;
}

// A prediction by choice: "I don't know" is one, and gets the reveal too.
function predictBy(one, words, options, judge) {
  const group = choices([...options, ["unsure", "I don\u2019t know", "unsure"]], (value) => {
    one.answered(value, judge(value));
  }, words);
  one.predict.append(h("p", { class: "ask" }, words), group);
}

const breakIt = (one, words, ...rest) => {
  const done = h("p", { class: "done", role: "status" });
  one.broken.replaceChildren(h("h3", {}, "Now break it"), h("p", { class: "text" }, words), ...rest, done);
  return (message) => { done.textContent = message || ""; };
};

const toggle = (words, pressed, onclick, cls) => h("button", { type: "button", class: `toggle ${cls || ""}`, "aria-pressed": String(pressed), onclick }, words);
const whenButtons = () => {
  const group = choices([["start", "at the start"], ["trained", "trained"]], (value) => App.set({ when: value }), "State of the network");
  const show = () => { for (const b of group.children) b.setAttribute("aria-pressed", String(b.value === App.when)); };
  App.watch(show);
  show();
  return group;
};
