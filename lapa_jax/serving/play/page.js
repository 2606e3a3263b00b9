"use strict";
// The page of `lapa play`: z since the first frame is all that a game is. It is sent whole each time,
// and kept in the tab with its other branches, so that the page can be loaded again.

const $ = (id) => document.getElementById(id);
const SHOWN = 48; // frames of the strip
const BRANCHES = 12; // that are kept
let metadata = null, z = [], frames = new Map(), typed = [], queue = Promise.resolve();
let said = new Map(); // what the policy says at each frame
let kept = []; // z of branches that the game left

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

const make = (name, className, text) => {
  const found = document.createElement(name);
  if (className) found.className = className;
  if (text !== undefined) found.textContent = text;
  return found;
};

function say(text, error) {
  $("status").textContent = text;
  $("status").classList.toggle("error", !!error);
}

async function ask(path, message) {
  const headers = $("token").value ? { Authorization: "Bearer " + $("token").value } : {};
  const found = await fetch(path, message === undefined ? { headers } : {
    method: "POST",
    headers: { ...headers, "Content-Type": "application/json" },
    body: JSON.stringify(message),
  });
  if (found.status === 401) {
    $("token_label").hidden = false;
    throw new Error("this server asks for a token");
  }
  if (!found.ok) throw new Error((await found.json()).error);
  return found;
}

// --- What is kept in the tab ---

const place = () => "lapa play game " + metadata.checkpoint.params_hash + " " + metadata.start.hash;

function remembered() {
  try {
    return { z: [], kept: [], ...JSON.parse(sessionStorage.getItem(place())) };
  } catch {
    return { z: [], kept: [] };
  }
}

// --- The game ---

// Goes to these z; only frames that are not here yet are asked for.
async function goTo(wanted) {
  const oldest = Math.max(0, wanted.length - SHOWN + 1);
  const since = common(z, wanted);
  for (const k of [...frames.keys()]) if (k > since) [frames, said].forEach((one) => one.delete(k));
  let first = oldest;
  while (first <= wanted.length && frames.has(first)) first += 1;
  if (first <= wanted.length) {
    const start = performance.now();
    const answer = await (await ask("/frames", { z: wanted, since: first })).json();
    answer.frames.forEach((frame, i) => frames.set(first + i, frame));
    (answer.said || []).forEach((one, i) => said.set(first + i, one));
    const took = performance.now() - start;
    say(`${took.toFixed(0)} ms, of these ${answer.ms.toFixed(0)} in the model`);
  } else say("");
  leave(wanted);
  z = wanted;
  sessionStorage.setItem(place(), JSON.stringify({ z, kept }));
  show();
}

// How many z two games have in common from the first frame on.
function common(one, other) {
  let k = 0;
  while (k < Math.min(one.length, other.length) && same(one[k], other[k])) k += 1;
  return k;
}

const begins = (one, other) => common(one, other) === one.length;

// Keeps the branch that is left, unless it is the beginning of another one.
function leave(wanted) {
  if (![wanted, ...kept].some((other) => begins(z, other))) kept.push(z);
  kept = kept.filter((one) => !begins(one, wanted)).slice(-BRANCHES);
}

// One after the other, in the order in which keys were pressed.
function then(next) {
  queue = queue.then(() => goTo(next(z))).catch((error) => say(error.message, true));
  return queue;
}

const step = (one) => then((now) => [...now, one]);
const undo = () => then((now) => now.slice(0, -1));
const restart = () => then(() => []);
const act = () => then((now) => {
  if (!said.has(now.length)) throw new Error("what the policy says is not here: load the page again");
  return [...now, said.get(now.length)];
});

function name(one) {
  if (metadata.z.codes) return one.join(" ");
  return one.flat().map((x) => x.toFixed(1)).join(" ");
}

function show() {
  $("frame").src = frames.get(z.length);
  const seconds = metadata.window_seconds;
  const when = seconds ? `, ${(z.length * seconds).toFixed(1)} s` : "";
  $("caption").textContent = `step ${z.length}${when}` +
    (z.length ? `, z = ${name(z[z.length - 1])}` : ", the first frame") +
    (said.has(z.length) ? `; the policy says ${name(said.get(z.length))}` : "");
  const there = [...frames.keys()].filter((k) => k <= z.length && k > z.length - SHOWN);
  $("strip").replaceChildren(...there.sort((a, b) => a - b).map((k) => {
    const button = make("button"), image = make("img");
    image.src = frames.get(k);
    image.alt = "";
    button.title = `back to step ${k}`;
    if (said.has(k - 1) && !same(said.get(k - 1), z[k - 1])) {
      button.className = "corrected";
      button.title += `; the policy said ${name(said.get(k - 1))}`;
    }
    button.append(image, k ? name(z[k - 1]) : "start");
    button.addEventListener("click", () => then((now) => now.slice(0, k)));
    return button;
  }));
  $("branches").replaceChildren(...kept.map((one) => {
    const since = common(one, z), rest = one.slice(since).map(name).join(", ");
    const button = make("button", "", `from step ${since}: ${rest}`);
    button.title = `go to this branch of ${one.length} steps`;
    button.addEventListener("click", () => then(() => one));
    return button;
  }));
  mark();
}

// --- Controls ---

function arrow(action, longest) {
  const made = (tag, given) => {
    const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const key in given) found.setAttribute(key, given[key]);
    return found;
  };
  const svg = made("svg", { viewBox: "-20 -20 40 40" });
  svg.append(made("circle", { r: 18, class: "axis" }));
  const [x, y] = [action[0], -action[1]].map((v) => (17 * v) / (longest || 1));
  const long = Math.hypot(x, y), head = Math.min(6, long);
  const at = (turn) => {
    const angle = Math.atan2(y, x) + turn;
    return `${x - head * Math.cos(angle)},${y - head * Math.sin(angle)}`;
  };
  const d = long < 1 ? "M-1,0 L1,0" : `M0,0 L${x},${y} M${at(0.5)} L${x},${y} L${at(-0.5)}`;
  svg.append(made("path", { d, class: "arrow" }));
  return svg;
}

// A row of buttons for each position of z; a z of one position is sent at once.
function buttons() {
  const { codes, length } = metadata.z, { actions, shares } = metadata.meanings;
  const all = (actions || []).flat().filter((a) => a);
  const longest = Math.max(...all.map((a) => Math.hypot(a[0], a.length > 1 ? a[1] : 0)), 0);
  for (let p = 0; p < length; p += 1) {
    if (length > 1) $("controls").append(make("div", "position", "code " + p));
    const row = make("div", "codes");
    for (let code = 0; code < codes; code += 1) {
      const button = make("button", "code"), action = actions && actions[p][code];
      button.dataset.position = p;
      button.dataset.code = code;
      if (action && action.length > 1) button.append(arrow(action, longest));
      button.append(make("kbd", "", String(code)));
      if (actions) {
        const numbers = action ? action.map((x) => x.toFixed(3)).join("\n") : "never";
        button.append(make("span", "small", `${(100 * shares[p][code]).toFixed(0)} %\n${numbers}`));
      }
      button.addEventListener("click", () => choose(p, code));
      row.append(button);
    }
    $("controls").append(row);
  }
}

function choose(position, code) {
  typed[position] = code;
  mark();
  if (metadata.z.length === 1) send();
}

function mark() {
  const says = said.get(z.length);
  for (const button of document.querySelectorAll(".code")) {
    const { position } = button.dataset, code = Number(button.dataset.code);
    button.classList.toggle("chosen", typed[position] === code);
    button.classList.toggle("said", !!says && says[position] === code);
  }
  if (!says) return;
  const { codes, width, mean, std } = metadata.z;
  document.querySelectorAll(".says").forEach((field, i) => {
    const p = Math.floor(i / (width || 1)), k = i % (width || 1);
    field.textContent = codes ? says[p] : ((says[p][k] - mean[p][k]) / std[p][k]).toFixed(2);
  });
}

function fields() {
  for (let p = 0; p < metadata.z.length; p += 1) {
    const label = make("label", "slider"), input = make("input", "field");
    Object.assign(input, { type: "number", min: 0, max: metadata.z.codes - 1, step: 1, value: 0 });
    label.append(make("span", "", "code " + p), input, make("output"), make("output", "says"));
    $("controls").append(label);
  }
}

// In standard deviations from the mean.
function sliders() {
  for (let p = 0; p < metadata.z.length; p += 1)
    for (let i = 0; i < metadata.z.width; i += 1) {
      const label = make("label", "slider"), input = make("input", "field"), out = make("output");
      Object.assign(input, { type: "range", min: -3, max: 3, step: 0.05, value: 0 });
      out.textContent = "0.00";
      input.addEventListener("input", () => { out.textContent = Number(input.value).toFixed(2); });
      label.append(make("span", "", metadata.z.length > 1 ? `z ${p}, ${i}` : "z " + i),
        input, out, make("output", "says"));
      $("controls").append(label);
    }
}

function chosen() {
  const { codes, length, width, mean, std } = metadata.z;
  const given = [...document.querySelectorAll(".field")].map((field) => Number(field.value));
  if (codes) return given.length ? given : typed.slice(0, length);
  return mean.map((row, p) => row.map((x, i) => x + std[p][i] * given[p * width + i]));
}

function send() {
  const one = chosen();
  if (metadata.z.codes && (one.length < metadata.z.length || [...one].includes(undefined)))
    return say("Choose a code for every position.", true);
  typed = [];
  step(one).then(mark);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !metadata) return;
  const inField = ["number", "password", "text"].includes(event.target.type);
  if (event.key === "Enter" && !$("go_row").hidden && event.target.tagName !== "BUTTON") send();
  else if (inField) return;
  else if (event.key === " " && metadata.policy && event.target.tagName !== "BUTTON") act();
  else if (event.key === "u") undo();
  else if (event.key === "r") restart();
  else if (/^[0-9]$/.test(event.key) && document.querySelector(".code")) {
    const code = Number(event.key), { codes, length } = metadata.z;
    if (code >= codes) return;
    let position = 0;
    while (typed[position] !== undefined && position < length - 1) position += 1;
    typed[position] = code;
    mark();
    if (position === length - 1 && ![...typed].includes(undefined)) send();
  } else return;
  event.preventDefault();
}

// --- Files ---

function save(blob, file) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function saveVideo() {
  say("...");
  save(await (await ask("/video", { z })).blob(), "play.mp4");
  say("");
}

async function saveCorrections() {
  say("...");
  const { instruction, saved } = metadata.policy;
  const found = await (await ask("/corrections", { z, instruction })).json();
  say(`${saved} has ${found.pairs} pairs of ${found.episodes} games, ${found.corrected} corrected`);
}

function saveJson() {
  const { checkpoint, quantizers, start, window_seconds } = metadata;
  const text = JSON.stringify({ checkpoint, quantizers, start, window_seconds, z });
  save(new Blob([text], { type: "application/json" }), "play.json");
}

// --- The beginning ---

function describe() {
  const { stage, checkpoint, image_size, start, meanings, policy, z: of } = metadata;
  const what = of.codes ? `${of.codes} codes × ${of.length}` : `${of.length} × ${of.width} numbers`;
  $("run").textContent = `${stage}, step ${checkpoint.step}, ` +
    `${image_size[1]} x ${image_size[0]} px, ${what}`;
  const from = start.file || `${start.corpus}, episode ${start.episode}, step ${start.step}`;
  const about = [`First frame: ${from}` + (start.instruction ? `, "${start.instruction}".` : ".")];
  if (meanings.actions) about.push(
    `Under each code: its share of ${meanings.pairs} pairs of ${meanings.corpus} (labels ` +
    `${meanings.label_set}) and the mean true action over them, summed over the window; the ` +
    "arrow is its first two numbers, the second upwards.");
  if (!of.codes) about.push(of.spread_of
    ? `Sliders: standard deviations from the mean, of ${of.spread_of}.`
    : "Sliders: the numbers of z themselves; a --corpus that this run has labelled tells their spread.");
  if (policy) about.push(
    `Dashed, or beside a slider: what the policy (step ${policy.checkpoint.step}) says, which is ` +
    `told "${policy.instruction}". Any other z corrects it.`);
  $("act").hidden = !policy;
  $("corrections").hidden = !(policy && policy.saved);
  $("about").textContent = about.join(" ");
}

async function begin() {
  metadata = await (await ask("/metadata")).json();
  $("token_label").hidden = true;
  const { codes, length } = metadata.z;
  describe();
  $("controls").replaceChildren();
  if (!codes) sliders();
  else if (codes <= 10 || (length === 1 && codes <= 64)) buttons();
  else fields();
  $("go_row").hidden = !(length > 1 || document.querySelector(".field"));
  $("zero").hidden = !!codes;
  $("game").hidden = false;
  const before = remembered();
  kept = Array.isArray(before.kept) ? before.kept : [];
  await goTo(before.z).catch(() => {
    kept = [];
    return goTo([]);
  });
}

$("go").addEventListener("click", send);
$("zero").addEventListener("click", () => {
  for (const field of document.querySelectorAll(".field")) {
    field.value = 0;
    field.dispatchEvent(new Event("input"));
  }
});
$("act").addEventListener("click", act);
$("corrections").addEventListener("click", () =>
  saveCorrections().catch((error) => say(error.message, true)));
$("undo").addEventListener("click", undo);
$("restart").addEventListener("click", restart);
$("video").addEventListener("click", () => saveVideo().catch((error) => say(error.message, true)));
$("json").addEventListener("click", saveJson);
$("enter").addEventListener("click", () => begin().catch((error) => say(error.message, true)));
document.addEventListener("keydown", press);
// After a click of a pointer the keys are free again, the space bar among them.
document.addEventListener("click", (event) => {
  if (event.detail && event.target.closest("button")) document.activeElement.blur();
});
begin().catch((error) => say(error.message, true));
