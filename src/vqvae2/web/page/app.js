"use strict";

const $ = (id) => document.getElementById(id);
const NAMES = { temperature: "Temperature", top_k: "Top-k", top_p: "Top-p", guidance: "Guidance" };
const RANGES = { temperature: { min: 0, step: 0.05 }, top_k: { min: 0, step: 1 }, top_p: { min: 0.01, max: 1, step: 0.01 }, guidance: { min: 0, step: 0.25 } };
let run = null; // what GET /api/run says
let current = null; // the image that was uploaded last

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is vqvae2 serve still running?");
  }
  const value = (response.headers.get("content-type") || "").includes("json") ? await response.json() : await response.blob();
  if (!response.ok) throw new Error(value.error || response.statusText);
  return value;
}

const post = (path, value) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });

function figure(url, caption) {
  const button = element("button", { type: "button", title: "larger" }, element("img", { src: url, alt: caption }));
  button.addEventListener("click", () => {
    $("large").querySelector("img").src = $("save").href = url;
    $("large").showModal();
  });
  return element("figure", {}, button, element("figcaption", { textContent: caption }));
}

// --- settings of drawing ---

function makeSettings() {
  run.grids.forEach(([height, width], level) => {
    const group = element("fieldset", {}, element("legend", { textContent: levelName(level) }));
    for (const name of Object.keys(NAMES)) {
      if (name === "guidance" && !run.classes.length) continue;
      const input = element("input", { type: "number", id: `${name}-${level}`, ...RANGES[name] });
      group.append(element("label", { textContent: NAMES[name] }, input));
    }
    $("levels").append(group);
  });
  for (const [value, text] of [["", ""], ...run.classes.map((name) => [name, name])])
    $("label").append(element("option", { value, textContent: text }));
  for (const name of [...run.decoders].reverse()) $("decoder").append(element("option", { value: name, textContent: name }));
  resetSettings();
  $("settings").addEventListener("input", showSettings);
}

function resetSettings() {
  for (const name of Object.keys(NAMES)) {
    const own = run.sampling[name];
    run.grids.forEach((_, level) => {
      const input = $(`${name}-${level}`);
      if (input) input.value = Array.isArray(own) ? own[level] : own;
    });
  }
  $("label").value = "";
  $("decoder").value = run.decoders.at(-1);
  showSettings();
}

function showSettings() {
  const parts = [`class ${$("label").selectedOptions[0].textContent}`, `seed ${$("seed").value}`];
  for (const name of Object.keys(NAMES)) {
    const values = run.grids.map((_, level) => $(`${name}-${level}`)?.value).filter((value) => value !== undefined)
      .map((value) => (name === "top_k" && Number(value) === 0 ? "off" : value));
    if (values.length) parts.push(`${NAMES[name].toLowerCase()} ${[...new Set(values)].length === 1 ? values[0] : values.join(" / ")}`);
  }
  $("settings-now").textContent = parts.join(", ");
}

function settings(n) {
  const value = { n: Number(n), seed: Number($("seed").value), label: $("label").value || null, decoder: $("decoder").value };
  for (const name of Object.keys(NAMES))
    if ($(`${name}-0`)) value[name] = run.grids.map((_, level) => Number($(`${name}-${level}`).value));
  return value;
}

const levelName = (level) => `Level ${level} (${run.grids[level].join("×")})`;

// --- jobs ---

async function job(place, button, begin, caption) {
  const bar = element("progress", { max: 1, value: 0 });
  const text = element("span", { textContent: "waiting" });
  const stop = element("button", { type: "button", textContent: "Stop", className: "stop" });
  const results = element("div", { className: "results" });
  const error = element("p", { className: "error", role: "alert", hidden: true });
  const progress = element("div", { className: "progress" }, bar, text, stop);
  $(place).replaceChildren(progress, error, results);
  button.disabled = true;
  try {
    const name = await begin();
    stop.addEventListener("click", () => post(`/api/jobs/${name}/stop`, {}));
    let found;
    for (let shown = 0; !["done", "stopped"].includes(found?.state); ) {
      found = await ask(`/api/jobs/${name}?from=${shown}`);
      bar.value = found.done / found.total;
      text.textContent = `${found.done} of ${found.total}`;
      found.results.forEach((result, index) => results.append(figure(result.image, caption(result, shown + index))));
      shown += found.results.length;
      if (found.state === "failed") throw new Error(found.error);
      if (found.state !== "done") await new Promise((resolve) => setTimeout(resolve, 300));
    }
    progress.replaceChildren(text);
    text.textContent += `, ${found.state}`;
  } catch (problem) {
    progress.remove();
    error.textContent = problem.message;
    error.hidden = false;
  } finally {
    button.disabled = false;
  }
}

const bits = (result, index) => `${index}: ${result.bits.toFixed(0)} bits`;

// --- the image ---

async function upload(file) {
  $("file-error").hidden = true;
  try {
    const found = await ask("/api/images", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    current = found.id;
    showImage(found);
  } catch (problem) {
    $("file-error").textContent = `${file.name}: ${problem.message}`;
    $("file-error").hidden = false;
    $("taken-apart").hidden = true;
  }
}

function showImage(found) {
  const views = [figure(found.image, "As the model sees it")];
  found.levels.forEach((level, index) => {
    const which = found.levels.length === 1 ? "the codes" : index ? `levels 0 to ${index}` : "level 0 alone";
    views.push(figure(level.image, `Decoded from ${which}: ${level.psnr.toFixed(1)} dB`));
  });
  found.levels.forEach((level, index) => {
    views.push(figure(level.codes, `${levelName(index)}: codes, ${level.different} different`));
    if (level.bits) views.push(figure(level.bits, `${levelName(index)}: ${level.sum.toFixed(0)} bits`));
  });
  $("views").replaceChildren(...views);
  const sum = found.levels.reduce((total, level) => total + (level.sum || 0), 0);
  $("image-figures").textContent = sum
    ? `The codes of this image take ${(sum / 8).toFixed(0)} bytes with the priors, ${run.bytes.toFixed(0)} without. Lighter cells took more bits: they surprised the prior.`
    : `The codes of this image take ${run.bytes.toFixed(0)} bytes. ${found.note}`;
  $("scale").hidden = !sum;
  $("most").textContent = found.most.toFixed(1);
  for (const place of ["fill-job", "vary-job", "decompressed"]) $(place).replaceChildren();
  $("taken-apart").hidden = false;
  paintOver(found.image);
}

// --- painting a mask ---

let strokes = []; // of circles [x, y, radius] in pixels of the image
let picture = new Image();

function paintOver(url) {
  strokes = [];
  picture = new Image();
  picture.onload = () => {
    $("canvas").width = picture.width;
    $("canvas").height = picture.height;
    redraw();
  };
  picture.src = url;
}

function mask(colour) {
  const sheet = element("canvas", { width: picture.width, height: picture.height });
  const pen = sheet.getContext("2d");
  if (colour === "white") {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, sheet.width, sheet.height);
  }
  pen.fillStyle = colour;
  for (const stroke of strokes) for (const [x, y, radius] of stroke) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }
  return sheet;
}

function redraw() {
  const pen = $("canvas").getContext("2d");
  pen.clearRect(0, 0, picture.width, picture.height);
  pen.drawImage(picture, 0, 0);
  pen.globalAlpha = 0.6;
  pen.drawImage(mask("#e0218a"), 0, 0);
  pen.globalAlpha = 1;
}

function dab(event) {
  const box = $("canvas").getBoundingClientRect();
  const scale = picture.width / box.width;
  strokes.at(-1).push([(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, Math.max(0.5, ($("brush").value / 200) * picture.width)]);
  redraw();
}

// --- what the controls do ---

function choose(name) {
  for (const other of ["sample", "image"]) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).setAttribute("aria-selected", other === name);
  }
  $("label").options[0].textContent = run.classes.length && name === "sample" ? "all in turn" : "none";
  showSettings();
}

function listen() {
  for (const name of ["sample", "image"]) $(`tab-${name}`).addEventListener("click", () => choose(name));
  $("reset").addEventListener("click", resetSettings);
  $("new-seed").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e9);
    showSettings();
  });
  $("sample-go").addEventListener("click", () =>
    job("sample-job", $("sample-go"), () => post("/api/sample", settings($("sample-n").value)), (result, index) => `${index}${result.label ? `: ${result.label}` : ""}`));
  $("file").addEventListener("change", () => $("file").files[0] && upload($("file").files[0]));
  $("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  $("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
  $("drop").addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  });
  $("canvas").addEventListener("pointerdown", (event) => {
    $("canvas").setPointerCapture(event.pointerId);
    strokes.push([]);
    dab(event);
  });
  $("canvas").addEventListener("pointermove", (event) => event.buttons && strokes.length && dab(event));
  $("undo").addEventListener("click", () => { strokes.pop(); redraw(); });
  $("clear").addEventListener("click", () => { strokes = []; redraw(); });
  $("fill-go").addEventListener("click", () =>
    job("fill-job", $("fill-go"), () => post("/api/fill", { ...settings($("fill-n").value), image: current, passes: Number($("passes").value), mask: mask("white").toDataURL() }), bits));
  $("vary-go").addEventListener("click", () =>
    job("vary-job", $("vary-go"), () => post("/api/vary", { ...settings($("vary-n").value), image: current, level: Number($("vary-level").value) }), bits));
  $("compress").addEventListener("click", async () => {
    try {
      const blob = await ask(`/api/images/${current}/compressed`);
      const link = element("a", { href: URL.createObjectURL(blob), download: "image.vq" });
      link.click();
      $("decompressed").replaceChildren(element("p", { textContent: `${blob.size} bytes` }));
    } catch (problem) {
      $("decompressed").replaceChildren(element("p", { className: "error", textContent: problem.message }));
    }
  });
  $("decompress").addEventListener("change", async () => {
    try {
      const found = await ask("/api/decompress", { method: "POST", body: $("decompress").files[0] });
      $("decompressed").replaceChildren(element("div", { className: "results" }, figure(found.image, `from ${found.bytes} bytes`)));
    } catch (problem) {
      $("decompressed").replaceChildren(element("p", { className: "error", textContent: problem.message }));
    }
  });
}

async function start() {
  try {
    run = await ask("/api/run");
  } catch (problem) {
    $("about").textContent = problem.message;
    return;
  }
  document.title = `${run.name} – vqvae2`;
  $("name").textContent = run.name;
  const psnr = run.figures.heldout_psnr ? `, held-out PSNR ${run.figures.heldout_psnr.toFixed(2)} dB` : "";
  $("about").textContent = `${run.size.join("×")} px, levels ${run.grids.map((grid) => grid.join("×")).join(" + ")} of ${[...new Set(run.vocabulary)].join(", ")} codes${psnr}`;
  for (const [name, file] of Object.entries(run.reports))
    $("reports").append(element("a", { href: `/report/${file}`, target: "_blank", rel: "noopener", textContent: name }));
  run.grids.forEach((_, level) => $("vary-level").append(element("option", { value: level, textContent: levelName(level) })));
  $("vary-level").value = run.grids.length - 1;
  $("compress-row").hidden = !run.draws;
  makeSettings();
  listen();
  choose("sample");
  if (!run.draws) {
    for (const id of ["sample-go", "fill-go", "vary-go"]) $(id).disabled = true;
    $("sample-job").replaceChildren(element("p", { textContent: "The priors of this run are not trained yet, so nothing can be drawn." }));
  }
  document.body.dataset.ready = "yes";
}

start();
