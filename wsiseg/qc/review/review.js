"use strict";
// The review page. One rule: an item is only left when the server has said that its mark is on disk.
const WORDS = {
  patches: {
    question: "Is the segmentation of this patch adequate?",
    criterion: "Adequate: at least 75 % of what is outlined is nucleus (precision), and at least 75 % of the nuclei are outlined (recall). Both must hold. No nuclei and no outlines: adequate.",
    a: ["adequate", "Adequate"], s: ["not_adequate", "Not adequate"], d: ["unsure", "Unsure"],
  },
  slides: {
    question: "",
    criterion: "Is the segmentation acceptable over the whole slide? Look at the tissue as a whole, then closely at a few places.",
    a: ["acceptable", "Acceptable"], s: ["unacceptable", "Unacceptable"], d: ["unsure", "Unsure"],
  },
};
const $ = (id) => document.getElementById(id);
const SIZES = [256, 512, 768, 1024, 1536];
let queue = "patches", state = null, current = null, shown = 0, busy = false, contours = true, sizeAt = 2;
let lastStateFacts = {};
const viewer = new SlideViewer($("slide"), $("slide-hint"), $("slide-scale"));
const preloaded = new Map();

async function ask(path, body) {
  const init = body ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) } : {};
  let answer;
  try {
    answer = await fetch(path, init);
  } catch {
    throw new Error("The server does not answer. Your answers so far are safe; the one just given is not. Start `wsiseg qc review` again and open the address it prints.");
  }
  const text = await answer.text();
  let value = null;
  try { value = JSON.parse(text); } catch { /* words, not JSON */ }
  if (!answer.ok) throw new Error((value && value.error) || text || `The server answered ${answer.status}.`);
  return value;
}

function problem(text) {
  $("problem").textContent = text || "";
  $("problem").hidden = !text;
}

function preload(id) {
  if (preloaded.has(id)) return preloaded.get(id);
  const pair = ["", ".contours"].map((kind) => {
    const image = new Image();
    image.src = `/patch/${id}${kind}.png`;
    return image.decode().then(() => image);
  });
  const both = Promise.all(pair);
  both.catch(() => preloaded.delete(id));
  preloaded.set(id, both);
  while (preloaded.size > 12) preloaded.delete(preloaded.keys().next().value);
  return both;
}

function drawProgress() {
  const rate = state.per_minute ? ` · ${state.per_minute.toFixed(0)} a minute` : "";
  const left = state.per_minute && state.total > state.done ? ` · about ${duration((state.total - state.done) / state.per_minute)} left` : "";
  $("progress").textContent = `${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}${rate}${left}` +
    (lastStateFacts.reviewer ? ` · ${lastStateFacts.reviewer}` : "");
  $("bar-fill").style.width = state.total ? `${100 * state.done / state.total}%` : "0";
}

function duration(minutes) {
  return minutes < 90 ? `${Math.max(1, Math.round(minutes))} min` : `${(minutes / 60).toFixed(1)} h`;
}

async function take(next) {
  state = next;
  if (next.reviewer) lastStateFacts = { reviewer: next.reviewer, title: next.title };
  drawProgress();
  current = state.next[0] || null;
  document.body.classList.toggle("finished", !current);
  document.body.dataset.item = "";
  const words = WORDS[queue];
  $("criterion").textContent = words.criterion;
  for (const key of ["a", "s", "d"]) document.querySelector(`#answers [data-key=${key}] span`).textContent = words[key][1];
  if (queue === "patches") await showPatch(words); else await showSlide();
  shown = performance.now();
  document.body.dataset.item = current || "finished";
}

async function showPatch(words) {
  $("question").textContent = current ? words.question : state.total ? "All patches are done. Thank you." : "There are no patches in this queue.";
  if (!current) $("criterion").textContent = "2 shows the outlier slides, U takes the last answer back. Then stop the server (Ctrl-C) and run `wsiseg qc grade`.";
  if (!current) { $("patch-stage").hidden = true; return; }
  $("patch-stage").hidden = false;
  document.body.classList.add("waiting");
  try {
    const [tissue, layer] = await preload(current);
    $("tissue").src = tissue.src;
    $("layer").src = layer.src;
    await Promise.all([$("tissue").decode(), $("layer").decode()]);
    document.body.classList.remove("waiting");
    problem("");
  } catch {
    problem("This picture cannot be loaded. Reload the page; if that does not help, run `wsiseg qc patches` again.");
  }
  for (const id of state.next.slice(1)) preload(id);
}

async function showSlide() {
  const done = !current;
  $("reasons").hidden = done;
  $("question").textContent = done ? (state.total ? "All flagged slides are done. Thank you." : "No slide was flagged. Run `wsiseg qc outliers` first.") : current;
  document.body.classList.toggle("waiting", done);
  if (done) { viewer.clear(); return; }
  const base = `/slide/${state.places[0]}`;
  const info = await ask(base);
  const lines = (info.reasons || []).map((text) => { const p = document.createElement("p"); p.textContent = text; return p; });
  $("reasons").replaceChildren(...lines);
  problem(info.error || "");
  if (info.error) viewer.clear(); else viewer.open(base, info);
}

async function choose(name) {
  queue = name;
  for (const q of ["patches", "slides"]) {
    $(`view-${q}`).hidden = q !== name;
    $(`tab-${q}`).setAttribute("aria-pressed", String(q === name));
  }
  $("comment-box").hidden = name !== "slides";
  document.querySelector("#tools [data-key='0']").hidden = name !== "slides";
  $("reasons").hidden = true;
  document.body.classList.remove("waiting");
  const next = await ask(`/api/state?queue=${name}`);
  if (name === "slides") viewer.resize();
  await take(next);
}

async function mark(key) {
  if (!current || document.body.classList.contains("waiting")) return;
  const [word, text] = WORDS[queue][key];
  const comment = queue === "slides" ? $("comment").value : "";
  const next = await ask("/api/mark", { queue, item: current, mark: word, comment, seconds: (performance.now() - shown) / 1000 });
  $("comment").value = "";
  $("said").textContent = `${text}. U takes it back.`;
  problem("");
  await take(next);
}

async function undo() {
  const next = await ask("/api/mark", { queue, item: "", mark: "undo" });
  $("said").textContent = next.undone ? `Taken back: ${next.undone.replace("_", " ")}.` : "Nothing to take back.";
  await take(next);
}

function zoom(step) {
  if (queue === "slides") { viewer.zoom(step > 0 ? 1.5 : 1 / 1.5); return; }
  sizeAt = Math.min(SIZES.length - 1, Math.max(0, sizeAt + step));
  $("patch-stage").style.width = $("patch-stage").style.height = `${SIZES[sizeAt]}px`;
}

function toggleContours() {
  contours = !contours;
  document.querySelector("[data-key=c]").setAttribute("aria-pressed", String(contours));
  $("layer").style.visibility = contours ? "" : "hidden";
  viewer.showContours(contours);
}

const DEEDS = {
  a: () => mark("a"), s: () => mark("s"), d: () => mark("d"), u: undo, backspace: undo,
  1: () => choose("patches"), 2: () => choose("slides"),
};
const LOOKS = {
  c: toggleContours, "+": () => zoom(1), "=": () => zoom(1), "-": () => zoom(-1), 0: () => viewer.fit(),
  m: () => { if (queue === "slides") $("comment").focus(); },
  arrowleft: () => viewer.pan(-0.25, 0), arrowright: () => viewer.pan(0.25, 0),
  arrowup: () => viewer.pan(0, -0.25), arrowdown: () => viewer.pan(0, 0.25),
};

async function act(key) {
  if (LOOKS[key]) { LOOKS[key](); return true; }
  const deed = DEEDS[key];
  if (!deed) return false;
  if (busy) return true; // an answer to a picture that was not seen yet is no answer
  busy = true;
  try { await deed(); } catch (err) { problem(err.message); } finally { busy = false; }
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("comment")) {
    if (event.key === "Escape") { $("comment").blur(); event.preventDefault(); }
    return;
  }
  const key = event.key.toLowerCase();
  if (event.repeat && DEEDS[key]) { event.preventDefault(); return; }
  if (DEEDS[key] || LOOKS[key]) { event.preventDefault(); act(key); }
});
for (const button of document.querySelectorAll("button[data-key]")) {
  button.addEventListener("click", () => { act(button.dataset.key); button.blur(); });
}
$("tab-patches").addEventListener("click", () => act("1"));
$("tab-slides").addEventListener("click", () => act("2"));
window.addEventListener("resize", () => viewer.resize());
act("1");
