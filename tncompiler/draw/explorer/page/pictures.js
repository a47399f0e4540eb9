// The network and the tree as SVG, with zoom. Places come from Python, in inches.

const INCH = 72;
const RADIUS = 0.25 * INCH;
const FAR = 0.42; // screen pixels a unit below which labels are left out
const NEAR = 0.75; // and at which a picture follows the step

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Text that fits: in its circle if short, else below it. */
function nameOf(name) {
  const inside = name.length <= 6;
  const size = inside ? Math.min(11, 42 / name.length) : 9;
  const text = svg("text", { class: inside ? "" : "halo", y: inside ? 0 : RADIUS + 8, "font-size": size }, name);
  return text;
}

function titled(element, title) {
  element.append(svg("title", {}, title));
  return element;
}

/** Text cut to so many letters. */
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Width of a line: by the logarithm of the size. */
const widthOf = (size) => Math.min(0.9 + 0.33 * Math.log2(Math.max(size, 1)), 6);

/** A picture with a view box that wheel, drag, buttons and keys change. */
class Picture {
  constructor(element) {
    this.element = element;
    this.box = [0, 0, 100, 100];
    this.whole = this.box;
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(1.15 ** Math.sign(event.deltaY), this.point(event));
    }, { passive: false });
    element.addEventListener("pointerdown", (event) => { this.from = this.point(event); });
    element.addEventListener("pointermove", (event) => {
      if (!event.buttons || !this.from) return;
      const [x, y] = this.point(event);
      this.show([this.box[0] + this.from[0] - x, this.box[1] + this.from[1] - y, this.box[2], this.box[3]]);
    });
    element.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.show(this.box)).observe(element);
    const buttons = document.querySelector(`.zoom[data-for="${element.id}"]`);
    for (const [text, label, act] of [
      ["+", "Larger", () => this.zoom(1 / 1.4)], ["−", "Smaller", () => this.zoom(1.4)],
      ["⤢", "All of it", () => this.show(this.whole)],
    ]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.setAttribute("aria-label", `${label}: ${element.id.replace("-", " ")}`);
      button.addEventListener("click", act);
      buttons.append(button);
    }
  }

  /** Where an event is, in the picture's units. */
  point(event) {
    const matrix = this.element.getScreenCTM().inverse();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return [x, y];
  }

  show(box) {
    this.box = box;
    this.element.setAttribute("viewBox", box.map((number) => number.toFixed(2)).join(" "));
    const { width, height } = this.element.getBoundingClientRect();
    const scale = Math.min(width / box[2], height / box[3]);
    this.element.classList.toggle("far", scale < FAR);
  }

  zoom(factor, [x, y] = [this.box[0] + this.box[2] / 2, this.box[1] + this.box[3] / 2]) {
    const [left, top, width, height] = this.box;
    this.show([x - (x - left) * factor, y - (y - top) * factor, width * factor, height * factor]);
  }

  key(event) {
    const moves = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };
    if (event.key === "+" || event.key === "=") this.zoom(1 / 1.3);
    else if (event.key === "-") this.zoom(1.3);
    else if (event.key === "0") this.show(this.whole);
    else if (event.shiftKey && moves[event.key]) {
      const [dx, dy] = moves[event.key];
      this.show([this.box[0] + dx * this.box[2], this.box[1] + dy * this.box[3], this.box[2], this.box[3]]);
      event.stopPropagation();
    } else return;
    event.preventDefault();
  }

  /** Put new content in place, and show all of it. */
  fill(content, bounds) {
    this.element.replaceChildren(...content);
    this.whole = bounds;
    this.show(bounds);
    this.isFar = this.element.classList.contains("far");
  }

  /** In a picture too large to be read as a whole, go where something happens. */
  follow(place) {
    if (!this.isFar || !place) return;
    const screen = this.element.getBoundingClientRect();
    const [width, height] = [screen.width / NEAR, screen.height / NEAR];
    this.show([place.x * INCH - width / 2, place.y * INCH - height * 0.6, width, height]);
  }
}

function boundsOf(points, margin) {
  const xs = points.map(([x]) => x * INCH);
  const ys = points.map(([, y]) => y * INCH);
  const low = (values) => values.reduce((a, b) => Math.min(a, b), Infinity) - margin;
  const high = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity) + margin;
  return [low(xs), low(ys), high(xs) - low(xs), high(ys) - low(ys)];
}

/** Draw a network; gives its elements by what they stand for. */
function drawNetwork(picture, network) {
  const lines = network.lines.map((line) => {
    const path = svg("path", { class: "bond", d: line.path });
    const label = svg("text", { class: "label halo", x: line.x * INCH, y: line.y * INCH, "font-size": 9.5 });
    return { label: line.label, path, text: label, said: line.said };
  });
  const dots = network.dots.map(({ x, y }) => svg("circle", { class: "dot", cx: x * INCH, cy: y * INCH, r: 4.3 }));
  const tensors = network.tensors.map((tensor) => {
    const group = svg("g", { transform: `translate(${tensor.x * INCH} ${tensor.y * INCH})` }, svg("circle", { r: RADIUS }), nameOf(tensor.name));
    return { group, base: `tensor ${tensor.kind}`, tensor };
  });
  const content = [...lines.map(({ path }) => path), ...dots, ...lines.filter(({ said }) => said).map(({ text }) => text), ...tensors.map(({ group }) => group)];
  const points = [...network.tensors.map(({ x, y }) => [x, y]), ...network.lines.map(({ x, y }) => [x, y])];
  picture.fill(content, boundsOf(points, 34));
  picture.element.setAttribute("aria-label", `Network ${network.name}: ${network.tensors.length} tensors, ${network.indices.length} indices`);
  return { lines, tensors };
}

/** Draw a tree; gives its elements by node. */
function drawTree(picture, tree, network) {
  const nodes = [];
  const branches = [];
  for (const node of tree.nodes) {
    const group = svg("g", { transform: `translate(${node.x * INCH} ${node.y * INCH})` });
    const cost = svg("text", { y: 7, "font-size": 9.5 });
    let base = "tensor";
    if (node.parts) {
      const names = `(${node.labels.map((label) => network.indices[label].name).join(", ")})`;
      group.append(svg("rect", { x: -46, y: -15, width: 92, height: 30, rx: 5 }));
      group.append(svg("text", { y: -6, "font-size": 9.5 }, cut(names, 16)), cost);
      titled(group, names);
      for (const part of node.parts) {
        const below = tree.nodes[part];
        const path = svg("path", { class: "branch", d: `M${node.x * INCH} ${node.y * INCH}H${below.x * INCH}V${below.y * INCH}` });
        branches.push({ path, labels: below.labels });
      }
    } else {
      const tensor = network.tensors[node.tensor];
      base = `tensor ${tensor.kind}`;
      group.append(svg("circle", { r: RADIUS }), nameOf(tensor.name));
    }
    nodes.push({ group, cost, base, node });
  }
  const points = tree.nodes.map(({ x, y }) => [x, y]);
  picture.fill([...branches.map(({ path }) => path), ...nodes.map(({ group }) => group)], boundsOf(points, 52));
  picture.element.setAttribute("aria-label", `Contraction tree of ${network.name}: ${tree.nodes.filter(({ parts }) => parts).length} contractions`);
  return { nodes, branches };
}
