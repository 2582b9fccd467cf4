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
let lastStateFacts = {}, listed = [], filter = { cohort: null, kind: "" };
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
  if (!current) $("criterion").textContent = "2 shows the flagged slides, U takes the last answer back. Then stop the server (Ctrl-C) and run `wsiseg qc grade`.";
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
  const narrow = filter.cohort !== null || filter.kind;
  $("question").textContent = done ? (state.total ? (narrow ? "All flagged slides of this cohort and reason are done." : "All flagged slides are done. Thank you.") : narrow ? "No flagged slide is of this cohort and reason." : "No slide was flagged. J jumps to any.") : current;
  document.body.classList.toggle("waiting", done);
  drawList();
  if (done) { viewer.clear(); keepPlace(); return; }
  const base = `/slide/${state.places[0]}`;
  const info = await ask(base);
  const said = state.words[0];
  if (said) $("said").textContent = `You found it ${said.replace("_", " ")}. Another answer replaces that.`;
  const lines = (info.reasons || []).map((text) => { const p = document.createElement("p"); p.textContent = text; return p; });
  $("reasons").replaceChildren(...lines);
  problem(info.error || "");
  if (info.error) viewer.clear(); else viewer.open(base, info, firstView);
  firstView = null;
  keepPlace();
}

// The list of slides: all that fit the filter, flagged ones first, as the server orders them.
const LISTED = 300;
async function fetchList() {
  listed = (await ask("/api/slides")).slides;
  const options = (values, all, text) => [["*", all], ...values.map((v) => [v, text(v)])].map(([value, name]) => { const o = document.createElement("option"); o.value = value; o.textContent = name; return o; });
  $("by-cohort").replaceChildren(...options([...new Set(listed.map((r) => r.cohort))].sort().map((c) => `=${c}`), "all", (c) => c.slice(1) || "(no cohort)"));
  $("by-kind").replaceChildren(...options([...new Set(listed.flatMap((r) => r.kinds))].sort(), "all", (k) => k));
}
function fitting() {
  const text = $("jump").value.trim().toLowerCase();
  return listed.filter((r) => (filter.cohort === null || r.cohort === filter.cohort) && (!filter.kind || r.kinds.includes(filter.kind)) && (!text || r.slide_id.toLowerCase().includes(text)));
}
function drawList() {
  const rows = fitting(), judged = rows.filter((r) => r.word).length;
  $("listed").textContent = `${rows.length.toLocaleString("en")} of ${listed.length.toLocaleString("en")} slides, ${judged.toLocaleString("en")} judged by you${rows.length > LISTED ? `; the first ${LISTED} are listed` : ""}`;
  $("names").replaceChildren(...rows.slice(0, LISTED).map((r) => {
    const line = document.createElement("li"), button = document.createElement("button"), facts = document.createElement("small");
    const word = document.createElement("span");
    button.append(r.slide_id, facts); button.dataset.slide = r.slide_id;
    button.setAttribute("aria-current", String(r.slide_id === current));
    word.textContent = r.word || (r.queued ? "in the queue" : ""); word.className = r.word;
    facts.append([r.cohort, ...r.kinds, r.estimate == null ? "" : `${Math.round(100 * r.estimate)} % predicted bad`].filter(Boolean).join(" · "), r.word || r.queued ? " · " : "", word);
    button.addEventListener("click", () => { run(() => jump(r.slide_id)); button.blur(); });
    line.append(button);
    return line;
  }));
  const here = $("names").querySelector("[aria-current=true]");
  if (here) $("names").scrollTop = here.offsetTop - $("names").offsetTop - $("names").clientHeight / 2;
}
function narrowed() { // what the server needs to narrow the queue
  return { ...(filter.cohort === null ? {} : { cohort: filter.cohort }), ...(filter.kind ? { kind: filter.kind } : {}) };
}
function stateOf(extra = {}) { return ask(`/api/state?${new URLSearchParams({ queue, ...(queue === "slides" ? narrowed() : {}), ...extra })}`); }
async function jump(slide) {
  if (queue !== "slides") await choose("slides", slide); else { $("said").textContent = ""; await take(await stateOf({ item: slide })); }
}
async function setFilter() {
  const cohort = $("by-cohort").value;
  filter = { cohort: cohort === "*" ? null : cohort.slice(1), kind: $("by-kind").value === "*" ? "" : $("by-kind").value };
  await take(await stateOf());
}

// Where the reviewer is, for the next time: a loss of it costs nothing, so a failure is not said.
let placeTimer = 0, firstView = null;
function keepPlace() {
  clearTimeout(placeTimer);
  placeTimer = setTimeout(() => {
    const view = queue === "slides" && current && viewer.info ? [viewer.x, viewer.y, viewer.scale] : undefined;
    ask("/api/place", { queue, item: queue === "slides" ? current : "", view, cohort: filter.cohort === null ? "*" : `=${filter.cohort}`, kind: filter.kind }).catch(() => {});
  }, 400);
}
viewer.onmoved = keepPlace;
let heat = false; // off at first: what is predicted should not be seen before it is judged, unless it is asked for
viewer.onheat = (found) => {
  $("heat-key").hidden = !found;
  if (!found) return;
  $("heat-bar").hidden = Boolean(found.error);
  $("heat-text").textContent = found.error || `Predicted quality. Cells of ${Math.round(found.cell_um)} µm: from the nuclei alone, rough${found.auc ? ` (AUC ${found.auc.toFixed(2)})` : ""}. ${found.patches.length ? `Squares: the ${found.patches.length} sampled patches, from their pixels too.` : "No sampled patch has a prediction yet (wsiseg qc predict)."}`;
};

async function choose(name, slide = "") {
  queue = name;
  for (const q of ["patches", "slides"]) {
    $(`view-${q}`).hidden = q !== name;
    $(`tab-${q}`).setAttribute("aria-pressed", String(q === name));
  }
  for (const id of ["comment-box", "slide-list"]) $(id).hidden = name !== "slides";
  for (const row of document.querySelectorAll(".of-slides")) row.hidden = name !== "slides";
  for (const key of ["0", "h"]) document.querySelector(`#tools [data-key='${key}']`).hidden = name !== "slides";
  $("reasons").hidden = true;
  document.body.classList.remove("waiting");
  if (name === "slides" && !listed.length) { await fetchList(); showFilter(); }
  const next = await stateOf(slide ? { item: slide } : {});
  if (name === "slides") viewer.resize();
  await take(next);
  if (name === "patches") keepPlace();
}
function showFilter() {
  const has = (id, value) => [...$(id).options].some((o) => o.value === value);
  const cohort = filter.cohort === null ? "*" : `=${filter.cohort}`;
  if (!has("by-cohort", cohort)) filter.cohort = null;
  if (filter.kind && !has("by-kind", filter.kind)) filter.kind = "";
  $("by-cohort").value = filter.cohort === null ? "*" : cohort;
  $("by-kind").value = filter.kind || "*";
}

// The first page: the slide that a link asks for, else where this reviewer stopped.
async function begin() {
  const wanted = new URLSearchParams(location.search).get("slide");
  history.replaceState(null, "", "/");
  const place = await ask("/api/place");
  if (place.cohort && place.cohort !== "*") filter.cohort = place.cohort.slice(1);
  if (place.kind) filter.kind = place.kind;
  if (wanted) { filter = { cohort: null, kind: "" }; return choose("slides", wanted); }
  if (place.queue !== "slides") return choose("patches");
  if (place.item) firstView = place.view || null;
  return choose("slides", place.item || "");
}

async function mark(key) {
  if (!current || document.body.classList.contains("waiting")) return;
  const [word, text] = WORDS[queue][key];
  const comment = queue === "slides" ? $("comment").value : "";
  const next = await ask("/api/mark", { queue, item: current, mark: word, comment, seconds: (performance.now() - shown) / 1000, ...narrowed() });
  const row = queue === "slides" && listed.find((r) => r.slide_id === current);
  if (row) row.word = word;
  $("comment").value = "";
  $("said").textContent = `${text}. U takes it back.`;
  problem("");
  await take(next);
}

async function undo() {
  const next = await ask("/api/mark", { queue, item: "", mark: "undo", ...narrowed() });
  const row = queue === "slides" && next.undone && listed.find((r) => r.slide_id === next.next[0]);
  if (row) row.word = "";
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
  h: () => { if (queue === "slides") { heat = !heat; document.querySelector("#tools [data-key=h]").setAttribute("aria-pressed", String(heat)); viewer.showHeat(heat); } },
  j: () => { if (queue === "slides") $("jump").focus(); else run(() => choose("slides").then(() => $("jump").focus())); },
  "?": () => showKeys($("keys").hidden), escape: () => showKeys(false),
  arrowleft: () => viewer.pan(-0.25, 0), arrowright: () => viewer.pan(0.25, 0),
  arrowup: () => viewer.pan(0, -0.25), arrowdown: () => viewer.pan(0, 0.25),
};

function showKeys(on) {
  $("keys").hidden = !on;
  document.querySelector("nav [data-key='?']").setAttribute("aria-pressed", String(on));
}

async function run(deed) {
  if (busy) return; // an answer to a picture that was not seen yet is no answer
  busy = true;
  try { await deed(); } catch (err) { problem(err.message); } finally { busy = false; }
}

async function act(key) {
  if (LOOKS[key]) { LOOKS[key](); return true; }
  if (!DEEDS[key]) return false;
  await run(DEEDS[key]);
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("textarea, input, select")) {
    if (event.key === "Escape") { event.target.blur(); event.preventDefault(); }
    if (event.key === "Enter" && event.target === $("jump")) {
      event.preventDefault();
      const text = $("jump").value.trim(), rows = fitting(), row = rows.find((r) => r.slide_id === text) || rows[0];
      if (!row) { problem(`No slide of this cohort and reason has ${JSON.stringify(text)} in its name.`); return; }
      problem("");
      $("jump").value = ""; $("jump").blur();
      run(() => jump(row.slide_id));
    }
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
$("jump").addEventListener("input", drawList);
for (const id of ["by-cohort", "by-kind"]) $(id).addEventListener("change", () => { run(setFilter); $(id).blur(); });
window.addEventListener("resize", () => viewer.resize());
run(begin);
