// The page: one state, and what is drawn again when it changes.

const byId = (id) => document.getElementById(id);

/** The data, which Python compressed. */
async function readData() {
  const bytes = Uint8Array.from(atob(byId("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** Give an element a class unless it has it: of thousands, a step changes a few. */
function setClass(element, name) {
  if (element.getAttribute("class") !== name) element.setAttribute("class", name);
}

class Explorer {
  constructor(data) {
    this.data = data;
    this.sizes = data.symbols.map((symbol) => symbol.nominal);
    this.mode = data.modes[0];
    this.pictures = { network: new Picture(byId("network-picture")), tree: new Picture(byId("tree-picture")) };
    this.found = "";
    if (matchMedia("(prefers-color-scheme: dark)").matches) this.turnTheme();
    this.makeControls();
    this.showView();
  }

  // -------------------------------------------------------------- controls

  makeControls() {
    byId("title").textContent = this.data.title;
    for (const mode of this.data.modes) {
      const button = html("button", { type: "button" }, mode.name);
      button.addEventListener("click", () => { this.mode = mode; this.showView(); });
      mode.button = button;
      byId("modes").append(button);
    }
    this.data.symbols.forEach((symbol, which) => byId("sliders").append(this.slider(symbol, which)));
    const moves = { first: () => 0, back: () => this.step - 1, next: () => this.step + 1, last: () => this.steps.length - 1 };
    for (const [id, target] of Object.entries(moves)) byId(id).addEventListener("click", () => this.go(target()));
    byId("network").append(...this.data.networks.map((network, k) => html("option", { value: k }, `${k + 1}: ${network.name}`)));
    byId("network").addEventListener("change", (event) => { this.showNetwork(Number(event.target.value)); this.showStep(); });
    byId("choice").hidden = this.data.networks.length < 2;
    const names = new Set(this.data.networks.flatMap((network) => network.indices.map((index) => index.name)));
    byId("indices").append(...[...names].sort().map((name) => html("option", { value: name })));
    byId("index").addEventListener("input", (event) => this.find(event.target.value));
    byId("theme").addEventListener("click", () => this.turnTheme());
    byId("help").addEventListener("click", () => byId("keys").showModal());
    byId("memory").addEventListener("click", (event) => this.go(this.stepAt(event)));
    document.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.drawMemory()).observe(byId("memory"));
    byId("notes").textContent = this.data.notes.join(" ");
  }

  /** A slider over the powers of a size, with a box for the exact one. */
  slider(symbol, which) {
    const exponent = (size) => Math.log2(size);
    const [low, high] = [exponent(symbol.low), exponent(symbol.high)];
    const range = html("input", { type: "range", min: low, max: high, step: "any", value: exponent(symbol.nominal), "aria-label": `Size of ${symbol.name}` });
    const box = html("input", { type: "number", min: symbol.low, max: symbol.high, value: symbol.nominal, "aria-label": `Size of ${symbol.name}, exactly` });
    const set = (size) => {
      if (!Number.isFinite(size)) return;
      const fitting = Math.min(Math.max(Math.round(size), symbol.low), symbol.high);
      this.sizes[which] = fitting;
      box.value = fitting;
      range.setAttribute("aria-valuetext", `${symbol.name} = ${fitting}`);
      this.showSizes();
    };
    range.addEventListener("input", () => set(2 ** Number(range.value)));
    box.addEventListener("change", () => { set(Number(box.value)); range.value = exponent(this.sizes[which]); });
    const track = html("span", { class: "range" }, range);
    symbol.track = track;
    return html("label", {}, symbol.name, track, box);
  }

  /** Marks where the best plan changes. */
  markCrossovers() {
    const symbol = this.data.symbols[0];
    if (!symbol?.track) return;
    symbol.track.querySelectorAll("i").forEach((mark) => mark.remove());
    for (const view of this.mode.views.slice(1)) {
      const share = Math.log2(view.low / symbol.low) / Math.log2(symbol.high / symbol.low);
      const mark = html("i", { title: `another plan from ${symbol.name} = ${view.low}` });
      mark.style.left = `calc(8px + (100% - 16px) * ${share})`;
      symbol.track.append(mark);
    }
  }

  turnTheme() {
    const dark = document.documentElement.dataset.theme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    if (event.key === "Escape") { byId("index").value = ""; this.find(""); document.activeElement.blur(); return; }
    if (event.target.closest("input, select")) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.key in moves && !event.shiftKey) this.go(this.step + moves[event.key]);
    else if (event.key === "/") byId("index").focus();
    else if (event.key === "t") this.turnTheme();
    else if (event.key === "?") byId("keys").showModal();
    else return;
    event.preventDefault();
  }

  // -------------------------------------------------------------- what is shown

  /** The view for the sizes that are chosen: the plan that a call of these sizes runs. */
  viewFor() {
    const [size] = this.sizes;
    return this.mode.views.find((view) => view.high === null || size <= view.high) ?? this.mode.views.at(-1);
  }

  showView() {
    this.view = this.viewFor();
    this.steps = stepsOf(this.view);
    for (const mode of this.data.modes) mode.button.setAttribute("aria-pressed", mode === this.mode);
    this.rows = fillSteps(byId("steps"), this.view, this.steps, (number) => this.go(number));
    this.marked = null;
    this.shownPart = -1;
    this.treeOf = undefined;
    this.markCrossovers();
    this.showNetwork(this.view.trees.length ? this.view.trees[0].network : 0);
    this.step = 0;
    this.showSizes();
    this.go(0);
  }

  showSizes() {
    if (this.viewFor() !== this.view) { this.showView(); return; }
    this.costs = costsOf(this.view, this.steps, this.sizes);
    this.totals = writeCosts(byId("steps"), this.rows, this.costs);
    const { views } = this.mode;
    const [symbol] = this.data.symbols;
    const { low, high } = this.view;
    const range = views.length < 2 ? "" : `, which runs for ${symbol.name} = ${low} ${high === null ? "and more" : `… ${high}`}`;
    byId("plans").textContent = `Plan ${views.indexOf(this.view) + 1} of ${views.length}${range}. `
      + `${workText(this.totals) || "no arithmetic"}, ${quantity(this.totals.bytes, "B")} moved, ${quantity(this.totals.live, "B")} at most, ${duration(this.totals.us)} predicted.`;
    this.writeSizes();
    this.showStep();
  }

  showNetwork(which) {
    this.network = which;
    byId("network").value = which;
    const network = this.data.networks[which];
    if (!network) { byId("choice").hidden = true; return; }
    this.drawn = drawNetwork(this.pictures.network, network);
    this.tree = this.view.trees.find((tree) => tree.network === which);
    this.drawnTree = this.tree ? drawTree(this.pictures.tree, this.tree, network) : null;
    if (!this.tree) this.pictures.tree.fill([], [0, 0, 100, 100]);
    this.whenMade = this.tree ? this.whenTreeIsMade() : [];
    this.whenSummed = this.tree ? this.whenIndicesAreSummed(network) : [];
    this.writeSizes();
    this.find(this.found);
  }

  /** By node of the tree, the step that makes it; those that none makes are never done. */
  whenTreeIsMade() {
    const made = this.tree.nodes.map((node) => (node.parts ? Infinity : -1));
    const which = this.view.trees.indexOf(this.tree);
    this.steps.forEach((step, number) => {
      for (const [tree, node] of step.nodes) if (tree === which) made[node] = Math.min(made[node], number);
    });
    return made;
  }

  /** By index of the network, the step that sums over it. */
  whenIndicesAreSummed(network) {
    const summed = network.indices.map(() => Infinity);
    this.tree.nodes.forEach((node, k) => {
      if (!node.parts) return;
      for (const label of node.summed) summed[label] = this.whenMade[k];
    });
    return summed;
  }

  writeSizes() {
    const network = this.data.networks[this.network];
    if (!network || !this.drawn) return;
    for (const line of this.drawn.lines) {
      const index = network.indices[line.label];
      const size = evaluateSize(index.size, this.sizes);
      line.text.textContent = `${cut(index.name, 14)}:${size}`;
      line.path.style.strokeWidth = widthOf(size);
      line.path.classList.toggle("empty", size === 0);
    }
    for (const { cost, node } of this.drawnTree?.nodes ?? []) if (node.parts) cost.textContent = quantity(evaluateTerms(node.flops, this.sizes), "FLOP");
  }

  find(text) {
    this.found = text;
    const network = this.data.networks[this.network];
    if (!network) return;
    const hits = new Set(network.indices.flatMap((index, k) => (text && index.name === text ? [k] : [])));
    if (text && !hits.size) {
      const other = this.data.networks.findIndex(({ indices }) => indices.some(({ name }) => name === text));
      if (other >= 0) { this.showNetwork(other); this.showStep(); return; }
    }
    for (const line of this.drawn.lines) for (const part of [line.path, line.text]) part.classList.toggle("found", hits.has(line.label));
    for (const branch of this.drawnTree?.branches ?? []) branch.path.classList.toggle("found", branch.labels.some((label) => hits.has(label)));
    if (text) byId("spoken").textContent = hits.size ? `${text} is on ${network.tensors.filter(({ labels }) => labels.some((label) => hits.has(label))).map(({ name }) => name).join(", ")}` : `no index is called ${text}`;
  }

  // -------------------------------------------------------------- one step

  go(number) {
    this.step = Math.min(Math.max(number, 0), this.steps.length - 1);
    const step = this.steps[this.step];
    const tree = step && [...step.nodes, ...step.reads][0]?.[0];
    if (tree !== undefined && this.view.trees[tree].network !== this.network) this.showNetwork(this.view.trees[tree].network);
    this.showStep();
    const cost = this.costs[this.step];
    if (cost) byId("spoken").textContent = `Step ${this.step + 1} of ${this.steps.length}: ${step.text}. ${workText(cost)}, ${quantity(cost.bytes, "B")} moved, ${quantity(cost.live, "B")} alive.`;
  }

  showStep() {
    const count = this.steps.length;
    const step = this.steps[this.step];
    byId("counter").textContent = count ? `${this.step + 1} of ${count}` : "no steps";
    byId("first").disabled = byId("back").disabled = this.step <= 0;
    byId("next").disabled = byId("last").disabled = this.step >= count - 1;
    this.markRow();
    this.markSource(step);
    this.markPictures(step);
    this.writeNumbers(step);
    this.drawMemory();
  }

  markRow() {
    this.marked?.removeAttribute("aria-current");
    this.marked = this.rows[this.step]?.row ?? null;
    this.marked?.setAttribute("aria-current", "step");
  }

  markSource(step) {
    const part = step?.part ?? 0;
    if (part !== this.shownPart) {
      this.lines = fillSource(byId("source"), this.view.parts[part].source);
      byId("source-title").textContent = `Generated source: ${this.view.parts[part].name}`;
      this.shownPart = part;
      this.lit = [];
    }
    for (const line of this.lit) line.classList.remove("now");
    this.lit = step?.lines ? this.lines.slice(step.lines[0] - 1, step.lines[1]) : [];
    for (const line of this.lit) line.classList.add("now");
    const [first] = this.lit;
    if (first) byId("source").scrollTop = first.offsetTop - byId("source").offsetTop - byId("source").clientHeight / 2;
  }

  /** The classes of tree nodes and tensors at a step: what is read, made, done, and a gradient. */
  markPictures(step) {
    if (!this.drawn) return;
    const which = this.view.trees.indexOf(this.tree);
    const mine = (pairs) => pairs.filter(([tree]) => tree === which).map(([, node]) => node);
    const roles = new Map();
    if (step && this.tree) {
      const made = mine(step.nodes);
      mine(step.reads).forEach((node, k) => this.spread(roles, node, k % 2 ? "right" : "left"));
      for (const node of made) {
        const { parts } = this.tree.nodes[node];
        if (parts) { this.spread(roles, parts[0], "left"); this.spread(roles, parts[1], "right"); }
        roles.set(node, "made");
      }
    }
    for (const [k, { group, base }] of (this.drawnTree?.nodes ?? []).entries()) {
      const done = this.whenMade[k] >= 0 && this.whenMade[k] <= this.step;
      setClass(group, `${base} ${roles.get(k) ?? ""} ${done ? "done" : ""}`);
    }
    const [now] = roles.keys();
    if (now !== undefined) this.pictures.tree.follow(this.tree.nodes[now]);
    this.markTensors(step, roles);
    for (const line of this.drawn.lines) {
      const when = this.whenSummed[line.label] ?? Infinity;
      for (const part of [line.path, line.text]) {
        part.classList.toggle("summed", when === this.step);
        part.classList.toggle("done", when < this.step);
      }
    }
  }

  markTensors(step, roles) {
    const ofTensor = new Map();
    for (const [k, node] of (this.tree?.nodes ?? []).entries()) if (!node.parts && roles.has(k)) ofTensor.set(node.tensor, roles.get(k));
    const names = new Set(step?.gradient ?? []);
    const [now] = ofTensor.keys();
    if (now !== undefined) this.pictures.network.follow(this.drawn.tensors[now].tensor);
    this.drawn.tensors.forEach(({ group, base, tensor }, k) => {
      const role = names.has(tensor.name) ? "gradient" : (ofTensor.get(k) ?? "");
      setClass(group, `${base} ${role}`);
    });
  }

  /** Give a node and all below it a role. */
  spread(roles, node, role) {
    const pending = [node];
    while (pending.length) {
      const one = pending.pop();
      roles.set(one, role);
      pending.push(...(this.tree.nodes[one].parts ?? []));
    }
  }

  writeNumbers(step) {
    byId("equation").textContent = step ? step.text : "every output is an argument";
    if (!step) { byId("numbers").replaceChildren(); return; }
    const cost = this.costs[this.step];
    const share = this.totals.us ? `, ${Number(((100 * cost.us) / this.totals.us).toPrecision(2))} % of all` : "";
    const shape = step.shape.map((size) => evaluateSize(size, this.sizes)).join(" × ");
    const facts = [
      ["shape", shape || "scalar"], ["work", workText(cost) || "none"], ["bytes moved", cost.bytes ? quantity(cost.bytes, "B") : "none: a view"],
      ["time predicted", `${duration(cost.us)}${share}`], ["live memory", quantity(cost.live, "B")],
    ];
    if (step.mark) facts.push(["backward", step.mark === "saved" ? "its value is saved" : "computed again"]);
    if (step.copies) facts.push(["copies", step.copies]);
    if (step.gradient.length) facts.push(["gradient of", step.gradient.join(", ")]);
    byId("numbers").replaceChildren(...facts.map(([name, text]) => html("div", {}, html("dt", {}, name), html("dd", {}, text))));
  }

  drawMemory() {
    if (this.costs) this.stepAt = drawMemory(byId("memory"), this.costs, this.step);
  }
}

readData().then((data) => { window.explorer = new Explorer(data); document.body.dataset.ready = "yes"; });
