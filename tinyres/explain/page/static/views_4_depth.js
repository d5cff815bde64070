// View 4: the gradient by depth, drawn by the reader first.

{
  const DEEP = "plain56";
  const all = Data.depth.norms;
  const nets = [...new Set(all.filter((d) => !d.trained).map((d) => d.net))];
  const known = (net, trained = false) => all.find((d) => d.net === net && d.trained === trained);
  const drawn = known(DEEP) || known(nets.find((n) => n.startsWith("plain")) || nets[0]);
  const one = view("depth", "Which way does it go wrong?", `How large is the gradient in the ${drawn.blocks} blocks of ${drawn.net.replace(/(\d)/, "-$1")}?`,
    `No shortcuts, batch norm after every convolution, before the first training step. At the last block, next to the loss, call its norm 1. Draw how it goes on towards the input.`);

  const W = NARROW ? 370 : 640, H = NARROW ? 300 : 380, L = 52, R = 16, T = 16, B = 44;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "group", "aria-label": "Gradient norm by depth" });
  const back = s("g", {}), lines = s("g", {}), grips = s("g", {});
  svg.append(back, lines, grips);
  const caption = h("p", { class: "muted" }, "Left: the first block, at the input. Right: the last one, at the loss. Each curve is divided by its value at the last block.");
  const HANDLES = 5;
  const guess = Array(HANDLES).fill(1); // the last is fixed
  let y = logScale(1e-8, 1e8, H - B, T);
  const x = (share) => L + share * (W - L - R);

  function axes() {
    back.replaceChildren(
      ...y.ticks.map(([v, words]) => s("g", { class: "tick" }, s("line", { x1: L, x2: W - R, y1: y(v), y2: y(v), class: v === 1 ? "one" : "" }), s("text", { x: L - 8, y: y(v) + 4, class: "end" }, words))),
      s("text", { x: L, y: H - 14 }, "input"), s("text", { x: W - R, y: H - 14, class: "end" }, "loss"));
  }
  const path = (values, cls, title) => s("g", { class: `curve ${cls}` }, s("title", {}, title), s("path", { d: values.map((v, i) => `${i ? "L" : "M"}${x(i / (values.length - 1)).toFixed(1)} ${y(v).toFixed(1)}`).join("") }));
  const relative = (norms) => norms.map((v) => v / norms[norms.length - 1]);

  const gripNodes = guess.slice(0, -1).map((_, i) => {
    const set = (value) => { guess[i] = Math.min(1e8, Math.max(1e-8, value)); draw(); };
    const part = Math.round(1 + (i / (HANDLES - 1)) * (drawn.blocks - 1));
    return handle(svg, `your guess at block ${part} of ${drawn.blocks}`, (_, place) => set(y.value(place)), (_, step) => set(guess[i] * 10 ** (step / 2)));
  });
  grips.append(...gripNodes);

  const shown = new Set();
  const curves = [ // (key, label, class, norms)
    ...nets.map((net) => [net, `${net.replace(/(\d)/, "-$1")}`, net.startsWith("plain") ? "orange" : "blue", known(net).norms]),
    ...all.filter((d) => d.trained).map((d) => [`${d.net} trained`, `${d.net.replace(/(\d)/, "-$1")}, trained`, d.family === "plain" ? "orange dashed" : "blue dashed", d.norms]),
    ...Data.depth.gains.map((d) => [`${d.family} ${d.gain}`, `${d.family}, no batch norm, gain ${d.gain}`, d.family === "plain" ? "orange dotted" : "blue dotted", d.norms]),
  ];

  function draw() {
    const found = curves.filter(([key]) => shown.has(key)), revealed = one.answer !== null;
    const values = found.flatMap(([, , , norms]) => relative(norms)).concat(revealed ? guess : []).filter((v) => v > 0);
    if (revealed && values.length) y = logScale(Math.min(0.3, ...values) / 2, Math.max(3, ...values) * 2, H - B, T);
    axes();
    lines.replaceChildren(path(guess, "ghost", "your guess"), ...found.map(([, label, cls, norms]) => path(relative(norms), cls, `${label}: first over last ${text(relative(norms)[0])}`)));
    let above = -99; // labels from top to bottom, none upon another
    const ends = found.map(([, label, cls, norms]) => [y(relative(norms)[0]) - 7, label, cls]).sort((a, b) => a[0] - b[0]);
    for (const [place, label, cls] of ends) {
      above = Math.max(place, above + 15);
      lines.append(s("text", { x: x(0) + 6, y: above, class: `label ${cls}` }, label));
    }
    gripNodes.forEach((grip, i) => {
      grip.setAttribute("cx", x(i / (HANDLES - 1)));
      grip.setAttribute("cy", y(guess[i]));
      grip.setAttribute("aria-valuenow", Math.log10(guess[i]).toFixed(1));
      grip.setAttribute("aria-valuetext", text(guess[i], 2));
      grip.style.display = revealed ? "none" : "";
    });
    if (revealed) {
      table.replaceChildren(h("table", { class: "plain" }, h("thead", {}, h("tr", {}, h("th", {}, "net"), h("th", {}, "first / last"), h("th", {}, "per block"))),
        h("tbody", {}, found.map(([, label, cls, norms]) => { const r = relative(norms)[0]; return h("tr", {}, h("td", { class: cls.split(" ")[0] }, label), h("td", {}, num(r)), h("td", {}, "\u00d7 ", num(r ** (1 / (norms.length - 1))))); }))));
      const vanishing = found.find(([, , , norms]) => relative(norms)[0] < 1e-2);
      done(vanishing ? `There: ${vanishing[1]}. Small weights and no batch norm, that is the case of the textbooks.` : "");
    }
  }
  const table = h("div", {});
  const group = (title, keys) => h("div", { class: "group", role: "group", "aria-label": title }, h("span", { class: "muted" }, title), keys.map(([key, label, cls]) => {
    const button = toggle(label.replace(", no batch norm", ""), shown.has(key), () => { if (shown.has(key)) shown.delete(key); else shown.add(key); button.setAttribute("aria-pressed", String(shown.has(key))); draw(); }, cls.split(" ")[0]);
    return button;
  }));
  const truth = drawn.first_over_last;
  one.predict.classList.add("once");
  one.predict.append(svg, caption,
    h("p", { class: "ask" }, "Drag the four points (or use the up and down keys)."),
    h("div", { class: "choices" }, h("button", { type: "button", class: "go", onclick: () => one.answered(guess.map((v) => Number(v.toPrecision(3))), judge()) }, "This is my curve"),
      h("button", { type: "button", class: "unsure", onclick: () => one.answered("unsure", judge("unsure")) }, "I don\u2019t know")));
  function judge(answer) {
    const way = truth > 10 ? "It grows" : truth < 0.1 ? "It falls" : "It stays about level";
    const said = guess[0] > 3 ? "grows" : guess[0] < 1 / 3 ? "falls" : "stays level";
    const right = answer !== "unsure" && ((truth > 10 && said === "grows") || (truth < 0.1 && said === "falls") || (truth >= 0.1 && truth <= 10 && said === "stays level"));
    return [answer === "unsure" ? "" : right ? "Right way. " : `You drew that it ${said}. `, `${way} on its way to the input: the first block gets `, num(truth), " times what the last one gets."];
  }
  const done = breakIt(one, "Find a net here whose gradient does vanish on its way to the input: less than a hundredth arrives.");
  one.onreveal = () => {
    shown.add(drawn.net);
    const keys = (test) => curves.filter(([key]) => test(key));
    one.reveal.append(svg, caption,
      group("with batch norm, at the start", keys((k) => nets.includes(k))), group("after training", keys((k) => k.endsWith("trained"))),
      group("fully connected, 30 blocks, no batch norm", keys((k) => /^(plain|residual) /.test(k) && !k.endsWith("trained"))), table);
    draw();
  };
  one.why.append("There are three cases. With batch norm a plain net\u2019s gradient explodes towards the input, by about 1.4 per block; theory for wide nets says ", m("math", m("mfrac", "\u03c0", m("mrow", "\u03c0", "\u2212", "1"))), " = ", num(Data.depth.theory, 4),
    ". Without it, it vanishes if the weights are small, stays level if they are just right, and explodes if they are large. Shortcuts remove the vanishing, and by themselves bring explosion; a batch norm in each branch damps that to a power of the depth. After some training the curves are flatter.");
  draw();
}
