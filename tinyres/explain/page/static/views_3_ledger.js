// View 3: the ledger of all blocks, with a switch for every shortcut.

{
  const one = view("ledger", "The ledger", "What if all shortcuts are cut at once?",
    `The books of all ${COUNT} blocks for one step: what each lends to its two sides, what comes back through the shortcut and through the branch, and their sum, the gradient at the block\u2019s input. The loss is on top; the gradient comes down.`);
  const first = (when, mask) => rowsAt(when, mask)?.[0].total;
  const chart = h("div", { class: "ledger" });
  const says = h("p", { class: "sums" });
  let linear = false;

  const WIDTH = NARROW ? 200 : 520, ROW = 34;
  function scale(rows) {
    const values = rows.flatMap((r) => [r.lent, r.shortcut, r.branch, r.total]).filter((v) => v > 0);
    const low = Math.min(...values), high = Math.max(...values);
    if (!linear) return logScale(low / 1.15, high * 1.15, 8, WIDTH - 8);
    const place = (v) => 8 + (v / (high * 1.05)) * (WIDTH - 16);
    place.ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => [part * high, text(part * high, 2)]);
    return place;
  }
  function marks(r, place, name, on) {
    const y = ROW / 2, parts = [["lent", r.lent, "lent to both sides"], ["shortcut", r.shortcut, "through the shortcut"], ["branch", r.branch, "through the branch"], ["total", r.total, "the sum"]].filter(([kind, v]) => v > 0 && (on || kind !== "shortcut"));
    const places = parts.map(([, v]) => place(v));
    const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${ROW}`, class: "marks", "aria-hidden": "true" }, place.ticks.map(([v]) => s("line", { x1: place(v), x2: place(v), y1: 0, y2: ROW, class: "tick" })),
      s("line", { x1: Math.min(...places), x2: Math.max(...places), y1: y, y2: y, class: "span" }));
    for (const [kind, v, words] of parts) {
      const x = place(v), title = s("title", {}, `${name}: ${words} ${text(v)}`);
      if (kind === "lent") svg.append(s("circle", { cx: x, cy: y, r: 9, class: "ring" }, title));
      if (kind === "shortcut") svg.append(s("circle", { cx: x, cy: y, r: 5.5, class: "blue" }, title));
      if (kind === "branch") svg.append(s("rect", { x: x - 5.5, y: y - 5.5, width: 11, height: 11, class: "orange" }, title));
      if (kind === "total") svg.append(s("path", { d: `M${x} ${y - 8}l8 8l-8 8l-8 -8z`, class: "dark" }, title));
    }
    return svg;
  }
  function show() {
    const rows = rowsAt(App.when, App.mask), open = one.answer !== null;
    if (!rows) {
      says.textContent = "This setting was not computed: the page was made with --quick, or the net has many blocks. Computed are: all on, all off, one off, one on.";
      return;
    }
    const place = scale(rows);
    chart.replaceChildren(h("div", { class: "row head" }, h("span", {}, "shortcut"), axis(place), h("span", {}, "ratio"), h("span", {}, "cosine")),
      ...rows.map((r, k) => {
        const on = Boolean(App.mask & (1 << k)), b = Data.meta.blocks[k];
        const words = b.shortcut === "identity" ? b.name : `${b.name} (${b.shortcut})`;
        const switched = h("button", { type: "button", role: "switch", "aria-checked": String(on), class: "switch", disabled: !open, "aria-label": `shortcut of ${words}`, "data-block": k, onclick: () => App.set({ mask: App.mask ^ (1 << k), block: k }) }, words);
        return h("div", { class: `row ${k === App.block && open ? "chosen" : ""}`, "data-row": k }, switched, marks(r, place, words, on), h("span", { class: "cell" }, fixed(r.ratio)), h("span", { class: "cell" }, fixed(r.cosine)));
      }).reverse());
    const ratio = rows[0].total / first(App.when, ALL_ON);
    says.replaceChildren("|dx| at the first block: ", num(rows[0].total), App.mask === ALL_ON ? ", with all shortcuts on." : `, ${times(ratio)} than with all on.`);
    if (open) hint();
  }
  function axis(place) {
    return s("svg", { viewBox: `0 0 ${WIDTH} 22`, class: "marks", "aria-hidden": "true" }, place.ticks.map(([v, words]) => s("text", { x: Math.min(WIDTH - 14, Math.max(14, place(v))), y: 15 }, words)));
  }
  const legend = h("p", { class: "legend" }, h("span", { class: "l-ring" }, "lent to both"), h("span", { class: "l-blue" }, "through the shortcut"), h("span", { class: "l-orange" }, "through the branch"), h("span", { class: "l-dark" }, "the sum"));
  one.predict.before(h("div", {}, legend, chart, says));

  const truth = () => first("start", 0) / first("start", ALL_ON);
  const near = (ratio) => [0.01, 0.5, 1, 2, 100].reduce((a, b) => (Math.abs(Math.log(ratio / a)) <= Math.abs(Math.log(ratio / b)) ? a : b));
  predictBy(one, "Cut all of them: the gradient at the first block (the lowest row) becomes \u2026",
    [[0.01, "100 times smaller"], [0.5, "2 times smaller"], [1, "the same"], [2, "2 times larger"], [100, "100 times larger"]],
    (answer) => [answer === String(near(truth())) ? "About right. " : "", `It becomes ${times(truth())}: `, num(first("start", ALL_ON)), " with all shortcuts, ", num(first("start", 0)), " without. The switches work now."]);

  const everything = h("div", { class: "controls" });
  one.onreveal = () => {
    const scaleButton = toggle("linear axis", false, () => { linear = !linear; scaleButton.setAttribute("aria-pressed", String(linear)); show(); });
    everything.append(whenButtons(), h("button", { type: "button", class: "toggle", onclick: () => App.set({ mask: ALL_ON }) }, "all on"), h("button", { type: "button", class: "toggle", onclick: () => App.set({ mask: 0 }) }, "all off"), scaleButton);
    one.reveal.append(everything);
    App.set({ when: "start", mask: 0 });
  };
  const most = (when) => Data.meta.blocks.map((_, k) => Math.abs(Math.log((first(when, ALL_ON & ~(1 << k)) ?? NaN) / first(when, ALL_ON)))).reduce((best, v, k, all) => (v > all[best] ? k : best), 0);
  const done = breakIt(one, "Switch all on again. Then find the one shortcut whose removal changes |dx| at the first block most. Is it the same one in the trained net?");
  function hint() {
    const off = ALL_ON & ~App.mask, alone = off && (off & (off - 1)) === 0 ? Math.log2(off) : -1;
    done(alone < 0 ? "" : alone === most(App.when) ? `That is the one, ${App.when === "start" ? "at the start" : "trained"}: no other changes it more.` : "There is one that changes it more.");
  }
  one.why.append(`At the start the two parts stand at right angles to each other (cosines near 0), so their squares add: with batch norm, every block makes the gradient larger on its way down. A shortcut does not rescue a vanishing gradient here; it keeps a growing one in bounds, since the batch norm of each branch divides by a signal that has grown.`,
    formula("|dx| squared = |a| squared + |b| squared", m("msup", m("mrow", "|", "d", "x", "|"), "2"), "\u2248", m("msup", m("mrow", "|", jacobian("s"), "d", "s", "|"), "2"), "+", m("msup", m("mrow", "|", jacobian("F"), "d", "s", "|"), "2")));
  App.watch(() => show());
}
