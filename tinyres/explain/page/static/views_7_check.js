// View 7: six questions without code.

{
  const one = view("check", "Check yourself", "Six questions, with a hint for every answer", "Answer one to see how it goes; each wrong answer has its reason.");
  const solved = new Set(), missed = new Set();
  const ITEMS = [
    { name: "fork", ask: "a = 1, b = a + a, c = b + b. What is a.grad after c.backward()?", right: "4", yes: "Four paths lead from a to c, each with slope 1.",
      hints: { 8: "You handed b\u2019s sum on twice: it was not complete the first time.", 1: "Assigned or averaged: the last use won. Uses add.", 2: "One of the two forks was counted once.", 3: "You counted plus signs; slopes multiply along a path.", 6: "Paths add: how many are there from a to c?" } },
    { name: "cancel", ask: "Which branch Jacobian J makes dx = 0 for every ds, with the shortcut on?", options: ["0", "I", "\u2212I/2", "\u2212I", "it is impossible"], right: "\u2212I", yes: "ds \u2212 ds = 0. So never vanishing is a statement about small branches.",
      hints: { 0: "Then dx = ds: that is the case the shortcut saves.", I: "That doubles it.", "\u2212I/2": "That halves it.", "it is impossible": "Solve ds + J\u1d40ds = 0 for all ds." } },
    { name: "rows", ask: "11 rows, padding 1 on both sides, windows of 2 rows, stride 3. How many rows of the image are in no window?", right: "4", yes: "Windows begin every third row and reach two: rows 1, 4, 7 and 10 are in none.",
      hints: { 2: "The last rows of the padded image: are they the image\u2019s? And the gaps between windows?", 1: "Right for windows at least as long as the stride; these have gaps.", 0: "Then why does a 1x1 convolution with stride 2 skip half of the rows?", 7: "A window reads several rows." } },
    { name: "parameters", ask: "How many parameters more has ResNet-20 with option B (1x1 convolution and batch norm where shapes change) than with option A?", right: "2752", yes: "16\u00b732 + 32\u00b764 weights, and a weight and a bias for each of 32 + 64 channels.",
      hints: { 2560: "And the batch norms?", 2656: "A batch norm has a weight and a bias.", 23232: "1x1, not 3x3.", 2848: "The batch norm has the bias; the convolution needs none.", 14240: "That is C: B projects only where shapes change." } },
    { name: "zero", ask: "The last batch norm (bn2) of a block starts with weight 0. Which of the block\u2019s parameters get gradient 0 in the first step?", several: ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"], right: "conv1.weight bn1.weight bn1.bias conv2.weight", yes: "What goes down into the branch is multiplied by 0; bn2\u2019s own gradients are sums of ds. From the second step on all learn.",
      hints: { "": "What is the cotangent multiplied with when it leaves bn2 downwards?", "conv1.weight bn1.weight bn1.bias conv2.weight bn2.weight bn2.bias": "bn2\u2019s own gradient is a sum of ds xhat: no factor of its weight.", "bn2.weight bn2.bias": "The other way round: which come after the factor 0?", "conv2.weight": "What reaches bn1 has passed conv2." }, otherwise: "Go down from the join: after which point is everything 0?" },
    { name: "tables", ask: "Net A, 20 layers: training error 2 %, test error 9 %. Net B, the same without shortcuts and 56 layers: training error 14 %, test error 18 %. A 56-layer net with shortcuts trains to 1 %. What is wrong with B?", options: ["overfitting", "degradation", "too few training steps", "noise", "exploding weights"], right: "degradation", yes: "Its training error is higher, and a net of its depth can do better: it is harder to optimise.",
      hints: { overfitting: "Look at the training error.", "too few training steps": "Is the residual net of that depth behind as well?", noise: "Twelve points? Seeds differ by one or two.", "exploding weights": "Then it would not reach 14 %." } },
  ];
  const list = h("ol", { class: "items" });
  for (const item of ITEMS) {
    const say = h("p", { class: "done", role: "status" });
    const answer = (value) => {
      const right = value === item.right;
      say.textContent = right ? `Right. ${item.yes}` : item.hints[value] ?? item.otherwise ?? "Not that. Draw it for the smallest case and count.";
      say.classList.toggle("no", !right);
      (right ? solved : missed).add(item.name);
      done(missed.size === ITEMS.length ? "All six, and six reasons." : `${missed.size} of ${ITEMS.length}`);
      progress.textContent = `${solved.size} of ${ITEMS.length} right`;
      if (one.answer === null) one.answered("begun", "Each answer is judged at once; try wrong ones too.");
      if (solved.size === ITEMS.length) announce("All six are right.");
    };
    let form;
    if (item.options) form = choices(item.options.map((o) => [o, o]), answer, item.ask);
    else if (item.several) {
      const boxes = item.several.map((p) => h("label", { class: "box" }, h("input", { type: "checkbox", value: p }), p));
      form = h("div", { class: "choices" }, boxes, h("button", { type: "button", class: "go", onclick: () => answer(boxes.map((b) => b.firstChild).filter((b) => b.checked).map((b) => b.value).join(" ")) }, "Check"));
    } else {
      const field = h("input", { type: "text", inputmode: "numeric", size: 8, "aria-label": "your number", onkeydown: (event) => { if (event.key === "Enter") check(); } });
      const check = () => answer(field.value.trim().replace(/[ ,.\u202f]/g, ""));
      form = h("div", { class: "choices" }, field, h("button", { type: "button", class: "go", onclick: check }, "Check"));
    }
    list.append(h("li", { "data-item": item.name }, h("p", { class: "ask" }, item.ask), form, say));
  }
  const progress = h("p", { class: "sums" });
  one.predict.append(list, progress, h("button", { type: "button", class: "unsure unseen", tabindex: -1, onclick: () => one.answered("begun", "Each answer is judged at once; try wrong ones too.") }, "Begin"));
  const done = breakIt(one, "Answer every question wrongly once, in the way that you find most tempting, and read what the mistake looks like.");
  one.why.append("None of these needs more than three rules: slopes multiply along a path, paths add, and an addition lends its whole cotangent to both sides.");
}
