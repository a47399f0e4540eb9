// The source, the table of steps, the chart of memory.

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The lines of a part's source; what follows a # is set apart. */
function fillSource(list, source) {
  const lines = source.trimEnd().split("\n").map((line) => {
    const at = line.indexOf("  # ");
    const code = at < 0 ? line : line.slice(0, at);
    return html("li", {}, code || " ", ...(at < 0 ? [] : [html("span", { class: "comment" }, line.slice(at))]));
  });
  list.replaceChildren(...lines);
  return lines;
}

const LONGEST = 300; // letters of a step in the table; all of it stands above, when it is chosen

/** Rows for all steps; `choose` is called with the number of the one that is clicked. */
function fillSteps(table, view, steps, choose) {
  const rows = steps.map((step, number) => {
    const cells = Array.from({ length: 7 }, () => html("td"));
    cells[0].textContent = number + 1;
    cells[1].textContent = `${"  ".repeat(step.depth)}${cut(step.text, LONGEST)}`;
    cells[6].textContent = [step.mark, step.copies ? `copies ${step.copies}` : ""].filter(Boolean).join(", ");
    const row = html("tr", {}, ...cells);
    if (number && step.part !== steps[number - 1].part) row.classList.add("other-part");
    row.addEventListener("click", () => choose(number));
    return { row, cells };
  });
  table.tBodies[0].replaceChildren(...rows.map(({ row }) => row));
  return rows;
}

/** Write costs into the rows, and their sum below. */
function writeCosts(table, rows, costs) {
  const totals = totalsOf(costs);
  rows.forEach(({ cells }, number) => {
    const cost = costs[number];
    cells[2].textContent = workText(cost);
    cells[3].textContent = cost.bytes ? quantity(cost.bytes, "B") : "view";
    const bar = html("span", { class: "share" });
    bar.style.width = `${(60 * cost.us) / (totals.us || 1)}px`;
    cells[4].replaceChildren(bar, cost.us ? `${duration(cost.us)}` : "");
    cells[5].textContent = quantity(cost.live, "B");
  });
  const foot = ["", "all steps", workText(totals), quantity(totals.bytes, "B"), duration(totals.us), `${quantity(totals.live, "B")} peak`, ""];
  table.tFoot.replaceChildren(html("tr", {}, ...foot.map((text) => html("td", {}, text))));
  return totals;
}

function workText(cost) {
  if (cost.flops) return quantity(cost.flops, "FLOP");
  return cost.elements ? quantity(cost.elements, "elem") : "";
}

/** Live memory over the steps, saved values among it; the step that runs is marked. */
function drawMemory(element, costs, current) {
  const { width, height } = element.getBoundingClientRect();
  const [left, right, top, bottom] = [70, 10, 16, height - 18];
  const most = costs.reduce((peak, cost) => Math.max(peak, cost.live), 1);
  const x = (step) => left + ((width - left - right) * step) / Math.max(costs.length, 1);
  const y = (bytes) => bottom - ((bottom - top) * bytes) / most;
  const area = (name) => {
    const tops = costs.map((cost, k) => `L${x(k)} ${y(cost[name])}H${x(k + 1)}`);
    return `M${left} ${bottom}${tops.join("")}L${x(costs.length)} ${bottom}Z`;
  };
  const middle = x(current + 0.5);
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  element.replaceChildren(
    svg("path", { class: "live", d: area("live") }), svg("path", { class: "saved", d: area("saved") }),
    svg("line", { class: "axis", x1: left, x2: width - right, y1: bottom, y2: bottom }),
    svg("line", { class: "at", x1: middle, x2: middle, y1: top - 6, y2: bottom }),
    svg("text", { class: "end", x: left - 6, y: top }, quantity(most, "B")),
    svg("text", { class: "end", x: left - 6, y: bottom }, "0 B"),
  );
  const saved = costs.some((cost) => cost.saved > 0);
  const words = saved ? "alive (blue), of it held for the backward pass (purple)" : "alive";
  element.append(svg("text", { class: "start", x: left, y: height - 6 }, `bytes of computed values ${words}, step by step`));
  element.setAttribute("aria-label", `Live memory, at most ${quantity(most, "B")}; ${quantity(costs[current]?.live ?? 0, "B")} at this step`);
  return (event) => Math.floor(((event.offsetX - left) / (width - left - right)) * costs.length);
}
