// Draws a FeatureMap (board.py) as SVG: circles clean, crosses adversarial, a path. Colours of ink and paper come from style.css.
const MARGIN = 14, REACH = 16; // pixels: around all points, and how near a click must be

const make = (name, attributes = {}, parent = null) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
};

function render({ model, el }) {
  el.classList.add("rl-scatter");
  const svg = make("svg", { role: "img" }, el);
  const [circles, crosses, path, ends, names] = ["circles", "crosses", "path", "ends", "names"].map((kind) => make("g", { class: kind }, svg));
  const hint = document.createElement("div");
  hint.className = "rl-hint";
  el.append(hint);

  // Map coordinates to pixels: one scale for both axes, y upwards.
  const placing = () => {
    const [x0, y0, x1, y1] = model.get("still").frame, { width, height } = svg.getBoundingClientRect();
    const scale = Math.min((width - 2 * MARGIN) / (x1 - x0), (height - 2 * MARGIN) / (y1 - y0));
    return ([x, y]) => [width / 2 + (x - (x0 + x1) / 2) * scale, height / 2 - (y - (y0 + y1) / 2) * scale];
  };

  const draw = () => {
    const still = model.get("still"), moving = model.get("moving");
    if (!still.frame || !moving.crosses || !svg.getBoundingClientRect().width) return;
    const place = placing(), faint = new Set(still.faint);
    const put = (group, points, shape, colour) => {
      while (group.childElementCount < points.length) make("path", { d: shape }, group);
      while (group.childElementCount > points.length) group.lastChild.remove();
      points.forEach((point, k) => {
        const node = group.children[k], [x, y] = place(point);
        node.style.transform = `translate(${x}px, ${y}px)`; // moves smoothly, by a transition
        if (colour) node.style.setProperty("--colour", colour[k % colour.length]);
        node.classList.toggle("faint", faint.has(k) && group !== ends);
      });
    };
    const [light, dark] = still.colours;
    put(circles, still.clean, "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", light);
    put(crosses, moving.crosses, "M-3.6,-3.6L3.6,3.6M-3.6,3.6L3.6,-3.6", dark);
    put(ends, [moving.path[0], moving.path[moving.path.length - 1]], "M-8,0a8,8 0 1,0 16,0a8,8 0 1,0 -16,0");
    path.replaceChildren();
    const line = moving.path.map(place);
    make("polyline", { points: line.map((at) => at.join()).join(" ") }, path);
    for (const [x, y] of line) make("circle", { cx: x, cy: y, r: 2.2 }, path);
    names.replaceChildren();
    for (const [x, y, text] of still.names) {
      const [left, top] = place([x, y]);
      make("text", { x: left, y: top }, names).textContent = text;
    }
    svg.setAttribute("aria-label", moving.alt);
  };

  // The nearest point to the pointer: crosses first, since they lie above.
  const nearest = (event) => {
    const place = placing(), box = svg.getBoundingClientRect(), still = model.get("still"), moving = model.get("moving");
    let best = { away: REACH };
    for (const [points, said] of [[moving.crosses, moving.said], [still.clean, still.said]])
      points.forEach((point, k) => {
        const [x, y] = place(point), away = Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
        if (away < best.away) best = { away, k, x, y, said: said[k] };
      });
    return best;
  };

  svg.addEventListener("click", (event) => {
    const { k } = nearest(event);
    if (k === undefined) return;
    model.set("clicked", [k, model.get("clicked")[1] + 1]);
    model.save_changes();
  });
  svg.addEventListener("pointermove", (event) => {
    const { k, x, y, said } = nearest(event);
    hint.hidden = k === undefined;
    svg.style.cursor = hint.hidden ? "default" : "pointer";
    if (hint.hidden) return;
    hint.textContent = said;
    hint.style.left = `${Math.min(x, el.clientWidth - 180)}px`;
    hint.style.top = `${y + 14}px`;
  });
  svg.addEventListener("pointerleave", () => { hint.hidden = true; });
  hint.hidden = true;

  model.on("change:still", draw);
  model.on("change:moving", draw);
  const watch = new ResizeObserver(draw);
  watch.observe(el);
  return () => watch.disconnect();
}

export default { render };
