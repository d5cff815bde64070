// View 6: the trained net with branches or shortcuts cut, and its error on test images.

{
  const L = Data.lesions, base = L.base;
  const one = view("cut", "Cut it", "Which cuts hurt most?",
    h("p", { class: "text" }, `The trained net gets `, percent(base), ` of ${L.images} test images wrong. Now cut a wire: a branch (its block passes x on as it is), or a shortcut (its block passes on F(x) alone). Nothing is trained again.`));
  const errors = new Map(L.branch_masks.masks.map((mask, i) => [mask, L.branch_masks.error[i]]));
  errors.set(0, base);
  const singles = [...L.branch.map((error, k) => ({ kind: "branch", k, error })), ...L.shortcut.map((error, k) => ({ kind: "shortcut", k, error }))];
  const worst = [...singles].sort((a, b) => b.error - a.error).slice(0, 3);
  const name = (c) => `${c.kind} of ${Data.meta.blocks[c.k].name}`;
  const ticked = new Set();
  let branches = 0, shortcut = -1;

  const net = h("div", { class: "lanes" });
  const said = h("p", { class: "sums", "aria-live": "polite" });
  const wire = (kind, k, pressed, onclick) => h("button", { type: "button", class: `wire ${kind === "branch" ? "orange" : "blue"}`, "aria-pressed": String(pressed), "aria-label": `${kind} of ${Data.meta.blocks[k].name}`, "data-wire": `${kind} ${k}`, onclick },
    kind, one.answer === null ? null : h("small", {}, percent(kind === "branch" ? L.branch[k] : L.shortcut[k])));
  function draw() {
    net.replaceChildren(...Data.meta.blocks.map((b, k) => {
      const cut = (kind) => (one.answer === null ? ticked.has(`${kind} ${k}`) : kind === "branch" ? Boolean(branches & (1 << k)) : shortcut === k);
      return h("div", { class: "lane" }, h("span", { class: "muted" }, b.name),
        wire("branch", k, cut("branch"), () => { if (one.answer === null) tick("branch", k); else { branches ^= 1 << k; shortcut = -1; draw(); } }),
        wire("shortcut", k, cut("shortcut"), () => { if (one.answer === null) tick("shortcut", k); else { shortcut = shortcut === k ? -1 : k; branches = 0; draw(); } }));
    }));
    if (one.answer === null) { lock.disabled = ticked.size !== 3; return; }
    const error = shortcut >= 0 ? L.shortcut[shortcut] : errors.get(branches);
    const count = branches.toString(2).replaceAll("0", "").length;
    if (error === undefined) said.textContent = "This set of cuts was not computed: the page was made with --quick, or the net has many blocks.";
    else said.replaceChildren(shortcut >= 0 ? "One shortcut cut: " : branches ? `${count} ${count === 1 ? "branch" : "branches"} cut: ` : "Nothing cut: ", percent(error), " wrong.");
    const sets = [...errors].map(([mask, e]) => [mask.toString(2).replaceAll("0", "").length, e]).filter(([, e]) => e <= limit);
    const most = Math.max(0, ...sets.map(([n]) => n));
    done(branches && error !== undefined && error <= limit ? (count === most ? `${count}, and no more are possible.` : `${count} so far; ${most} are possible.`) : "");
  }
  function tick(kind, k) {
    const key = `${kind} ${k}`;
    if (ticked.has(key)) ticked.delete(key);
    else if (ticked.size < 3) ticked.add(key);
    draw();
  }
  const judge = (unsure) => {
    const hits = worst.filter((c) => ticked.has(`${c.kind} ${c.k}`)).length;
    return [unsure ? "" : `${hits} of 3. `, "The worst are the ", ...worst.flatMap((c, i) => [i ? (i === 2 ? " and the " : ", the ") : "", name(c), " (", percent(c.error), ")"]), "."];
  };
  const lock = h("button", { type: "button", class: "go", disabled: true, onclick: () => one.answered([...ticked], judge(false)) }, "These three");
  one.predict.classList.add("once");
  one.predict.append(h("p", { class: "ask" }, `Choose the three cuts, of ${2 * COUNT}, that hurt most.`), net,
    h("div", { class: "choices" }, lock, h("button", { type: "button", class: "unsure", onclick: () => one.answered("unsure", judge(true)) }, "I don\u2019t know")));
  const limit = base + 0.1;
  const done = breakIt(one, "Cut as many branches as you can while the error stays at most 10 points above the whole net\u2019s.");
  one.onreveal = () => { one.reveal.append(net, said); draw(); };
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  one.why.append("Cut one shortcut, and ", percent(mean(L.shortcut)), " are wrong on average; cut one branch, and it is ", percent(mean(L.branch)), ". A branch adds a correction to what passes by; a cut shortcut takes away all that came before, and what was learnt above no longer fits.");
  draw();
}
