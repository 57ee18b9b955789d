// The things to touch: each is a function from what the inputs say to what is seen.
// Buttons and dragging only write into the inputs, so the keyboard reaches everything.
// A classic script without modules: it works from a folder.
"use strict";
(() => {
  const { hypot, abs, atan2, cos, sin, min, max, sqrt, PI } = Math;
  const fixed = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "none");
  const line = (x1, y1, x2, y2) => ({ d: `M${x1} ${y1}L${x2} ${y2}` });
  const disk = (r) => ([x, y]) => `M${x} ${y}m${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  const dots = (points, r) => ({ d: points.map(disk(r)).join("") });
  const place = (x, y) => ({ cx: x, cy: y });
  const beside = (x, y) => ({ x: x + 0.2, y: -y - 0.2 });

  // Singular values, the directions of u₁ and v₁, and the largest |λ|, each in closed form.
  function singular({ a, b, c, d }) {
    const [plus, minus] = [hypot((a + d) / 2, (c - b) / 2), hypot((a - d) / 2, (c + b) / 2)];
    const [sum, difference] = [atan2(c - b, a + d), atan2(c + b, a - d)];
    return { s1: plus + minus, s2: abs(plus - minus), u: (sum + difference) / 2, v: (difference - sum) / 2 };
  }
  function largestEigenvalue({ a, b, c, d }) {
    const square = ((a - d) / 2) ** 2 + b * c;
    return square < 0 ? sqrt(a * d - b * c) : abs(a + d) / 2 + sqrt(square);
  }
  const image = ({ a, b, c, d }) => ({ transform: `matrix(${a} ${c} ${b} ${d} 0 0)` });

  function ellipse(W) {
    const { s1, s2, u } = singular(W);
    const eigenvalue = largestEigenvalue(W);
    const [x, y] = [cos(u), sin(u)];
    const found = eigenvalue < 0.99 * s1;
    let says = "W stretches nothing: all four numbers are 0.";
    if (found) {
      says =
        `You found one: some direction becomes ${fixed(s1)} times as long, and the largest |λ| is ${fixed(eigenvalue)}. ` +
        "For this W claim PI2, which takes |λ| for the norm, fails.";
    } else if (s1 > 0) {
      const why = W.b === W.c ? "W is symmetric" : eigenvalue > (1 - 1e-9) * s1 ? "W is normal" : "W is nearly normal";
      const close = eigenvalue > (1 - 1e-9) * s1 ? "" : " to within a percent";
      says = `The largest |λ| is ${fixed(eigenvalue)} and so is σ₁${close}: ${why}. Can you make them differ?`;
    }
    return {
      found,
      says,
      numbers: { sigma1: s1, sigma2: s2, frobenius: hypot(W.a, W.b, W.c, W.d), eigenvalue },
      shapes: {
        ellipse: image(W),
        first: line(-s1 * x, -s1 * y, s1 * x, s1 * y),
        second: line(s2 * y, -s2 * x, -s2 * y, s2 * x),
        p: place(W.a, W.c),
        q: place(W.b, W.d),
        "p-name": beside(W.a, W.c),
        "q-name": beside(W.b, W.d),
      },
    };
  }

  function iteration(values) {
    const { a, b, c, d, angle, steps } = values;
    const { s1, s2, v } = singular(values);
    const times = ([x, y]) => [a * x + b * y, c * x + d * y];
    const next = (u) => {
      const [x, y] = times(u);
      const [p, q] = [a * x + c * y, b * x + d * y];
      const length = hypot(p, q) || 1; // what is lost stays 0
      return [p / length, q / length];
    };
    const start = [cos((angle * PI) / 180), sin((angle * PI) / 180)];
    const iterates = [start];
    while (iterates.length <= steps) iterates.push(next(iterates.at(-1)));
    const lengths = iterates.map((u) => hypot(...times(u)));
    const [last, estimate] = [iterates.at(-1), lengths.at(-1)];
    const share = abs(start[0] * cos(v) + start[1] * sin(v));
    const high = (length) => 290 - 230 * (s1 ? length / s1 : 0);
    const trapped = share < 1e-9 && s2 < (1 - 1e-9) * s1;
    let says = `After ${steps} of 12 iterations the estimate is ${fixed(estimate, 4)}, ${fixed((100 * estimate) / s1, 2)} % of σ₁. `;
    if (trapped) {
      says +=
        "A trap: the start is orthogonal to v₁, so it never turns there, and the estimate looks as if it had converged. " +
        (abs(angle) === 45 || abs(angle) === 135 ? "Move it by one degree." : "Move it a little.");
    } else if (s1 > 0) {
      says += `An iteration multiplies the error by (σ₂/σ₁)⁴ = ${fixed((s2 / s1) ** 4)} in the long run.`;
    } else says = "W is zero: there is nothing to find.";
    return {
      found: trapped,
      says,
      numbers: { estimate, sigma1: s1, sigma2: s2 },
      shapes: {
        ellipse: image(values),
        target: line(-1.6 * cos(v), -1.6 * sin(v), 1.6 * cos(v), 1.6 * sin(v)),
        trail: dots(iterates, 0.07),
        now: { style: `transform: rotate(${(atan2(last[1], last[0]) * 180) / PI}deg) scale(${hypot(...last) && 1})` },
        start: place(...start),
        "start-name": beside(...start),
        history: dots(lengths.map((length, k) => [30 + 22 * k, high(length)]), 5),
        floor: { d: `M20 ${high(s2)}H306` },
        "floor-name": { y: high(s2) - 8 },
      },
    };
  }

  function twoPoints({ distance, strength, start }) {
    const excess = distance / (2 * strength);
    const slope = 1 + excess;
    const wrong = excess < 1 ? excess - 1 : NaN;
    const end = start < 0 && excess < 1 ? wrong : slope;
    const loss = (s, over = abs(s) - 1) => -s * distance + strength * over ** 2;
    const oneSided = (s) => loss(s, max(abs(s) - 1, 0));
    const [left, right] = [-2.5, max(2.5, slope + 1)];
    const [low, high] = [loss(slope), max(loss(-2.5), loss(0))];
    const point = (s, height = loss(s)) => [
      10 + (300 * (s - left)) / (right - left),
      285 - (245 * (height - low)) / (high - low),
    ];
    const along = Array.from({ length: 121 }, (_, k) => left + ((right - left) * k) / 120);
    const curve = (of) => ({ d: "M" + along.map((s) => point(s, of(s)).join(" ")).join("L") });
    const lost = end < 0;
    const says =
      `The two-sided loss is lowest at slope ${fixed(slope)}, not at 1. ` +
      (excess >= 1
        ? "W is at least 2λ: the second minimum is gone, and every start ends there."
        : lost
          ? `From ${fixed(start, 1)} your critic ends in the other minimum, at ${fixed(end)}: it scores the fakes above the real ones. With the one-sided penalty (dashed) it would go on to ${fixed(slope)}.`
          : `There is a second minimum at ${fixed(wrong)}; a start below 0 ends in it.`);
    return {
      found: lost,
      says,
      numbers: { slope, wrong, end, estimate: end * distance },
      shapes: {
        critic: line(-distance, -end * distance, 2 * distance, 2 * end * distance),
        real: place(distance, 0),
        "real-name": { x: distance },
        "one-sided": curve(oneSided),
        "two-sided": curve((s) => loss(s)),
        minima: dots([slope, wrong].filter(Number.isFinite).map((s) => point(s)), 5),
        ball: dots([point(end)], 7),
        zero: { d: `M${point(0)[0]} 20V290M10 290H310` },
      },
    };
  }

  const THINGS = { ellipse, iteration, "two-points": twoPoints };
  // What a handle that was dragged to a point of its picture writes into the inputs.
  const DRAGS = {
    p: (x, y) => ({ a: x, c: y }),
    q: (x, y) => ({ b: x, d: y }),
    start: (x, y) => ({ angle: (atan2(y, x) * 180) / PI }),
    real: (x) => ({ distance: x }),
  };

  function wake(figure) {
    const form = figure.querySelector("form");
    const status = figure.querySelector(".touch-says");
    const fields = [...form.querySelectorAll("input")];
    const all = (name, key) => figure.querySelectorAll(`[data-${name}="${key}"]`);
    let timer;

    function show() {
      const bad = fields.find((field) => !Number.isFinite(field.valueAsNumber) || field.validity.rangeOverflow || field.validity.rangeUnderflow);
      clearTimeout(timer);
      if (bad) {
        status.textContent = `Every entry has to be a number from ${bad.min} to ${bad.max}.`;
        return;
      }
      const values = Object.fromEntries(fields.map((field) => [field.name, field.valueAsNumber]));
      const seen = THINGS[figure.dataset.touch](values);
      for (const [key, attributes] of Object.entries(seen.shapes))
        for (const node of all("shape", key))
          for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      for (const [key, value] of Object.entries(seen.numbers))
        for (const node of all("number", key)) {
          node.value = Number.isFinite(value) ? value : "";
          node.textContent = fixed(value);
        }
      for (const field of fields) for (const node of all("shown", field.name)) node.textContent = field.value;
      figure.classList.toggle("found", seen.found);
      timer = setTimeout(() => (status.textContent = seen.says), 250); // said once, when it rests
    }

    function write(values) {
      for (const [name, value] of Object.entries(values)) {
        const { min: low, max: high, step } = form.elements[name];
        form.elements[name].value = +(Math.round(min(max(value, low), high) / step) * step).toFixed(6);
      }
      show();
    }

    function drag(event) {
      const svg = event.target.ownerSVGElement;
      const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      write(DRAGS[event.target.dataset.drag](x, -y));
    }

    for (const handle of figure.querySelectorAll("[data-drag]")) {
      // Chromium heeds no touch-action within a picture, and would scroll the page instead.
      handle.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
      handle.addEventListener("pointerdown", (event) => {
        handle.setPointerCapture(event.pointerId);
        figure.classList.add("dragged");
      });
      handle.addEventListener("pointermove", (event) => handle.hasPointerCapture(event.pointerId) && drag(event));
      handle.addEventListener("lostpointercapture", () => figure.classList.remove("dragged"));
    }
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("click", ({ target: { dataset } }) => {
      if (dataset.set) write(JSON.parse(dataset.set));
      if (dataset.add) write({ [dataset.add]: form.elements[dataset.add].valueAsNumber + 1 });
    });
    form.hidden = false;
    show();
  }

  document.querySelectorAll("figure.touch").forEach(wake);
})();
