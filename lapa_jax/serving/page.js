"use strict";
// The page of `lapa serve`: an image and an instruction go to /act, the answer becomes bars.

const $ = (id) => document.getElementById(id);
let metadata = null, image = null;

function headers(more) {
  return $("token").value ? { ...more, Authorization: "Bearer " + $("token").value } : more;
}

function say(text, error) {
  $("status").textContent = text;
  $("status").classList.toggle("error", !!error);
}

async function load() {
  const found = await fetch("/metadata", { headers: headers({}) });
  if (found.status === 401) {
    $("token_label").hidden = false;
    return false;
  }
  if (!found.ok) throw new Error(`/metadata: ${found.status} ${found.statusText}`);
  metadata = await found.json();
  const [height, width] = metadata.image_size;
  $("policy").textContent =
    `${metadata.policy} policy, step ${metadata.checkpoint.step}, ${width} x ${height} px`;
  const own = metadata.observation.state;
  $("state_label").hidden = !own;
  if (own) $("state").placeholder = (own.dimensions || Array(own.dim).fill("number")).join(", ");
  if (metadata.images > 1) say(`The policy takes ${metadata.images} images: it gets this one for each.`);
  return true;
}

function take(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    image = reader.result;
    $("image").src = image;
    $("image").hidden = false;
    $("hint").textContent = file.name;
  };
  reader.readAsDataURL(file);
}

// One line: a name, a bar from `start`, which is zero, to `end` (parts of the track), and a text.
function bar(name, start, end, text, chosen) {
  const line = document.createElement("div");
  line.className = chosen ? "bar chosen" : "bar";
  const [label, track, fill, zero, number] = ["span", "div", "div", "div", "span"].map((x) =>
    document.createElement(x));
  label.textContent = name;
  track.className = "track";
  fill.className = "fill";
  fill.style.left = 100 * Math.min(start, end) + "%";
  fill.style.width = 100 * Math.abs(end - start) + "%";
  zero.className = "zero";
  zero.style.left = 100 * start + "%";
  number.className = "number";
  number.textContent = text;
  track.append(fill, zero);
  line.append(label, track, number);
  $("bars").append(line);
}

function showAction(a) {
  $("what").textContent = "Action a = (" + a.map((x) => x.toFixed(4)).join(", ") + ")";
  const { low = a, high = a, names, units } = metadata.action;
  a.forEach((x, i) => {
    const least = Math.min(0, low[i]), most = Math.max(0, high[i]), span = most - least || 1;
    const name = names ? names[i] : "dimension " + i;
    const text = x.toFixed(4) + (units ? " " + units[i] : "");
    bar(name, -least / span, (x - least) / span, text, false);
  });
}

function showLatent(z, probabilities) {
  $("what").textContent = "Latent action z = (" + z.join(", ") + ")";
  z.forEach((chosen, i) => {
    const title = document.createElement("div");
    title.className = "code";
    title.textContent = "code " + i;
    $("bars").append(title);
    const order = probabilities[i].map((p, code) => [p, code]).sort((x, y) => y[0] - x[0]);
    for (const [p, code] of order.slice(0, 8))
      bar("id " + code, 0, p, (100 * p).toFixed(1) + " %", code === chosen);
  });
}

async function predict(event) {
  event.preventDefault();
  if (!image) return say("Choose an image first.", true);
  if (!metadata && !(await load())) return say("This server asks for a token.", true);
  say("...");
  const message = { instruction: $("instruction").value, picture: metadata.pictures };
  const { images, images_each, state } = metadata.observation;
  if (state) message[state.names[0]] = $("state").value.split(",").map((x) => x.trim() ? Number(x) : NaN);
  for (const [name] of images) message[name] = images_each > 1 ? Array(images_each).fill(image) : image;
  const found = await fetch("/act", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(message),
  });
  const answer = await found.json();
  if (!found.ok) return say(answer.error, true);
  say("");
  $("bars").replaceChildren();
  if (answer.a) showAction(metadata.chunk > 1 ? answer.a[0] : answer.a);
  else showLatent(answer.z, answer.probabilities);
  $("figure").hidden = !answer.picture;
  if (answer.picture) $("picture").src = answer.picture;
  $("timing").textContent = `${answer.timing.infer_ms.toFixed(1)} ms in the model`;
  $("answer").hidden = false;
}

for (const name of ["dragover", "dragleave", "drop"])
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
$("file").addEventListener("change", () => take($("file").files[0]));
$("form").addEventListener("submit", (event) =>
  predict(event).catch((error) => say("The server did not answer: " + error.message, true)));
load().catch((error) => say("The server did not answer: " + error.message, true));
