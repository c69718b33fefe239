"use strict";
// Draws one look. All data stands in the script element "data"; text goes to the page as text only, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { token: -1, map: "average", layer: "mean", head: "mean", place: null };
const byId = id => document.getElementById(id);

// ---- small helpers

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in node ? (node[name] = value) : node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function table(head, rows, numeric = []) {
  const cell = (tag, x, i) => make(tag, { className: numeric.includes(i) ? "n" : "" }, x instanceof Node ? x : String(x));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head.map((x, i) => cell("th", x, i)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map((x, i) => cell("td", x, i))))));
}
const options = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, textContent: text })));
const percent = p => (100 * p).toFixed(p > 0.9995 || p < 0.001 ? 3 : 1) + " %";
const short = x => x === null || Number.isNaN(x) ? "not covered" : Math.abs(x) >= 1e-3 || x === 0 ? Number(x.toPrecision(3)).toString() : x.toExponential(1);
function unit(x, name) {
  if (x === null) return "";
  const prefixes = ["", "k", "M", "G", "T", "P"];
  let i = 0;
  while (x >= 1000 && i < 5) { x /= 1000; i++; }
  return `${Number(x.toPrecision(4))} ${prefixes[i]}${name}`;
}
const visible = text => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");

// ---- arrays: { shape, type, base64 } with float32 or float16 numbers

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
function numbers(array) {
  if (!array.values) {
    const bytes = Uint8Array.from(atob(array.base64), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
    array.values = array.type === "f4" ? Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true))
      : Array.from({ length: bytes.length / 2 }, (_, i) => half(view.getUint16(2 * i, true)));
  }
  return array.values;
}
function row(array, ...index) { // the last axis at these places of the axes before it
  const size = array.shape[array.shape.length - 1];
  const start = index.reduce((total, i, axis) => total * array.shape[axis] + i, 0) * size;
  return numbers(array).slice(start, start + size);
}
function nested(value) { // the data with arrays as lists of lists, for the JSON file
  if (Array.isArray(value)) return value.map(nested);
  if (value === null || typeof value !== "object") return value;
  if ("base64" in value) {
    const digits = value.type === "f4" ? 9 : 5;
    const fold = (list, shape) => shape.length < 2 ? list.map(x => Number.isNaN(x) ? null : Number(x.toPrecision(digits)))
      : Array.from({ length: shape[0] }, (_, i) => fold(list.slice(i * list.length / shape[0], (i + 1) * list.length / shape[0]), shape.slice(1)));
    return fold(numbers(value), value.shape);
  }
  return Object.fromEntries(Object.entries(value).filter(([name]) => name !== "image").map(([name, x]) => [name, nested(x)]));
}

// ---- the chosen map; token -1 is the whole answer, the mean over its tokens

const all = data.tokens.map((_, i) => i), first = () => Math.max(0, state.token);
function overTokens(token, rowOf) {
  if (token >= 0) return rowOf(token);
  const rows = all.map(rowOf);
  return rows[0].map((_, i) => rows.reduce((total, values) => total + values[i], 0) / rows.length);
}
function attentionRow(token, layer, head) {
  if (layer === "mean") return row(data.maps.average.values, token);
  if (head === "mean") return row(data.layer_attention, Number(layer), token);
  return row(data.attention[data.attention_layers.indexOf(Number(layer))], token, Number(head));
}
function mapRow(name, token = state.token) {
  return overTokens(token, t => name === "average" ? attentionRow(t, state.layer, state.head) : row(data.maps[name].values, t));
}
const wholeRow = name => overTokens(state.token, t => row(data.maps[name].values, t));
function strength(values, indices) { // the largest size of a value, so that the strongest place has full colour
  return Math.max(1e-30, ...indices.map(i => Math.abs(values[i]) || 0));
}
function colour(value, most) {
  const share = Number.isNaN(value) || value === undefined ? 0 : Math.min(1, Math.abs(value) / most);
  return { fill: value < 0 ? "rgb(30,100,220)" : "rgb(232,93,4)", opacity: (0.85 * share).toFixed(3) };
}
const shade = (value, most) => { const c = colour(value, most); return c.fill.replace("rgb", "rgba").replace(")", `,${c.opacity})`); };
const ofMedium = (kind, medium) => data.positions.filter(p => p.kind === kind && p.medium === medium);

// ---- figures of a picture, a sound and the text; values are those of one map

const heightOf = (about, width) => width * Math.min(4, Math.max(1 / 6, about.height / about.width)); // the ratio is limited: a picture may be one pixel wide
function picture(number, values, width, thumbnail = false) {
  const about = data.pictures[number], height = heightOf(about, width);
  const last = about.grid[0] * about.grid[1];
  const cells = ofMedium("image", number).filter(p => p.row !== undefined && (p.tile === last) === thumbnail);
  const most = strength(values, ofMedium("image", number).map(p => p.index));
  const best = cells.reduce((a, b) => (values[b.index] > values[a.index] ? b : a), cells[0]);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `${about.name}. Strongest: ${best ? best.text : "none"}` });
  svg.append(draw("image", { href: about.image, width, height, preserveAspectRatio: "none" }));
  for (const p of cells) {
    const [left, top, right, bottom] = p.box, c = colour(values[p.index], most);
    svg.append(draw("rect", { class: "cell", "data-index": p.index, x: left * width, y: top * height, width: (right - left) * width,
      height: (bottom - top) * height, fill: c.fill, "fill-opacity": c.opacity }));
  }
  return svg;
}
const melImages = new Map();
function melImage(number) { // the spectrogram as a data URL, drawn once
  if (!melImages.has(number)) {
    const mel = data.sounds[number].mel, [frames, bins] = mel.shape, values = numbers(mel);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const canvas = make("canvas", { width: frames, height: bins }), context = canvas.getContext("2d"), pixels = context.createImageData(frames, bins);
    values.forEach((value, i) => {
      const x = Math.floor(i / bins), y = bins - 1 - i % bins, level = 255 * (1 - (value - low) / (high - low || 1));
      pixels.data.set([level, level, level, 255], 4 * (y * frames + x));
    });
    context.putImageData(pixels, 0, 0);
    melImages.set(number, canvas.toDataURL());
  }
  return melImages.get(number);
}
function sound(number, values, width) {
  const about = data.sounds[number], cells = ofMedium("audio", number).filter(p => p.end !== undefined);
  const seconds = about.frames_seconds, most = strength(values, cells.map(p => p.index)), x = t => t / seconds * width;
  const best = cells.reduce((a, b) => (values[b.index] > values[a.index] ? b : a), cells[0]);
  const svg = draw("svg", { viewBox: `0 0 ${width} 160`, width, height: 160, role: "img",
    "aria-label": `${about.name}. Strongest: ${best ? best.text : "none"}` });
  if (about.mel) svg.append(draw("image", { href: melImage(number), y: 45, width, height: 80, preserveAspectRatio: "none" }));
  if (about.envelope) {
    const parts = about.envelope.shape[0], scale = strength(numbers(about.envelope), numbers(about.envelope).map((_, i) => i)), step = x(about.seconds) / parts;
    let path = "";
    for (let i = 0; i < parts; i++) {
      const [low, high] = row(about.envelope, i);
      path += `M${(i * step).toFixed(1)} ${(21 - 20 * high / scale).toFixed(1)}V${(21.5 - 20 * low / scale).toFixed(1)}`;
    }
    svg.append(draw("path", { class: "wave", d: path, stroke: "gray", fill: "none" }));
  }
  for (const p of cells) {
    const c = colour(values[p.index], most), start = p.start;
    svg.append(draw("rect", { class: "cell", "data-index": p.index, x: x(start), y: 0, width: Math.max(1, x(p.end) - x(start)), height: 125, fill: c.fill, "fill-opacity": c.opacity }));
  }
  for (let t = 0; t <= seconds; t += Math.max(0.5, Math.ceil(seconds / 10)))
    svg.append(draw("text", { x: x(t) + 1, y: 142, "font-size": 11 }, `${t} s`));
  return svg;
}
function words(values) {
  const own = data.positions.filter(p => p.kind === "text"), most = strength(values, own.map(p => p.index));
  return make("p", { className: "words" }, ...own.map(p => {
    const span = make("span", { textContent: visible(p.text) });
    span.dataset.index = p.index;
    span.style.backgroundColor = shade(values[p.index], most);
    return span;
  }));
}
function figures(values, size) { // every picture (and its thumbnail), sound and the text
  const list = data.pictures.flatMap((about, i) => [false, true].slice(0, about.thumbnail ? 2 : 1).map(thumbnail => {
    const time = about.seconds === undefined ? "" : ` at ${about.seconds.toFixed(2)} s`;
    return make("figure", {}, picture(i, values, data.pictures.length > 2 ? size / 2 : size, thumbnail),
      make("figcaption", { textContent: about.name + time + (thumbnail ? ", thumbnail" : "") }));
  }));
  data.sounds.forEach((about, i) => list.push(make("figure", {}, sound(i, values, 1.6 * size), make("figcaption", { textContent: about.name }))));
  return [...list, make("figure", {}, words(values))];
}

// ---- sections

function showTokens() {
  const choice = (i, text, note) => {
    const input = make("input", { type: "radio", name: "token", value: i, checked: i === state.token });
    input.addEventListener("change", () => { state.token = i; update(); });
    return make("label", {}, input, " ", text, " ", make("small", { textContent: note }));
  };
  byId("tokens").replaceChildren(choice(-1, "whole answer", "mean"), ...data.tokens.map((token, i) => choice(i, visible(token.text), percent(token.probability))));
}
function showAlternatives() {
  const rows = data.tokens[first()].top.map(([id, text, p]) => {
    const bar = draw("svg", { width: 160, height: 12, "aria-hidden": "true" }, draw("rect", { class: "bar", width: Math.max(1, 160 * p), height: 12 }));
    return [visible(text), id, bar, percent(p)];
  });
  byId("alternatives").replaceChildren(make("p", { className: "note", textContent: `The likeliest tokens in the place of “${visible(data.tokens[first()].text)}” (observed):` }), table(["token", "id", "", "probability"], rows, [1, 3]));
}
function showMaps() {
  const values = mapRow(state.map), entry = data.maps[state.map];
  byId("layer").disabled = state.map !== "average";
  byId("head").disabled = state.map !== "average" || !data.attention_layers.includes(Number(state.layer)) || state.layer === "mean";
  if (byId("head").disabled) byId("head").value = state.head = "mean";
  const observed = state.map === "average" && state.layer !== "mean" && state.head !== "mean";
  byId("about").textContent = `${observed ? "Observed: the weights that multiplied v in this head" : "Derived: " + entry.about}.`;
  byId("view").replaceChildren(...figures(values, 320));
  byId("maps").replaceChildren(...Object.entries(data.maps).map(([name, each]) => {
    const own = wholeRow(name), share = data.measured ? data.measured.pictures.shares[name] : null;
    const media = data.pictures.length ? [picture(0, own, 176)] : data.sounds.length ? [sound(0, own, 176)] : [words(own)];
    const choose = make("button", { type: "button", textContent: each.label });
    choose.addEventListener("click", () => { state.map = byId("map").value = name; state.layer = byId("layer").value = "mean"; update(); });
    return make("figure", {}, ...media, choose, make("figcaption", { textContent: share === null ? "" : `on the demo: ${(100 * share).toFixed(0)} % of peaks inside the object` }));
  }));
  const order = data.positions.map(p => p.index).filter(i => !Number.isNaN(values[i])).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 15);
  byId("strongest").replaceChildren(table(["position", "what", "value"], order.map(i => [i, visible(data.positions[i].text), short(values[i])]), [0, 2]));
}
function showStrip() {
  const values = mapRow(state.map), most = strength(values, data.positions.map(p => p.index));
  byId("strip").replaceChildren(...data.positions.map(p => {
    const label = p.kind === "text" || p.kind === "answer" ? visible(p.text) || "\u2205" : p.kind === "image" ? p.row === undefined ? "class" : `${p.row + 1},${p.column + 1}` : p.end === undefined ? String(p.index) : p.start.toFixed(1);
    const button = make("button", { type: "button", className: p.kind, textContent: label, tabIndex: p.index === (state.place ?? 0) ? 0 : -1 });
    button.setAttribute("aria-label", `position ${p.index}: ${visible(p.text)}`);
    button.dataset.index = p.index;
    button.style.backgroundColor = shade(values[p.index], most);
    return button;
  }));
}
function place(index) { // marks one position everywhere and describes it
  state.place = index;
  document.querySelectorAll(".on").forEach(node => node.classList.remove("on"));
  const p = data.positions[index];
  if (!p) return;
  document.querySelectorAll(`#view [data-index="${index}"], #maps [data-index="${index}"], #strip [data-index="${index}"]`).forEach(node => node.classList.add("on"));
  const facts = [`position ${index}`, visible(p.text), `position id ${p.position_id}` + (p.shared ? " (shared)" : "")];
  if (p.token_id !== undefined) facts.push(`token ${p.token_id}`);
  if (p.patches) facts.push(`patches ${p.patches.join(", ")}`);
  const values = Object.entries(data.maps).map(([name, each]) => `${name} ${short(name === state.map ? mapRow(name)[index] : wholeRow(name)[index])}`);
  byId("detail").textContent = `${facts.join(" · ")} — ${values.join(", ")}`;
}
function showLens() {
  const now = first(), chosen = row(data.lens, now);
  const rows = data.lens_top[now].map((top, layer) => [layer === 0 ? "embedding" : layer - 1, percent(chosen[layer]), ...top.map(([text, p]) => `${visible(text)} ${percent(p)}`)]);
  byId("lens").replaceChildren(table(["layer", `“${visible(data.tokens[now].text)}”`, ...data.lens_top[0][0].map((_, i) => `guess ${i + 1}`)], rows, [1]));
  const norms = row(data.norms, now), attention = row(data.attention_norms, now), mlp = row(data.mlp_norms, now), most = Math.max(...norms, ...attention, ...mlp);
  const bar = (value, kind) => draw("svg", { width: 140, height: 12, "aria-hidden": "true" }, draw("rect", { class: kind, width: Math.max(1, 140 * value / most), height: 12 }));
  byId("norms").replaceChildren(table(["layer", "attention adds", "", "MLP adds", "", "length after it"], attention.map((a, i) => [i, short(a), bar(a, "bar"), short(mlp[i]), bar(mlp[i], "bar2"), short(norms[i + 1])]), [1, 3, 5]));
  const [, layers, heads] = data.head_norms.shape, lines = Array.from({ length: layers }, (_, l) => row(data.head_norms, now, l)), largest = Math.max(...lines.flat());
  byId("heads").replaceChildren(table(["layer", ...Array.from({ length: heads }, (_, h) => `head ${h}`)], lines.map((line, l) => [l, ...line.map((value, h) => {
    const button = make("button", { type: "button", textContent: short(value) });
    button.setAttribute("aria-label", `layer ${l}, head ${h}: ${short(value)}`);
    button.style.backgroundColor = shade(value, largest);
    button.addEventListener("click", () => { Object.assign(state, { map: "average", layer: String(l), head: data.attention_layers.includes(l) ? String(h) : "mean" }); controls(); update(); byId("answer").scrollIntoView(); });
    return button;
  })])));
}
function showTower() {
  const parts = data.towers.filter(t => t.name === byId("tower").value), entry = parts.find(t => String(t.layer) === byId("tower-layer").value) ?? parts[0];
  if (!entry) { byId("tower-view").replaceChildren(); return; }
  const weights = row(entry.weights, Math.min(Number(byId("tower-row").value), entry.weights.shape[0] - 1)), most = Math.max(...weights), n = weights.length;
  if (entry.kind === "audio") {
    const svg = draw("svg", { viewBox: "0 0 560 120", width: 560, height: 120, role: "img", "aria-label": `attention of ${entry.name} over time` });
    weights.forEach((w, i) => svg.append(draw("rect", { class: "bar", x: i * 560 / n, y: 100 - 96 * w / most, width: 560 / n, height: 96 * w / most })));
    svg.append(draw("text", { x: 0, y: 116 }, "0 s"), draw("text", { x: 500, y: 116 }, `${entry.seconds.toFixed(2)} s`));
    byId("tower-view").replaceChildren(svg);
    return;
  }
  const about = data.pictures[entry.medium], side = Math.round(Math.sqrt(n - 1)), [left, top, right, bottom] = entry.box, width = 320, height = heightOf(about, width);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `attention of ${entry.name}` }, draw("image", { href: about.image, width, height, preserveAspectRatio: "none" }));
  for (let i = 1; i < n; i++) {
    const c = Math.floor((i - 1) % side), r = Math.floor((i - 1) / side), w = (right - left) / side * width, h = (bottom - top) / side * height;
    const cell = draw("rect", { class: "cell" + (i === Number(byId("tower-row").value) ? " on" : ""), x: left * width + c * w, y: top * height + r * h, width: w, height: h, fill: "rgb(232,93,4)", "fill-opacity": (0.85 * weights[i] / most).toFixed(3) });
    cell.addEventListener("click", () => { byId("tower-row").value = String(i); showTower(); });
    svg.append(cell);
  }
  byId("tower-view").replaceChildren(svg, make("p", { className: "note", textContent: `The class token gets ${percent(weights[0])}. Choose a patch in the picture to see where it looks.` }));
}
function towerRows() {
  const entry = data.towers.find(t => t.name === byId("tower").value);
  if (!entry) return;
  options(byId("tower-layer"), data.towers.filter(t => t.name === entry.name).map(t => [t.layer, t.layer]));
  options(byId("tower-row"), Array.from({ length: entry.weights.shape[0] }, (_, i) => [i, entry.kind === "image" ? (i ? `patch ${i}` : "class token") : `${(i * entry.seconds / entry.weights.shape[0]).toFixed(2)} s`]));
}

// ---- the figure of one token, and files

function tokenFigure() {
  const values = mapRow(state.map), token = data.tokens[state.token], parts = [], width = 640;
  let y = 64;
  const put = (svg, w, h) => { svg.setAttribute("x", 20); svg.setAttribute("y", y); svg.setAttribute("width", w); svg.setAttribute("height", h); parts.push(svg); y += h + 14; };
  data.pictures.slice(0, 4).forEach((about, i) => put(picture(i, values, 320), 320, heightOf(about, 320)));
  data.sounds.slice(0, 4).forEach((_, i) => put(sound(i, values, 600), 600, 160));
  const own = data.positions.filter(p => p.kind === "text").slice(0, 400), most = strength(values, own.map(p => p.index));
  let x = 20;
  for (const p of own) {
    const text = visible(p.text), w = 8.2 * text.length + 4;
    if (x + w > width - 20) { x = 20; y += 26; }
    const c = colour(values[p.index], most);
    parts.push(draw("rect", { x, y, width: w, height: 22, fill: c.fill, "fill-opacity": c.opacity }), draw("text", { x: x + 2, y: y + 16, "font-size": 13, "font-family": "monospace", "xml:space": "preserve" }, text));
    x += w;
  }
  const where = state.map === "average" && state.layer !== "mean" ? `, layer ${state.layer}` + (state.head === "mean" ? "" : `, head ${state.head}`) : "";
  const svg = draw("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${y + 40}`, width, height: y + 40 },
    draw("rect", { width: "100%", height: "100%", fill: "white" }),
    draw("text", { x: 20, y: 26, "font-size": 16, "font-family": "sans-serif" }, token ? `“${visible(token.text)}” ${percent(token.probability)}` : `“${visible(data.text.trim()).slice(0, 60)}”`),
    draw("text", { x: 20, y: 48, "font-size": 13, "font-family": "sans-serif" }, data.maps[state.map].label + where), ...parts);
  svg.querySelectorAll(".cell").forEach(cell => { cell.setAttribute("stroke", "gray"); cell.setAttribute("stroke-width", "0.5"); });
  return svg;
}
function save(name, type, content) {
  const link = make("a", { href: URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
function saveFigure(asPng) {
  const svg = tokenFigure(); // XML allows neither control characters nor unpaired surrogates
  const text = new XMLSerializer().serializeToString(svg).replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "\ufffd");
  if (!asPng) return save("token.svg", "image/svg+xml", text);
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: 2 * svg.getAttribute("width"), height: 2 * svg.getAttribute("height") });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(blob => save("token.png", "image/png", blob));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

// ---- start

function controls() {
  for (const name of ["map", "layer", "head"]) byId(name).value = state[name];
}
function update() {
  byId("tokens").querySelectorAll("input").forEach(input => { input.checked = Number(input.value) === state.token; });
  showAlternatives(); showMaps(); showStrip(); showLens();
  if (state.place !== null) place(state.place);
}
function start() {
  byId("question").textContent = data.question ? `Question: ${data.question}` : "No written question.";
  byId("said").textContent = data.text || "(no text)";
  byId("model").textContent = [data.model, data.forced ? "the answer was given to the model" : "", data.tokens.length < data.total_tokens ? `the first ${data.tokens.length} of ${data.total_tokens} tokens are explained` : "", data.cost, ...data.notes].filter(Boolean).join(" · ");
  byId("trust").textContent = data.trust;
  const count = kind => `${data.positions.filter(p => p.kind === kind).length} ${kind}`, shared = data.positions.filter(p => p.shared).length;
  byId("counts").textContent = `Positions: ${["text", "image", "audio", "answer"].map(count).join(", ")}. Position ids 0 to ${data.positions[data.positions.length - 1].position_id}, ` +
    `${shared ? `${shared} of them shared with the position before` : "none shared"}; a single request has no padding.`;
  options(byId("map"), Object.entries(data.maps).map(([name, each]) => [name, each.label]));
  options(byId("layer"), [["mean", "mean"], ...Array.from({ length: data.layer_attention.shape[0] }, (_, i) => [i, i])]);
  options(byId("head"), [["mean", "mean"], ...Array.from({ length: data.head_norms.shape[2] }, (_, i) => [i, i])]);
  if (data.maps.occlusion) state.map = "occlusion";
  controls();
  for (const name of ["map", "layer", "head"]) byId(name).addEventListener("change", () => { state[name] = byId(name).value; update(); });
  for (const area of [byId("view"), byId("maps"), byId("strip")])
    for (const event of ["pointerover", "click", "focusin"]) area.addEventListener(event, e => { const index = e.target.dataset && e.target.dataset.index; if (index !== undefined) place(Number(index)); });
  byId("strip").addEventListener("keydown", e => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(e.key in steps)) return;
    e.preventDefault();
    const next = Math.max(0, Math.min(data.positions.length - 1, (state.place ?? 0) + steps[e.key])), buttons = byId("strip").children;
    buttons[state.place ?? 0].tabIndex = -1;
    buttons[next].tabIndex = 0;
    buttons[next].focus();
  });
  byId("json").addEventListener("click", () => save("look.json", "application/json", JSON.stringify(nested(data))));
  byId("svg").addEventListener("click", () => saveFigure(false));
  byId("png").addEventListener("click", () => saveFigure(true));
  byId("stages").replaceChildren(table(["stage", "shape", "bytes", "operations", "ms"], data.road.map(s => [s.name, `[${s.shape.join(", ")}]`, unit(s.bytes, "B"), unit(s.operations, ""), s.ms === null ? "" : s.ms.toFixed(1)]), [2, 3, 4]));
  byId("tower-about").textContent = data.towers.length ? "The mean over the heads, as it multiplied v. " + data.tower_note : "None was recorded for this request.";
  options(byId("tower"), [...new Set(data.towers.map(t => t.name))].map(name => [name, name]));
  byId("tower").addEventListener("change", () => { towerRows(); showTower(); });
  for (const id of ["tower-layer", "tower-row"]) byId(id).addEventListener("change", showTower);
  towerRows(); showTower(); showTokens(); update();
}
start();
