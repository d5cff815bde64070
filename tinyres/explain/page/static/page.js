// Puts the page together: introduction, bar, keys, projector, and where everything comes from.

const SOURCES = [
  ["One block, by hand", "computed in the browser, in double precision; the same in examples/shortcut.py"],
  ["The walk", "tinyres.trace in tinyres/explain/trace.py, the backward passes of tinyres/ops"],
  ["The ledger", "tinyres.gradient_ledger in tinyres/explain/ledger.py; the switches: tinyres/explain/page/settings.py"],
  ["Which way does it go wrong?", "tinyres/explain/page/depth.py"],
  ["Paths", "tinyres/explain/paths.py"],
  ["Cut it", "tinyres/explain/page/lesions.py"],
];
const KEYS = [["\u2190 \u2192", "step of the walk"], ["\u2191 \u2193", "block"], ["1 \u2026 9", "that block"], ["s", "its shortcut"], ["S", "all shortcuts"], ["t", "start or trained"], ["r", "reveal, as \u201cI don\u2019t know\u201d"], ["P", "projector: larger, one view a screen"], ["?", "this list"]];

function rowWords(k) {
  const r = rowsAt(App.when, App.mask)?.[k], b = Data.meta.blocks[k];
  if (!r) return `${b.name}: this setting was not computed`;
  const words = App.mask & (1 << k) ? `lent ${text(r.lent)}, back through the branch ${text(r.branch)}, sum ${text(r.total)}, cosine ${fixed(r.cosine).textContent}` : `shortcut off, the branch alone sends ${text(r.total)}`;
  return `${b.name}: ${words}`;
}

function current() { // the view in the middle of the screen
  const middle = window.innerHeight / 2;
  return Views.find((one) => { const box = one.section.getBoundingClientRect(); return box.top <= middle && box.bottom >= middle; }) || Views[0];
}

function projector(on) {
  document.documentElement.classList.toggle("projector", on);
  current().section.scrollIntoView();
}

function key(event) {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) || document.getElementById("keys").open) return;
  const walkOpen = Views[1].answer !== null, switches = Views[2].answer !== null;
  const clamp = (v, top) => Math.max(0, Math.min(top, v));
  const k = event.key;
  const done = () => event.preventDefault();
  if (k === "ArrowLeft" || k === "ArrowRight") { if (walkOpen) { App.set({ step: clamp(App.step + (k === "ArrowRight" ? 1 : -1), walkSteps()) }); done(); } }
  else if (k === "ArrowUp" || k === "ArrowDown") { const v = current().name; if ((v === "walk" && walkOpen) || (v === "ledger" && switches)) { App.set({ block: clamp(App.block + (k === "ArrowUp" ? 1 : -1), COUNT - 1), step: 0 }); announce(rowWords(App.block)); done(); } }
  else if (/^[1-9]$/.test(k) && Number(k) <= COUNT) { App.set({ block: Number(k) - 1, step: 0 }); announce(rowWords(App.block)); }
  else if (k === "s" && switches) { App.set({ mask: App.mask ^ (1 << App.block) }); announce(rowWords(App.block)); }
  else if (k === "S" && switches) { App.set({ mask: App.mask === 0 ? ALL_ON : 0 }); announce(rowWords(0)); }
  else if (k === "t") App.set({ when: App.when === "start" ? "trained" : "start" });
  else if (k === "r") current().giveUp();
  else if (k === "P") projector(!document.documentElement.classList.contains("projector"));
  else if (k === "?") document.getElementById("keys").showModal();
}

function bar() {
  const links = Views.map((one, i) => h("a", { href: `#${one.id}`, title: one.title }, h("span", { class: "number" }, String(i + 1)), h("span", { class: "words" }, one.title)));
  document.getElementById("bar").append(h("div", { class: "links" }, links),
    h("button", { type: "button", class: "toggle small", title: "Projector (P)", onclick: () => projector(!document.documentElement.classList.contains("projector")) }, "Projector"),
    h("button", { type: "button", class: "toggle small", title: "Keys (?)", "aria-label": "Keys", onclick: () => document.getElementById("keys").showModal() }, "?"));
  App.watch(() => Views.forEach((one, i) => links[i].classList.toggle("answered", one.answer !== null)));
  const seen = new IntersectionObserver((entries) => entries.forEach((e) => { if (e.isIntersecting) links.forEach((a) => a.setAttribute("aria-current", String(a.getAttribute("href") === `#${e.target.id}`))); }), { rootMargin: "-45% 0px -50% 0px" });
  Views.forEach((one) => seen.observe(one.section));
}

function frame() {
  const m = Data.meta, trained = m.train_steps === null ? "and as it was trained" : `and after ${m.train_steps} steps of training`;
  document.getElementById("intro").append(`Every number here comes from one real step of ${m.model} on ${m.batch} images of ${m.data}, before training ${trained}. Each view asks you first; then it shows what is so, and lets you break it.`);
  document.getElementById("views").append(...Views.map((one) => one.section));
  document.getElementById("foot").append(h("h2", {}, "Where this comes from"),
    h("dl", { class: "sources" }, SOURCES.flatMap(([what, where]) => [h("dt", {}, what), h("dd", {}, where)])),
    h("p", {}, "Made by ", h("code", {}, m.command), `, seed ${m.seed}, backend ${m.backend}, `, Object.entries(m.versions).map(([what, v]) => `${what} ${v}`).join(", "), "."),
    h("p", { class: "muted" }, "Loss ", num(Data.states.start.loss), " at the start and ", num(Data.states.trained.loss), " trained; right on test images ", percent(Data.states.start.accuracy), " and ", percent(Data.states.trained.accuracy), "."));
  document.getElementById("keys").append(h("h2", {}, "Keys"), h("dl", { class: "sources" }, KEYS.flatMap(([k, what]) => [h("dt", {}, h("kbd", {}, k)), h("dd", {}, what)])),
    h("form", { method: "dialog" }, h("button", { class: "go" }, "Close")));
  window.addEventListener("beforeprint", () => Views.forEach((one) => one.giveUp()));
  document.addEventListener("keydown", key);
}

frame();
bar();
unpack().then(() => { App.set({}); document.body.classList.add("ready"); });
