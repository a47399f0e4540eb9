// Sizes and costs as Python writes them, evaluated for sizes of the reader's choice.

/** The number of a size: a number, ["size", which symbol], or [operator, ...parts]. */
function evaluateSize(formula, sizes) {
  if (typeof formula === "number") return formula;
  const [operator, ...parts] = formula;
  if (operator === "size") return sizes[parts[0]];
  const values = parts.map((part) => evaluateSize(part, sizes));
  switch (operator) {
    case "+": return values.reduce((a, b) => a + b, 0);
    case "*": return values.reduce((a, b) => a * b, 1);
    case "//": return Math.floor(values[0] / values[1]);
    case "**": return values[0] ** values[1];
    case "min": return Math.min(...values);
    default: throw new Error(`unknown operator ${operator}`);
  }
}

/** The number of a cost: a list of [coefficient, ...factors]. */
function evaluateTerms(terms, sizes) {
  let total = 0;
  for (const [coefficient, ...factors] of terms) {
    total += factors.reduce((product, factor) => product * evaluateSize(factor, sizes), coefficient);
  }
  return total;
}

const PREFIXES = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];

/** A number in engineering units: quantity(3211264, "FLOP") is "3.21 MFLOP". */
function quantity(number, unit = "") {
  let power = 0;
  let scaled = number;
  while (Math.abs(scaled) >= 999.5 && power < PREFIXES.length - 1) { scaled /= 1000; power += 1; }
  if (Math.abs(scaled) >= 999.5) return `${number.toExponential(2)} ${unit}`.trimEnd();
  const text = power || !Number.isInteger(scaled) ? String(Number(scaled.toPrecision(3))) : String(scaled);
  return `${text} ${PREFIXES[power]}${unit}`.trimEnd();
}

/** Microseconds for people. */
function duration(us) {
  if (!Number.isFinite(us)) return "beyond measure";
  if (us < 1000) return `${Number(us.toPrecision(3))} µs`;
  return us < 1e6 ? `${Number((us / 1e3).toPrecision(3))} ms` : quantity(us / 1e6, "s");
}

/** The value at a size between measured ones: a power of the size, as plans count it. */
function between(sizes, values, size) {
  let above = sizes.findIndex((known) => known >= size);
  if (above < 0) above = sizes.length - 1;
  if (sizes[above] === size || above === 0) return values[above];
  const [a, b] = [Math.max(sizes[above - 1], 1), sizes[above]];
  const share = Math.log(size / a) / Math.log(b / a);
  return values[above - 1] ** (1 - share) * values[above] ** share;
}
