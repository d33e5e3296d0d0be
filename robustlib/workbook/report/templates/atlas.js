// Draws one run's map and the chosen example's images. Nothing is fetched: numbers and images stand in the page.
const data = JSON.parse(document.getElementById("data").textContent), sprite = document.getElementById("sprite");
const form = document.getElementById("choice"), slider = form.elements.example;
const map = document.querySelector("canvas.map"), pen = map.getContext("2d");
const [, height, width] = data.shape, rows = Math.ceil(data.labels.length / data.columns), MARGIN = 18, REACH = 16;
let run, flat, shown = [], at = 0; // the chosen run and map, the examples of the chosen class, and which of them is looked at

const option = (select, text, value) => select.add(new Option(text, value));
data.runs.forEach((one, place) => option(form.elements.run, one.name, place));
Object.keys(data.runs[0].maps).forEach((name) => option(form.elements.map, name, name));
data.classes.forEach((name, label) => data.labels.includes(label) && option(form.elements.class, name, label));

// ---- the map
const place = (example, side) => {
  const size = Math.min(map.clientWidth, map.clientHeight) - 2 * MARGIN;
  const [left, top] = [(map.clientWidth - size) / 2, (map.clientHeight - size) / 2];
  const [x, y] = flat.slice(4 * example + 2 * side, 4 * example + 2 * side + 2);
  return [left + size * x / data.scale, top + size * (1 - y / data.scale)];
};
const dot = (x, y, r) => { pen.beginPath(); pen.arc(x, y, r, 0, 7); pen.fill(); };
const cross = (x, y, r) => { pen.beginPath(); pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r); pen.moveTo(x - r, y + r); pen.lineTo(x + r, y - r); pen.stroke(); };
const draw = () => {
  const style = getComputedStyle(document.body), css = (name) => style.getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
  const seen = (colour) => dark ? `color-mix(in oklab, ${colour} 58%, white)` : colour; // the palette is made for white paper
  const colour = (label, side) => data.colours.length ? seen(data.colours[label]) : css(side ? "--red" : "--accent");
  const ratio = devicePixelRatio || 1, r = Math.max(2, Math.min(4.5, map.clientWidth / 140)), inside = new Set(shown);
  map.width = map.clientWidth * ratio; map.height = map.clientHeight * ratio;
  pen.scale(ratio, ratio);
  pen.lineWidth = 1.2;
  for (const side of [0, 1]) data.labels.forEach((label, example) => {
    const [x, y] = place(example, side), chosen = inside.has(example);
    pen.fillStyle = pen.strokeStyle = chosen ? colour(label, side) : css("--faint");
    pen.globalAlpha = chosen ? (side ? .85 : .5) : .12;
    side ? cross(x, y, .8 * r) : dot(x, y, r);
  });
  pen.globalAlpha = 1;
  captions(css);
  const [from, to] = [place(shown[at], 0), place(shown[at], 1)];
  for (const [ink, wide] of [[css("--card"), 6], [css("--ink"), 2]]) {
    pen.strokeStyle = ink; pen.lineWidth = wide;
    pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke();
    cross(...to, 1.6 * r);
  }
  pen.fillStyle = css("--ink"); dot(...from, 2 * r);
  pen.fillStyle = colour(data.labels[shown[at]], 0); dot(...from, 2 * r - 2);
};
const captions = (css) => { // the class's name at the clean point nearest to the median of all of them
  if (!data.colours.length) return;
  pen.font = `600 13px ${css("--sans")}`; pen.textAlign = "center"; pen.lineWidth = 4; pen.lineJoin = "round";
  data.classes.forEach((word, label) => {
    const points = shown.filter((example) => data.labels[example] === label).map((example) => place(example, 0));
    if (!points.length) return;
    const [mx, my] = [0, 1].map((axis) => points.map((point) => point[axis]).sort((a, b) => a - b)[points.length >> 1]);
    const off = ([x, y]) => Math.abs(x - mx) + Math.abs(y - my);
    const [x, y] = points.reduce((a, b) => off(a) <= off(b) ? a : b);
    pen.strokeStyle = css("--card"); pen.strokeText(word, x, y - 9);
    pen.fillStyle = css("--ink"); pen.fillText(word, x, y - 9);
  });
};

// ---- the example
const sheet = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const tile = (block, example) => sheet.getImageData(
  example % data.columns * width, (block * rows + Math.floor(example / data.columns)) * height, width, height);
const update = () => {
  const example = shown[at], clean = tile(0, example), added = tile(run + 1, example), label = data.labels[example];
  const [change, after] = [new ImageData(width, height), new ImageData(width, height)];
  let most = 1;
  for (let k = 0; k < clean.data.length; k++) {
    after.data[k] = k % 4 === 3 ? 255 : clean.data[k] + added.data[k] & 255; // the sprite holds differences modulo 256
    if (k % 4 < 3) most = Math.max(most, Math.abs(after.data[k] - clean.data[k]));
  }
  for (let k = 0; k < clean.data.length; k++) change.data[k] = k % 4 === 3 ? 255 : 128 + 127 / most * (after.data[k] - clean.data[k]);
  const truth = data.classes[label], said = data.runs[run].answers.map((side) => data.classes[side[example]] ?? "no answer");
  const answers = said.map((word) => `called ${word} ${word === truth ? "✓" : "✕"}`);
  const words = [answers[0], `× ${(127 / most).toPrecision(2)}`, answers[1]];
  document.querySelectorAll(".pair figure").forEach((figure, k) => {
    const canvas = figure.firstElementChild;
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData([clean, change, after][k], 0, 0);
    figure.querySelector("span").textContent = words[k];
    figure.className = k !== 1 && said[k / 2] !== truth ? "wrong" : "";
  });
  document.getElementById("example").textContent = `Example ${at + 1} of ${shown.length}, labelled ${truth}`;
  slider.value = at;
  slider.setAttribute("aria-valuetext", `${at + 1} of ${shown.length}, labelled ${truth}: clean ${answers[0]}, adversarial ${answers[1]}`);
  draw();
};

// ---- what is chosen
const choose = () => {
  const before = shown[at], label = form.elements.class.value;
  run = Number(form.elements.run.value);
  const { name, answers, maps, note } = data.runs[run];
  flat = maps[form.elements.map.value];
  shown = data.labels.map((_, example) => example).filter((example) => label === "" || data.labels[example] === Number(label));
  at = Math.max(0, shown.indexOf(before)); // the same image, if the class has it
  slider.max = shown.length - 1;
  const [clean, attacked] = answers.map((side) => shown.filter((example) => side[example] === data.labels[example]).length);
  const share = (count) => `${(100 * count / shown.length).toFixed(1)}\u00a0%`;
  document.getElementById("summary").textContent = `${name}: of ${shown.length} images, ${share(clean)} are right when clean and ${share(attacked)} after this attack.`;
  document.getElementById("note").textContent = note;
  update();
};
const point = (event) => {
  const box = map.getBoundingClientRect(), [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const away = shown.map((example) => Math.min(...[0, 1].map((side) => { const [a, b] = place(example, side); return Math.hypot(a - x, b - y); })));
  const nearest = away.indexOf(Math.min(...away));
  if (away[nearest] < REACH && nearest !== at) { at = nearest; update(); }
};
sprite.decode().then(() => {
  [sheet.canvas.width, sheet.canvas.height] = [sprite.naturalWidth, sprite.naturalHeight];
  sheet.drawImage(sprite, 0, 0);
  form.addEventListener("change", (event) => event.target !== slider && choose());
  slider.addEventListener("input", () => { at = Number(slider.value); update(); });
  for (const kind of ["pointermove", "pointerdown"]) map.addEventListener(kind, point);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  const [clean, attacked] = data.runs[0].answers; // begin with an image that the attack turned
  const turned = data.labels.findIndex((label, example) => clean[example] === label && attacked[example] !== label);
  shown = [Math.max(0, turned)];
  choose();
  new ResizeObserver(draw).observe(map);
});
