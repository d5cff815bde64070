// View 5: the gradient by the number of branches that it has passed.

{
  const one = view("paths", "Paths", "Through how many branches does the gradient come?",
    `Every block can be passed through its branch or around it: ${COUNT} blocks make ${COUNT < 30 ? (2 ** COUNT).toLocaleString("en").replaceAll(",", "\u202f") : `2${power(COUNT).slice(2)}`} paths. The backward pass is linear, so the gradient at the first block splits exactly into the parts that passed 0, 1, 2, \u2026 branches.`);
  const deep = Object.keys(Data.shipped)[0];
  let net = "own", counted = false, predicted = false, guess = Math.round(COUNT / 2);
  const found = () => (net === "own" ? Data.states[App.when].paths : Data.shipped[net]);
  const W = NARROW ? 370 : 640, H = NARROW ? 240 : 300, L = 44, R = 12, T = 14, B = 40;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": "Share of the gradient by number of branches passed" });
  const band = [h("input", { type: "range", min: 0, "aria-label": "fewest branches" }), h("input", { type: "range", min: 0, "aria-label": "most branches" })];
  const bounds = band.map(() => h("output", {}));
  const said = h("p", { class: "sums" });

  function ticks(high) {
    const step = [0.02, 0.05, 0.1, 0.2].find((one) => high / one <= 5) || 0.5;
    return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
  }
  function draw() {
    const p = found(), n = p.share.length, high = Math.max(...p.share, ...(counted ? p.binomial : []), ...(predicted ? p.predicted : [])) * 1.1, low = Math.min(0, ...p.share);
    const x = (k) => L + ((k + 0.5) / n) * (W - L - R), wide = ((W - L - R) / n) * 0.7, y = (v) => H - B - ((v - low) / (high - low)) * (H - B - T);
    const [a, b] = band.map((input) => Number(input.value));
    const every = n > 14 ? 5 : 1;
    svg.replaceChildren(
      ...ticks(high).map((v) => s("g", { class: "tick" }, s("line", { x1: L, x2: W - R, y1: y(v), y2: y(v) }), s("text", { x: L - 6, y: y(v) + 4, class: "end" }, v.toFixed(2)))),
      ...p.share.map((v, k) => s("rect", { x: x(k) - wide / 2, y: Math.min(y(v), y(0)), width: wide, height: Math.max(1, Math.abs(y(v) - y(0))), class: k >= a && k <= b ? "bar" : "bar pale" }, s("title", {}, `${k} branches: ${text(v)}`))),
      ...(counted ? p.binomial.map((v, k) => s("circle", { cx: x(k), cy: y(v), r: 4, class: "ring" }, s("title", {}, `share of the paths with ${k}: ${text(v)}`))) : []),
      ...(predicted ? p.predicted.map((v, k) => s("path", { d: `M${x(k)} ${y(v) - 6}l6 6l-6 6l-6 -6z`, class: "orange" }, s("title", {}, `by the ratios: ${text(v)}`))) : []),
      ...p.share.map((_, k) => (k % every === 0 ? s("text", { x: x(k), y: H - 20, class: "mid" }, String(k)) : null)).filter(Boolean),
      s("text", { x: W - R, y: H - 4, class: "end" }, "branches passed"),
      s("line", { x1: x(p.mean_length), x2: x(p.mean_length), y1: T, y2: H - B, class: "mean" }));
    bounds.forEach((shown, i) => { shown.textContent = band[i].value; });
    const carried = p.share.slice(a, b + 1).reduce((total, v) => total + v, 0);
    said.replaceChildren(`Lengths ${a} to ${b} carry `, percent(carried), " of the gradient. The mean is ", num(p.mean_length), ` of ${n - 1}; by the ratios alone `, num(p.predicted_mean), `; counting the paths would say ${(n - 1) / 2}.`);
    const width = b - a + 1, best = narrowest(p.share, 0.8);
    done(carried >= 0.8 && width === best ? `${width} lengths: it cannot be done with fewer.` : carried >= 0.8 ? "Enough, but not the narrowest." : "");
  }
  function narrowest(share, wanted) {
    for (let width = 1; width <= share.length; width++) {
      for (let a = 0; a + width <= share.length; a++) if (share.slice(a, a + width).reduce((t, v) => t + v, 0) >= wanted) return width;
    }
    return share.length;
  }
  function reset() {
    const n = found().share.length;
    band.forEach((input, i) => { input.max = n - 1; input.value = i ? n - 1 : 0; });
    draw();
  }
  band.forEach((input, i) => input.addEventListener("input", () => {
    if (Number(band[0].value) > Number(band[1].value)) band[1 - i].value = input.value;
    draw();
  }));

  const shown = h("output", { class: "chosen" }, String(guess));
  const slider = h("input", { type: "range", min: 0, max: COUNT, step: 0.5, value: guess, "aria-label": "mean number of branches", oninput: () => { guess = Number(slider.value); shown.textContent = String(guess); } });
  const mean = Data.states[App.when].paths.mean_length;
  const judge = (answer) => [answer === "unsure" ? "" : Math.abs(guess - mean) <= 0.75 ? "Close. " : guess < mean ? "It is more. " : "It is fewer. ", "The mean is ", num(mean), ` of ${COUNT}: neither the shortcuts\u2019 way (0) nor the whole depth (${COUNT}).`];
  one.predict.classList.add("once");
  one.predict.append(h("p", { class: "ask" }, "Weighted by what they carry: how many branches has the gradient passed on average?"),
    h("label", { class: "slide" }, h("span", {}, "0"), slider, h("span", {}, String(COUNT)), shown),
    h("div", { class: "choices" }, h("button", { type: "button", class: "go", onclick: () => one.answered(guess, judge(guess)) }, "This many"),
      h("button", { type: "button", class: "unsure", onclick: () => one.answered("unsure", judge("unsure")) }, "I don\u2019t know")));
  const done = breakIt(one, "Find the narrowest band of lengths that carries 80 % of the gradient.", h("label", { class: "slide" }, "from", band[0], bounds[0]), h("label", { class: "slide" }, "to", band[1], bounds[1]));
  one.onreveal = () => {
    const nets = choices([["own", Data.meta.model], ...(deep ? [[deep, `${deep}, at the start`]] : [])], (value) => { net = value; reset(); }, "Net");
    nets.firstChild.setAttribute("aria-pressed", "true");
    const count = toggle("share of the paths", false, () => { counted = !counted; count.setAttribute("aria-pressed", String(counted)); draw(); });
    const ratios = toggle("by the ledger\u2019s ratios", false, () => { predicted = !predicted; ratios.setAttribute("aria-pressed", String(predicted)); draw(); }, "orange");
    one.reveal.append(h("div", { class: "controls" }, nets, whenButtons(), count, ratios), svg, said);
    reset();
  };
  one.why.append("Where the two parts of a block stand at right angles, a path weighs the product of the branches\u2019 ratios: multiply out this over all blocks k, and you have nearly the bars (the coefficient of t\u207f is the share of length n). With all shortcuts cut there is one path, of length ", String(COUNT), ".",
    formula("product over k of (1 + rk squared t) / (1 + rk squared)", sub("\u220f", "k"), m("mfrac", m("mrow", "1", "+", m("msubsup", "r", "k", "2"), "t"), m("mrow", "1", "+", m("msubsup", "r", "k", "2")))));
  App.watch((changes) => { if (one.answer !== null && "when" in changes) draw(); });
}
