// View 2: the steps of the backward walk through one block of the real net, on maps of one image and channel.

{
  const one = view("walk", "The walk", "Now on a real network: which way does ds go?",
    "One step of training, on real images. The walk begins at the block\u2019s join and ends where its two sides meet again, at the block\u2019s input.");
  const chosen = h("div", { class: "controls" });
  const steps = h("ol", { class: "steps" });
  const detail = h("div", { class: "detail" });
  const sums = h("p", { class: "sums" });

  const block = () => Data.meta.blocks[App.block];
  const walk = () => Data.states[App.when].walk[App.block];
  const last = () => walk().length - 1;
  const row = (mask = ALL_ON) => rowsAt(App.when, mask)?.[App.block];
  const inside = (step) => step.name.startsWith(`${block().name}.`) ? step.name.slice(block().name.length + 1) : step.name;

  const blocks = h("div", { class: "choices tight", role: "group", "aria-label": "Block" });
  Data.meta.blocks.forEach((b, k) => blocks.append(h("button", { type: "button", onclick: () => App.set({ block: k, step: 0 }) }, b.name)));
  const images = h("div", { class: "choices tight", role: "group", "aria-label": "Image" });
  Data.images.forEach((image, i) => images.append(h("button", { type: "button", class: "image", "aria-label": Data.meta.classes[image.label], onclick: () => App.set({ image: i }) })));
  const channels = h("select", { "aria-label": "Channel", onchange: () => App.set({ channel: Number(channels.value) }) });
  const without = toggle("without this block\u2019s shortcut", false, () => { without.setAttribute("aria-pressed", String(without.getAttribute("aria-pressed") !== "true")); show(); }, "blue");

  function gate(dz, z) { // ds: the join\u2019s ReLU
    return { ...dz, values: dz.values.map((v, i) => (z.values[i] > 0 ? v : 0)) };
  }
  function joinMaps() {
    const m = maps[App.when][App.block], c = App.channel;
    const dz = plane(m.arrays.dz, App.image, c), z = plane(m.arrays.z, App.image, c);
    return { dz, z, ds: gate(dz, z), scale: m.arrays.dz.scale, channel: m.channels[c] };
  }
  function forkMaps() {
    const m = maps[App.when][App.block], c = App.channel;
    const dx = plane(m.arrays.dx, App.image, c), back = plane(m.arrays.back, App.image, c);
    const past = { ...dx, values: dx.values.map((v, i) => v - back.values[i]) };
    return { dx, back, past, scale: Math.max(m.arrays.dx.scale, m.arrays.back.scale), channel: m.inputs[c] };
  }
  const figure = (canvas, caption, cls) => h("figure", { class: cls || "" }, canvas, h("figcaption", {}, caption));
  const readout = h("p", { class: "readout", "aria-live": "polite" }, "Choose a place on a map to read its numbers.");

  function joinDetail() {
    const m = joinMaps(), cells = Data.states[App.when].cells[App.block].join;
    const pick = (r, c) => { const i = r * m.dz.width + c; readout.textContent = `row ${r}, column ${c}: dz = ${text(m.dz.values[i])}, z = ${text(m.z.values[i])}, so ds = ${text(m.ds.values[i])} (maps are rounded to 1/127 of their largest value)`; };
    return [
      formula("ds = dz where z > 0, else 0", "d", "s", "=", "d", "z", "\u00b7", "[", "z", ">", "0", "]"),
      h("div", { class: "maps" }, figure(map(m.dz, m.scale, "dz, what arrives", pick), "dz arrives"), figure(map({ ...m.z, values: m.z.values.map((v) => (v > 0 ? 0 : 0.35)) }, 1, "where the ReLU is closed", pick), "tinted: z = 0, closed"),
        figure(map(m.ds, m.scale, "ds, lent to both sides", pick), "ds, to both wires")),
      colourKey(m.scale), readout, forwardMaps(),
      h("ul", { class: "cells" }, cells.map((c) => h("li", {}, `image ${c.place[0] + 1}, channel ${c.place[1]}, row ${c.place[2]}, column ${c.place[3]}: dz = `, num(c.dz), ", z = ", num(c.z), c.z > 0 ? ", open: ds = " : ", closed: ds = ", num(c.ds)))),
    ];
  }
  function forwardMaps() { // what the block computed: z = relu(F(x) + s(x))
    const m = maps[App.when][App.block].arrays, scale = Math.max(m.branch.scale, m.z.scale);
    const one = (array, label) => figure(map(plane(array, App.image, App.channel), scale, label), label);
    const input = block().shortcut === "identity" ? [one(m.x, "x, the input")] : [];
    return h("details", {}, h("summary", {}, "What this block computed, forward"),
      h("div", { class: "maps" }, ...input, one(m.branch, "F(x), from the branch"), one(m.z, "z, after the join")), colourKey(scale));
  }
  function forkDetail() {
    const m = forkMaps(), cell = Data.states[App.when].cells[App.block].fork[App.image];
    const pick = (r, c) => { const i = r * m.dx.width + c; readout.textContent = `row ${r}, column ${c}: ${text(m.past.values[i])} + ${text(m.back.values[i])} = ${text(m.dx.values[i])} (rounded to 1/127 of the largest value)`; };
    return [
      formula("dx = Js transposed ds + JF transposed ds", "d", "x", "=", jacobian("s"), "d", "s", "+", jacobian("F"), "d", "s"),
      h("div", { class: "maps" }, figure(map(m.past, m.scale, "through the shortcut", pick), "through the shortcut", "blue"), figure(map(m.back, m.scale, "through the branch", pick), "through the branch", "orange"),
        figure(map(m.dx, m.scale, "dx, the sum", pick), "dx: the sum")),
      colourKey(m.scale), readout,
      cell && h("p", { class: "sum" }, `One number, at image ${cell.place[0] + 1}, channel ${cell.place[1]}, row ${cell.place[2]}, column ${cell.place[3]}: `, h("span", { class: "blue" }, num(cell.shortcut)), " + ", h("span", { class: "orange" }, num(cell.branch)), " = ", num(cell.dx)),
    ];
  }
  function convolution(name) {
    const cell = Data.states[App.when].cells[App.block].convolution.find((c) => name.endsWith(c.layer) && c.place[0] === App.image);
    if (!cell) return [];
    const grid = (rows, label) => h("table", { class: "window", "aria-label": label }, h("tbody", {}, rows.map((r) => h("tr", {}, r.map((v) => h("td", {}, num(v, 2)))))));
    const shown = cell.windows.map((w) => h("div", { class: "window-sum" }, h("span", { class: "muted" }, `channel ${w.from}`), grid(w.dy, "window of what arrives"), "\u00d7", grid(w.weight, "the filter"), "= ", num(cell.parts[w.from])));
    const rest = cell.value - cell.windows.reduce((total, w) => total + cell.parts[w.from], 0);
    return [
      h("p", {}, `How one number comes about (image ${cell.place[0] + 1}, channel ${cell.place[1]}, row ${cell.place[2]}, column ${cell.place[3]}): each of the ${cell.parts.length} channels that arrive is multiplied with its filter, place by place. The two largest parts:`),
      ...shown, h("p", { class: "sum" }, `with the ${cell.parts.length - cell.windows.length} others, `, num(rest), ", the sum is ", num(cell.value)),
    ];
  }
  function between(step) {
    const arrives = step.arrivals.reduce((total, a) => total + a.norm ** 2, 0) ** 0.5;
    const sent = step.sends.map((x) => h("tr", {}, h("td", {}, x.to), h("td", {}, num(x.norm))));
    return [
      h("p", { class: "formula small" }, step.formula), step.backward.map((words) => h("p", { class: "formula small" }, words)),
      h("table", { class: "plain" }, h("thead", {}, h("tr", {}, h("th", {}, "sends to"), h("th", {}, "norm"))), h("tbody", {}, sent)),
      step.arrivals.length === 1 ? h("p", { class: "muted" }, "It got ", num(arrives), " (Euclidean norm over the batch).") : null,
      ...(step.op === "Conv2d" ? convolution(step.name) : []),
    ];
  }

  function show() {
    if (App.step > last()) App.step = last();
    [...blocks.children].forEach((b, k) => b.setAttribute("aria-pressed", String(k === App.block)));
    [...images.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === App.image)));
    if (maps[App.when].length === 0) return;
    const atFork = App.step === last(), m = maps[App.when][App.block], names = atFork ? m.inputs : m.channels;
    channels.replaceChildren(...names.map((c, i) => h("option", { value: i, selected: i === App.channel }, `channel ${c}`)));
    const off = without.getAttribute("aria-pressed") === "true";
    steps.replaceChildren(...walk().map((step, i) => h("li", {}, h("button", { type: "button", "aria-pressed": String(i === App.step), onclick: () => App.set({ step: i }) },
      h("b", {}, i === last() ? "the input" : inside(step)), h("span", { class: "muted" }, i === last() ? "two cotangents meet" : step.kind === "join" ? "ReLU, add, batch norm" : step.op)))));
    const step = walk()[App.step];
    detail.replaceChildren(h("h3", {}, App.step === 0 ? "The join" : atFork ? "Where both sides meet" : `${step.op} ${inside(step)}`), ...(App.step === 0 ? joinDetail() : atFork ? forkDetail() : between(step)).flat().filter(Boolean));
    const full = row(), cut = row(ALL_ON & ~(1 << App.block)), r = off ? cut : full;
    sums.replaceChildren(...(r ? [off ? "The same weights without this shortcut (another forward pass): lent " : "The whole batch: lent ", num(r.lent), ", back through the ", h("span", { class: "blue" }, "shortcut "), num(r.shortcut), " and the ", h("span", { class: "orange" }, "branch "), num(r.branch), ", together ", num(r.total), "."]
      : ["This setting was not computed (the page was made with --quick)."]));
  }

  predictBy(one, "At the join, which wire gets more of ds?", [["branch", "the branch, it has the weights"], ["shortcut", "the shortcut, it has none"], ["same", "both get the same"]],
    (answer) => (answer === "same" ? "Yes: not half each, the very same array goes to both." : "Neither: an addition hands its whole cotangent to both terms. It is the very same array."));
  one.onreveal = () => {
    chosen.append(whenButtons(), without);
    one.reveal.append(blocks, h("div", { class: "controls" }, images, channels), chosen,
      h("div", { class: "walk" }, steps, h("div", {}, detail, sums)));
    [...images.children].forEach((b, i) => b.append(photo(i)));
    guess();
    show();
  };
  function guess() { // which of four maps is dx?
    const found = () => { const m = forkMaps(); return { ...m, mean: { ...m.dx, values: m.dx.values.map((v) => v / 2) } }; };
    const options = h("div", { class: "maps four" });
    const say = h("p", { class: "done", role: "status" });
    const build = () => {
      const m = found(), order = [["sum", m.dx], ["shortcut", m.past], ["mean", m.mean], ["branch", m.back]];
      order.push(...order.splice(0, (App.block + App.image) % 4));
      options.replaceChildren(...order.map(([name, values], i) => h("button", { type: "button", class: "mapchoice", value: name, "aria-label": `map ${i + 1}`, onclick: () => {
        say.textContent = { sum: "That is it: the sum.", mean: "That is half of it: you averaged.", shortcut: "That came through the shortcut alone.", branch: "That came through the branch alone." }[name];
      } }, map(values, m.scale, `map ${i + 1}`), String(i + 1))));
      say.textContent = "";
    };
    const tell = breakIt(one, "Which of these four maps is dx, what this block passes on? One is the mean of the two parts, two are one part alone.", options, say);
    tell("");
    App.watch((changes) => { if (["when", "block", "image", "channel"].some((name) => name in changes)) build(); });
    build();
  }
  one.why.append("The branch\u2019s weights learn from the same ds that the shortcut passes on: a gradient that takes the shortcut is not taken away from anybody.");
  App.watch((changes) => { if (one.answer !== null && !("answered" in changes)) show(); });
  globalThis.walkSteps = last;
}
