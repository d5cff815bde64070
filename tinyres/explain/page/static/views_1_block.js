// View 1: one block by hand, y = x + alpha W2 relu(W1 x) with vectors of two numbers, computed here.

{
  const START = { x: [0.6, 1], ds: [0.9, 0.5], alpha: 1, shortcut: true, W1: [[0.2, 1], [-0.6, 1]], W2: [[-0.5, 0.6], [0.8, 0.7]] };
  const now = structuredClone(START);
  let guess = [0.3, -0.6];
  const SIZE = 360, UNIT = 72; // one unit of the plane in pixels
  const times2 = (m, v) => m.map((row) => row[0] * v[0] + row[1] * v[1]);
  const turned = (m) => [[m[0][0], m[1][0]], [m[0][1], m[1][1]]];

  function backward(block) {
    const u = times2(block.W1, block.x), open = u.map((v) => (v > 0 ? 1 : 0));
    const f = times2(block.W2, u.map((v, i) => v * open[i])).map((v) => block.alpha * v);
    const inner = times2(turned(block.W2), block.ds).map((v, i) => block.alpha * v * open[i]);
    const branch = times2(turned(block.W1), inner); // J_F^T ds
    const wrong = times2(block.W2, times2(block.W1, block.ds).map((v, i) => v * open[i])).map((v) => block.alpha * v); // J_F ds
    const a = block.shortcut ? block.ds : [0, 0];
    return { y: [0, 1].map((i) => (block.shortcut ? block.x[i] : 0) + f[i]), branch, wrong, shortcut: a, dx: [a[0] + branch[0], a[1] + branch[1]] };
  }
  globalThis.blockByHand = backward; // for the tests

  const one = view("block", "One block, by hand", "Two gradients come back to the same point. What does the block pass on?",
    "A block computes y = x + F(x): once around the branch F, once through it. The cotangent ds arrives at y, and the addition hands it to both wires. The shortcut sends ds back as it is. The branch sends back J\u1d40ds, through its weights.",
    formula("y = x + alpha W2 relu(W1 x)", "y", "=", "x", "+", "\u03b1", sub("W", "2"), "relu", "(", sub("W", "1"), "x", ")"));

  const pair = (v) => h("span", { class: "pair" }, "(", fixed(v[0]), ", ", fixed(v[1]), ")");
  const at = (v) => [SIZE / 2 + UNIT * v[0], SIZE / 2 - UNIT * v[1]];
  const from = (x, y) => [(x - SIZE / 2) / UNIT, (SIZE / 2 - y) / UNIT];

  const plane = s("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, class: "plane", role: "group", "aria-label": "The plane of the gradients" });
  const arrows = s("g", {});
  const grid = s("g", { class: "grid" });
  for (let k = -2; k <= 2; k++) {
    const p = SIZE / 2 + UNIT * k;
    grid.append(s("line", { x1: p, x2: p, y1: 0, y2: SIZE, class: k ? "" : "axis" }), s("line", { y1: p, y2: p, x1: 0, x2: SIZE, class: k ? "" : "axis" }));
  }
  const limit = (v) => v.map((c) => Math.max(-2.4, Math.min(2.4, Math.round(c * 20) / 20)));
  const guessGrip = handle(plane, "Your guess for dx", (x, y) => { guess = limit(from(x, y)); draw(); }, (dx, dy) => { guess = limit([guess[0] + 0.1 * dx, guess[1] + 0.1 * dy]); draw(); });
  const dsGrip = handle(plane, "ds, the cotangent that arrives", (x, y) => { now.ds = limit(from(x, y)); draw(); }, (dx, dy) => { now.ds = limit([now.ds[0] + 0.1 * dx, now.ds[1] + 0.1 * dy]); draw(); });
  plane.append(grid, arrows, dsGrip, guessGrip);
  const wires = s("svg", { viewBox: "0 0 400 118", class: "wires", role: "img", "aria-label": "The block: x goes around the branch and through it, and both are added to y" });
  function drawWires(found) { // backward, so from right to left
    const box = (x, wide, words) => s("g", {}, s("rect", { x, y: 64, width: wide, height: 32, rx: 6 }), s("text", { x: x + wide / 2, y: 84, class: "mid" }, words));
    const point = (v) => `(${fixed(v[0]).textContent}, ${fixed(v[1]).textContent})`;
    wires.replaceChildren(
      s("path", { d: "M345 80 V26 H55 V80", class: now.shortcut ? "wire-blue" : "wire-off" }), s("path", { d: "M345 80 H55", class: "wire-orange" }), s("path", { d: "M388 80 H357 M43 80 H12", class: "wire-dark" }),
      s("circle", { cx: 345, cy: 80, r: 12 }), s("text", { x: 345, y: 85, class: "mid" }, "+"), s("circle", { cx: 55, cy: 80, r: 4, class: "node" }),
      box(90, 46, "W\u2081"), box(155, 50, "relu"), box(224, 46, "W\u2082"), box(289, 34, "\u03b1"),
      s("text", { x: 200, y: 18, class: "mid blue" }, now.shortcut ? `ds = ${point(now.ds)}` : "cut"), s("text", { x: 200, y: 114, class: "mid orange" }, `J\u1d40ds = ${point(found.branch)}`),
      s("text", { x: 394, y: 66, class: "end" }, "y, ds"), s("text", { x: 8, y: 66 }, one.answer === null ? "x, dx?" : "x, dx"));
  }
  const numbers = h("dl", { class: "numbers" });
  const controls = h("div", { class: "controls" });
  const stage = h("div", { class: "beside" }, plane, h("div", {}, wires, numbers, controls));

  function draw() {
    const found = backward(now), zero = at([0, 0]), revealed = one.answer !== null;
    const parts = [arrow(...zero, ...at(now.ds), now.shortcut ? "blue" : "faint", "ds")];
    if (revealed) {
      const corner = at(found.shortcut);
      parts.push(arrow(...corner, ...at(found.dx), "orange", "J\u1d40ds, from the branch"), arrow(...zero, ...at(found.dx), "dark", "dx, the sum"));
    } else {
      parts.push(arrow(...zero, ...at(found.branch), "orange", "J\u1d40ds, from the branch"), arrow(...zero, ...at(guess), "ghost", "your guess for dx"));
    }
    arrows.replaceChildren(...parts);
    for (const [grip, v, name] of [[dsGrip, now.ds, "ds"], [guessGrip, guess, "guess"]]) {
      const [x, y] = at(v);
      grip.setAttribute("cx", x);
      grip.setAttribute("cy", y);
      grip.setAttribute("aria-valuenow", v[0].toFixed(2));
      grip.setAttribute("aria-valuetext", `${name} ${v[0].toFixed(2)}, ${v[1].toFixed(2)}`);
    }
    dsGrip.style.display = revealed ? "" : "none";
    guessGrip.style.display = revealed ? "none" : "";
    const lines = [["ds", "blue", now.shortcut ? "through the shortcut" : "arrives; the shortcut is off", now.ds], ["J\u1d40ds", "orange", "through the branch", found.branch]];
    if (revealed) lines.push(["dx", "dark", now.shortcut ? "the sum of both" : "the branch\u2019s part alone", found.dx]);
    else lines.push(["dx?", "ghost", "drag the grey arrow, or use the arrow keys", guess]);
    numbers.replaceChildren(...lines.flatMap(([name, cls, words, v]) => [h("dt", { class: cls }, name), h("dd", {}, pair(v), h("span", { class: "muted" }, ` ${words}`))]));
    drawWires(found);
    if (revealed) check(found.dx);
  }

  const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
  function judge() {
    const found = backward(now), half = found.dx.map((v) => v / 2);
    const typical = [
      [found.dx, "Yes: the two are added, because the loss feels x through both wires."],
      [half, "You averaged. Nudge x a little: y moves through both wires, so the effects add; nothing is divided."],
      [found.branch, "That is the branch alone. The wire around the branch is a use of x too."],
      [now.ds, "That is the shortcut alone. The branch depends on x as well, so it sends something back."],
      [[now.ds[0] + found.wrong[0], now.ds[1] + found.wrong[1]], "Close: that uses J. Backward, the turned matrix J\u1d40 carries ds from the output to the input."],
    ];
    const [best, words] = typical.reduce((a, b) => (distance(guess, a[0]) <= distance(guess, b[0]) ? a : b));
    return distance(guess, best) < 0.35 ? words : "Not there: dx is the sum, the two arrows head to tail.";
  }
  one.predict.classList.add("once");
  one.predict.append(stage,
    h("p", { class: "ask" }, "Where does dx, the gradient that the block passes on, point to?"),
    h("div", { class: "choices" },
      h("button", { type: "button", class: "go", onclick: () => one.answered(guess, judge()) }, "Here"),
      h("button", { type: "button", class: "unsure", onclick: () => one.answered("unsure", "It is the sum: the two arrows, head to tail.") }, "I don\u2019t know")));

  const slider = h("input", { type: "range", min: -1, max: 2, step: 0.05, value: 1, "aria-label": "alpha", oninput: () => { now.alpha = Number(slider.value); draw(); } });
  const shown = h("span", {});
  const shortcut = toggle("shortcut", true, () => { now.shortcut = !now.shortcut; shortcut.setAttribute("aria-pressed", String(now.shortcut)); draw(); }, "blue");
  const identity = h("button", { type: "button", class: "toggle", onclick: () => { now.W1 = [[1, 0], [0, 1]]; now.W2 = [[1, 0], [0, 1]]; draw(); } }, "make W\u2082W\u2081 the identity");
  const again = h("button", { type: "button", class: "toggle", onclick: () => { Object.assign(now, structuredClone(START)); slider.value = 1; shortcut.setAttribute("aria-pressed", "true"); draw(); } }, "start again");
  const done = breakIt(one, "Books say that with a shortcut the gradient can never vanish. Make dx = (0, 0) while the shortcut is on. (It takes \u03b1 and one of the buttons.)");
  function check(dx) {
    shown.textContent = `\u03b1 = ${text(now.alpha, 2)}`;
    done(now.shortcut && Math.hypot(...dx) < 0.02 && Math.hypot(...now.ds) > 0.1 ? "There: the branch sends back \u2212ds, and the two cancel. A shortcut makes vanishing unlikely, not impossible." : "");
  }
  one.onreveal = () => {
    one.reveal.append(stage);
    controls.append(h("label", {}, shown, slider), shortcut, identity, again);
    draw();
  };
  one.why.append("x is used twice, and the derivative of a sum is the sum of the derivatives: dx = ds + J\u1d40ds. With \u03b1 = 0, or a branch that has learnt nothing, ds still arrives.");
  draw();
}
