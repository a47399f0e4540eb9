// What every step costs at the sizes that are chosen.

/** Steps of all parts in order, each with its part's number. */
function stepsOf(view) {
  return view.parts.flatMap((part, number) => part.steps.map((step) => ({ ...step, part: number })));
}

/** Microseconds of a step: its times along each symbol, as ratios to that at the first sizes. */
function timeOf(step, view, sizes) {
  if (!view.grids.length) return step.us[0][0];
  let us = between(view.grids[0].sizes, step.us[0], sizes[view.grids[0].symbol]);
  for (let k = 1; k < view.grids.length; k += 1) {
    const { symbol, sizes: known, nominal } = view.grids[k];
    const usual = between(known, step.us[k], nominal);
    us *= usual ? between(known, step.us[k], sizes[symbol]) / usual : 1;
  }
  return us;
}

/** Numbers for each step: flops, elements, bytes, us, live bytes, saved bytes among them. */
function costsOf(view, steps, sizes) {
  const costs = [];
  let held = 0;
  for (const [number, part] of view.parts.entries()) {
    const own = steps.filter((step) => step.part === number);
    const base = evaluateTerms(part.held, sizes);
    const made = own.map((step) => evaluateTerms(step.makes, sizes));
    let live = base;
    if (number) held = base;
    let around = live;
    own.forEach((step, k) => {
      if (!step.depth) {
        live += made[k];
        around = live + Math.max(0, ...step.beside.map((terms) => evaluateTerms(terms, sizes)));
      }
      if (step.mark === "saved") held += made[k];
      costs.push({
        flops: evaluateTerms(step.flops, sizes),
        elements: evaluateTerms(step.elementwise, sizes),
        bytes: evaluateTerms(step.read, sizes) + evaluateTerms(step.written, sizes),
        us: timeOf(step, view, sizes),
        live: around,
        saved: held,
      });
      if (!step.depth) live -= evaluateTerms(step.frees, sizes);
    });
  }
  return costs;
}

/** Sums over all steps; of live memory the most. */
function totalsOf(costs) {
  const sum = (name) => costs.reduce((total, cost) => total + cost[name], 0);
  return {
    flops: sum("flops"), elements: sum("elements"), bytes: sum("bytes"), us: sum("us"),
    live: costs.reduce((most, cost) => Math.max(most, cost.live), 0),
  };
}
