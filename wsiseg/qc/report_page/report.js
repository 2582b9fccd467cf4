"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const GRADES = ["Best", "Good", "Adequate", "Problematic", "Unacceptable", "Ungraded"];
// rows arrive as columns (a third of the size); back to objects
const ROWS = D.rows.slide_id.map((_, i) => Object.fromEntries(Object.keys(D.rows).map((k) => [k, D.rows[k][i]])));
const finite = (v) => typeof v === "number" && Number.isFinite(v);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) if (v != null) node.setAttribute(k, v);
  node.append(...children);
  return node;
}
function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  node.append(...children);
  return node;
}
function number(v, digits = 0) {
  return finite(v) ? v.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) : "–";
}
function short(v) { // an axis label
  if (Math.abs(v) >= 1e6) return `${+(v / 1e6).toPrecision(3)} M`;
  if (Math.abs(v) >= 1e4) return `${+(v / 1e3).toPrecision(3)} k`;
  return `${+v.toPrecision(3)}`;
}
function quantile(sorted, p) {
  const at = (sorted.length - 1) * p, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}
function pill(grade) { return grade ? el("span", { class: `pill ${grade}` }, grade) : ""; }
function cohortName(c) { return c || "(no cohort)"; }

// A table whose rows come as they scroll into sight.
function table(host, columns, rows, { sort = null, down = false, foot = null, step = 100, flag = null } = {}) {
  const body = el("tbody"), head = el("tr"), box = el("table", {}, el("thead", {}, head), body);
  let shown = 0, sorted = rows;
  const sentinel = el("div", { "aria-hidden": "true", style: "height:1px" });
  const value = (c, r) => (c.key ? r[c.key] : c.value(r));
  function order() {
    const c = columns.find((k) => k.id === sort);
    if (c) {
      const sign = down ? -1 : 1;
      const blank = (v) => v == null || v === "" || (typeof v === "number" && !Number.isFinite(v));
      sorted = rows.map((r, i) => [value(c, r), i, r]).sort((a, b) => {
        if (blank(a[0]) || blank(b[0])) return blank(a[0]) - blank(b[0]) || a[1] - b[1]; // blanks last, either way
        return (a[0] < b[0] ? -sign : a[0] > b[0] ? sign : 0) || a[1] - b[1];
      }).map((t) => t[2]);
    } else sorted = rows;
  }
  function cell(c, r) {
    const v = value(c, r);
    const content = c.show ? c.show(v, r) : c.digits != null ? number(v, c.digits) : v == null ? "" : String(v);
    return el("td", { class: c.digits == null ? `text ${c.class || ""}` : null }, content);
  }
  function append(n) {
    const part = document.createDocumentFragment();
    for (const r of sorted.slice(shown, shown + n)) part.append(el("tr", { class: flag && flag(r) ? "flagged" : null }, ...columns.map((c) => cell(c, r))));
    shown = Math.min(sorted.length, shown + n);
    body.append(part);
  }
  function redraw() { order(); body.replaceChildren(); shown = 0; append(step); heads(); }
  function heads() {
    head.replaceChildren(...columns.map((c) => {
      const button = el("button", { type: "button", title: c.title }, c.name + (c.id === sort ? (down ? " ▼" : " ▲") : ""));
      button.addEventListener("click", () => { down = c.id === sort ? !down : c.digits != null; sort = c.id; redraw(); [...head.children][columns.indexOf(c)].firstChild.focus(); });
      return el("th", { class: c.digits == null ? "text" : null, scope: "col", "aria-sort": c.id === sort ? (down ? "descending" : "ascending") : null }, button);
    }));
  }
  if (foot) box.append(el("tfoot", {}, el("tr", {}, ...columns.map((c) => cell(c, foot)))));
  redraw();
  host.replaceChildren(box, sentinel);
  const inner = host.id === "slide-table";
  const fill = () => {
    const reach = (inner ? host.getBoundingClientRect().bottom : innerHeight) + 600;
    if (shown < sorted.length && sentinel.getBoundingClientRect().top < reach) append(step);
  };
  (inner ? host : window).addEventListener("scroll", fill, { passive: true });
  addEventListener("beforeprint", () => append(Math.min(500, sorted.length) - shown));
  return { rows(next) { rows = next; host.scrollTop = 0; redraw(); } };
}

function overview() {
  const sum = (k) => ROWS.reduce((s, r) => s + (finite(r[k]) ? r[k] : 0), 0), count = (f) => ROWS.filter(f).length;
  const facts = [
    ["slides", number(ROWS.length)], ["nuclei", number(sum("n_nuclei"))], ["mm² of tissue", number(sum("tissue_mm2"), 1)],
    ["nuclei per mm²", number(sum("n_nuclei") / sum("tissue_mm2"))],
    ["slides failed or partly failed", number(count((r) => r.status === "failed" || r.status === "partial")), count((r) => r.status === "failed" || r.status === "partial")],
    ["slides without nuclei" + (count((r) => r.status === "suspect") ? `, ${number(count((r) => r.status === "suspect"))} suspect` : ""), number(count((r) => r.status !== "failed" && !r.n_nuclei)), count((r) => r.status !== "failed" && !r.n_nuclei)],
    ["outlier slides", D.has_outliers ? number(count((r) => r.round > 0)) : "not sought", D.has_outliers && count((r) => r.round > 0)],
    ["patches judged", number(sum("n_judged"))],
  ];
  $("tiles").append(...facts.map(([name, value, alarm]) => el("div", { class: alarm ? "tile alarm" : "tile" }, el("b", {}, value), el("span", {}, name))));
  for (const a of D.agreement) {
    const kappa = finite(a.kappa) ? `Cohen's kappa ${number(a.kappa, 2)} (95 % ${number(a.kappa_low, 2)} to ${number(a.kappa_high, 2)})` : "no kappa, since both gave one answer only";
    $("overview").append(el("p", { class: "note" }, `${a.first} and ${a.second} both judged ${number(a.n)} patches: ${number(100 * a.agree_frac, 1)} % equal, ${kappa}.`));
  }
  if (!D.has_grades) { $("grade-bar").remove(); return; }
  for (const g of GRADES) {
    const n = count((r) => r.grade === g);
    if (n) $("grade-bar").append(el("div", { class: g, style: `flex: ${n} 1 4.5rem`, title: `${g}: ${n} of ${ROWS.length} slides` }, `${g} ${n}`));
  }
}

function cohorts() {
  const groups = new Map();
  for (const r of ROWS) { if (!groups.has(r.cohort)) groups.set(r.cohort, []); groups.get(r.cohort).push(r); }
  const median = (rs, k) => { const v = rs.map((r) => r[k]).filter(finite).sort((a, b) => a - b); return v.length ? quantile(v, 0.5) : NaN; };
  const line = (name, rs) => {
    const sum = (k) => rs.reduce((s, r) => s + (r[k] || 0), 0), judged = sum("n_judged");
    const out = { cohort: name, slides: rs.length, failed: rs.filter((r) => r.status === "failed" || r.status === "partial").length, nuclei: sum("n_nuclei"), mm2: sum("tissue_mm2"),
      density: median(rs, "nuclei_per_mm2"), area: median(rs, "area_mean_um2"), std: median(rs, "area_std_um2"),
      flagged: rs.filter((r) => r.round > 0).length, bad: judged ? 100 * sum("n_bad") / judged : NaN };
    out.estimate = D.has_estimates ? 100 * mean(rs.map((r) => r.estimate)) : NaN;
    for (const g of GRADES) out[g] = rs.filter((r) => r.grade === g).length;
    return out;
  };
  const mean = (vs) => { const v = vs.filter(finite); return v.length ? v.reduce((a, b) => a + b, 0) / v.length : NaN; };
  const rows = [...groups].map(([c, rs]) => line(cohortName(c), rs));
  const columns = [["cohort", "Cohort"], ["slides", "Slides", 0], ["failed", "Failed", 0], ["nuclei", "Nuclei", 0], ["mm2", "Tissue mm²", 1],
    ["density", "Median nuclei per mm²", 0], ["area", "Median mean area µm²", 1], ["std", "Median spread µm²", 1], ["flagged", "Outliers", 0]];
  if (D.has_estimates) columns.push(["estimate", "Estimated bad %", 1]);
  if (D.has_grades) columns.push(["bad", "Judged bad %", 1], ...GRADES.filter((g) => g !== "Ungraded" || rows.some((r) => r[g])).map((g) => [g, g, 0]));
  table($("cohort-table"), columns.map(([key, name, digits]) => ({ id: key, key, name, digits })), rows, { sort: "cohort", foot: rows.length > 1 ? line("All", ROWS) : null });
}

const STATISTICS = [["n_nuclei", "Nuclei per slide", 0], ["nuclei_per_mm2", "Nuclear density (per mm²)", 0], ["area_mean_um2", "Mean nuclear area (µm²)", 1], ["area_std_um2", "Spread of nuclear area (standard deviation, µm²)", 1]];

function unit(text) { // a number in [0, 1) from a text, for the scatter of points: the same on every opening
  let h = 2166136261;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 16777619);
  return ((h ^ (h >>> 13)) >>> 0) / 4294967296;
}

function plot(key, title, digits) {
  const names = [...new Set(ROWS.map((r) => r.cohort))].sort(), rows = ROWS.filter((r) => finite(r[key]) && r.status !== "failed");
  const width = 640, left = Math.min(150, 20 + 8 * Math.max(...names.map((n) => cohortName(n).length))), band = names.length > 12 ? 26 : 44, top = 8, height = top + band * names.length + 34;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} by cohort` });
  const figure = el("figure", {}, el("figcaption", {}, title), svg);
  if (!rows.length) { figure.append(el("p", { class: "note" }, "No slide has this statistic.")); return figure; }
  const all = rows.map((r) => r[key]).sort((a, b) => a - b);
  let min = Math.min(0, all[0]), max = all[all.length - 1] || 1;
  const skewed = all[0] > 0 && all[all.length - 1] / quantile(all, 0.5) > 12; // counts of biopsies beside resections
  if (skewed) min = all[0];
  const ease = skewed ? Math.log : (v) => v;
  const x = (v) => left + (ease(v) - ease(min)) / ((ease(max) - ease(min)) || 1) * (width - left - 16);
  let step = 10 ** Math.floor(Math.log10((max - min) / 5 || 1));
  while ((max - min) / step > 6) step *= step.toPrecision(1)[0] === "2" ? 2.5 : 2;
  const ticks = [];
  if (skewed) for (let d = 10 ** Math.floor(Math.log10(min)); d <= max; d *= 10) for (const m of [1, 3]) { if (d * m >= min && d * m <= max) ticks.push(d * m); }
  else for (let v = Math.ceil(min / step) * step; v <= max * 1.0001; v += step) ticks.push(v);
  for (const v of ticks) svg.append(shape("line", { x1: x(v), x2: x(v), y1: top, y2: height - 30, stroke: "#e3e7ec" }), shape("text", { x: x(v), y: height - 14, "text-anchor": "middle" }, short(v)));
  if (skewed) svg.append(shape("text", { x: width - 4, y: height - 1, "text-anchor": "end", style: "fill:#57606c;font-size:10px" }, "logarithmic scale"));
  names.forEach((name, i) => {
    const members = rows.filter((r) => r.cohort === name), middle = top + band * (i + 0.5);
    svg.append(shape("text", { x: left - 8, y: middle + 4, "text-anchor": "end" }, cohortName(name).slice(0, 16)));
    if (!members.length) return;
    const values = members.map((r) => r[key]).sort((a, b) => a - b);
    const y = (r) => middle + (unit(r.slide_id) - 0.5) * band * 0.62;
    const d = members.filter((r) => !(r.round > 0)).map((r) => `M${x(r[key]).toFixed(1)} ${y(r).toFixed(1)}h0`).join("");
    svg.append(shape("path", { d, stroke: "#33608f", "stroke-opacity": members.length > 400 ? 0.25 : 0.5, "stroke-width": members.length > 400 ? 3.4 : 5, "stroke-linecap": "round" }));
    for (const r of members.filter((m) => m.round > 0)) {
      const here = (r.tails || "").split(" ").some((t) => t.startsWith(`${key}:`));
      const title = shape("title", {}, `${r.slide_id}: ${number(r[key], digits)}${here ? "" : " (flagged for another reason)"}`);
      const mark = here ? shape("path", { d: `M${(x(r[key]) - 4.5).toFixed(1)} ${(y(r) + 4).toFixed(1)}h9l-4.5 -8z`, fill: "#c2410c", style: "cursor:pointer" }, title)
        : shape("circle", { cx: x(r[key]).toFixed(1), cy: y(r).toFixed(1), r: members.length > 400 ? 1.7 : 2.6, fill: "#c2410c", style: "cursor:pointer" }, title);
      mark.addEventListener("click", () => { $("find").value = r.slide_id; filter(); $("slides").scrollIntoView(); });
      svg.append(mark);
    }
    const [q1, q2, q3] = [0.25, 0.5, 0.75].map((p) => quantile(values, p));
    for (const [color, w] of [["#fff", 4.5], ["#1c2026", 1.6]]) { // a light edge, so that the box is seen on the dots
      if (members.length >= 5) svg.append(shape("rect", { x: x(q1), y: middle - band * 0.19, width: Math.max(1, x(q3) - x(q1)), height: band * 0.38, fill: "none", stroke: color, "stroke-width": w, style: "pointer-events:none" }));
      svg.append(shape("line", { x1: x(q2), x2: x(q2), y1: middle - band * 0.27, y2: middle + band * 0.27, stroke: color, "stroke-width": w * 1.3, style: "pointer-events:none" }));
    }
  });
  return figure;
}

function distributions() {
  $("distribution-note").textContent = "Dots are slides, the box holds the middle half of a cohort, the bar is its median. Orange triangles: flagged for this statistic; orange dots: flagged for another reason. A click on one finds the slide in the table below.";
  $("plots").append(...STATISTICS.map((s) => plot(...s)));
}

// Predicted against observed share: on the diagonal the probabilities mean what they say.
function reliability(title, bins) {
  const size = 300, low = 44, span = size - low - 14, at = (v) => low + v * span, up = (v) => size - low - v * span;
  const svg = shape("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": title });
  for (const v of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(shape("line", { x1: at(v), x2: at(v), y1: up(0), y2: up(1), stroke: "#e3e7ec" }), shape("line", { x1: at(0), x2: at(1), y1: up(v), y2: up(v), stroke: "#e3e7ec" }),
      shape("text", { x: at(v), y: size - low + 17, "text-anchor": "middle" }, `${100 * v}`), shape("text", { x: low - 6, y: up(v) + 4, "text-anchor": "end" }, `${100 * v}`));
  }
  svg.append(shape("line", { x1: at(0), y1: up(0), x2: at(1), y2: up(1), stroke: "#8a8f98", "stroke-dasharray": "5 4" }),
    shape("text", { x: at(0.5), y: size - 8, "text-anchor": "middle" }, "predicted not adequate, %"), shape("text", { x: 12, y: up(0.5), "text-anchor": "middle", transform: `rotate(-90 12 ${up(0.5)})` }, "found not adequate, %"));
  for (const [p, o, n] of bins) {
    const half = 1.96 * Math.sqrt(Math.max(o * (1 - o), 0.25 / n) / n);
    svg.append(shape("line", { x1: at(p), x2: at(p), y1: up(Math.max(0, o - half)), y2: up(Math.min(1, o + half)), stroke: "#33608f" }));
  }
  svg.append(shape("polyline", { points: bins.map(([p, o]) => `${at(p).toFixed(1)},${up(o).toFixed(1)}`).join(" "), fill: "none", stroke: "#33608f", "stroke-width": 1.6 }));
  for (const [p, o, n] of bins) svg.append(shape("circle", { cx: at(p), cy: up(o), r: 4, fill: "#33608f" }, shape("title", {}, `${n} patches: predicted ${number(100 * p, 1)} %, found ${number(100 * o, 1)} %`)));
  return el("figure", {}, el("figcaption", {}, title), svg);
}

function predicted() {
  if (!D.has_estimates) { $("predicted").remove(); return; }
  const P = D.predictor, held = P.held_out || {}, own = P.own || {};
  $("predicted-note").append(`For every sampled patch the probability that a reviewer finds it not adequate (precision or recall below 75 %), from the network's probabilities, the shapes of nuclei, blur, how well outlines fit the picture, and whether the network finds the same nuclei in the picture turned and mirrored. A slide's estimate is the mean over its patches, judged ones as judged; its interval includes how far whole patients stray from their prediction. It says where to look and replaces no review. ${(P.notes || []).join(" ")}`);
  if (held.calibration) $("predicted-plots").append(reliability(`Annotated images of ${held.patients} patients not used for fitting`, held.calibration));
  if (own.calibration) $("predicted-plots").append(reliability(own.slope != null ? "Reviewers of this run, before fitting to them" : "Reviewers of this run", own.calibration));
  const rows = [["AUC: a bad patch ranks above a good one", "auc", 3], ["AUC of patches more than 15 points from 75 %", "auc_of_clear_patches", 3], ["Reviews saved of 15, at 90 % of the bad found, if 10 % are bad", "reviews_saved_of_15", 1], ["Brier score: mean squared error of the probability", "brier", 3], ["Calibration error: mean distance from the diagonal", "calibration_error", 3], ["Patches", "patches", 0]];
  const columns = [{ id: "what", name: "Figure", value: (r) => r[0] }, { id: "held", name: "Annotated images, patients held out", value: (r) => held[r[1]], digits: 3, show: (v, r) => number(v, r[2]) + (r[1] === "auc" && held.auc_interval ? ` (95 % ${number(held.auc_interval[0], 2)} to ${number(held.auc_interval[1], 2)})` : "") }];
  if (own.patches) columns.push({ id: "own", name: "Reviewers of this run", value: (r) => own[r[1]], digits: 3, show: (v, r) => number(v, r[2]) });
  table($("predicted-table"), columns, rows);
  const said = own.slope != null ? `The probabilities shown here are fitted to the ${number(P.n_judged)} patches that reviewers of this run judged.` :
    `Reviewers of this run judged ${number(P.n_judged || 0)} patches; from 30 on, with some of both kinds, the probabilities are fitted to them.`;
  const lines = Object.entries(D.corrected).map(([name, [share, low, high, judged, all]]) => `${name}: ${number(100 * share, 1)} % (95 % ${number(100 * low, 1)} to ${number(100 * high, 1)} %), ${number(judged)} of ${number(all)} judged.`);
  $("predicted-table").append(el("p", { class: "note" }, said), lines.length ? el("p", { class: "note" }, `Suspect patches were judged first. Bad share corrected for that: ${lines.join(" ")}`) : "");
  $("predicted-table").append(el("p", { class: "note" }, `Model for the network weights “${P.network}”. ${P.licence ? `Licence: ${P.licence}.` : ""}`));
}

function badness(r) {
  const grade = Math.max(0, GRADES.slice(0, 5).indexOf(r.grade));
  return (r.status === "failed" ? 1e6 : 0) + (r.verdict === "unacceptable" ? 1e5 : 0) + grade * 1e4 + (r.bad_frac || 0) * 5e3 + (r.status === "partial" || r.status === "suspect" ? 900 : 0) + (r.estimate_low > 0.2 ? 700 : 0) +
    (r.round === 1 ? 500 : r.round === 2 ? 250 : 0) + (r.tails ? r.tails.split(" ").length * 50 : 0);
}

function gives_cause(r) {
  return r.status === "failed" || r.status === "partial" || r.status === "suspect" || r.verdict === "unacceptable" || r.grade === "Problematic" || r.grade === "Unacceptable" || r.estimate_low > 0.2 || r.round > 0;
}

// Nuclei that the tissue mask left out: a share with its interval, or why there is none.
function outside(r) {
  if (r.tissue_mask === "all") return "no mask used";
  if (!finite(r.outside_frac)) return "not measured";
  const of = (v) => (finite(v) && finite(r.n_nuclei) ? number(100 * v / Math.max(1, r.n_nuclei + v), 2) : "–");
  return `${number(100 * r.outside_frac, 2)} (${of(r.outside_nuclei_low)}–${of(r.outside_nuclei_high)})`;
}

function figure_of(caption, ...images) { return el("figure", {}, el("div", { class: "layers" }, ...images), el("figcaption", {}, caption)); }

function card(r) {
  const judged = r.n_judged ? `${r.n_bad} of ${r.n_judged} patches not adequate (${number(100 * r.bad_frac, 1)} %, 95 % ${number(100 * r.low, 0)} to ${number(100 * r.high, 0)} %)` : "";
  const facts = r.status === "failed" ? `${cohortName(r.cohort)} · failed` : `${cohortName(r.cohort)} · ${number(r.n_nuclei)} nuclei · ${number(r.nuclei_per_mm2)} per mm² · mean area ${number(r.area_mean_um2, 1)} µm²`;
  const reasons = (r.reasons || (r.status === "suspect" || r.status === "failed" ? r.error : "") || "").split("; ").filter(Boolean);
  const strange = r.foreign_score > 1 ? (r.foreign_reasons || "").split("; ").filter((t) => t && !reasons.some((u) => u.includes(t))) : [];
  if (strange.length) reasons.push(`unlike the training images (score ${number(r.foreign_score, 1)}, flagged above 1): ${strange.join(", ")}`);
  const guess = finite(r.estimate) && !(r.n_judged && r.n_judged === r.n_sampled) ? `Estimated ${number(100 * r.estimate, 0)} % of patches bad (95 % ${number(100 * r.estimate_low, 0)} to ${number(100 * r.estimate_high, 0)} %)` : "";
  const share = outside(r), mask = r.status === "failed" ? "" : `Nuclei outside the mask: ${share}${finite(r.outside_frac) && r.tissue_mask !== "all" ? " %" : ""} · unlike the training images: ${finite(r.foreign_score) ? number(r.foreign_score, 1) : "not measured"}`;
  const picture = D.pictures[r.slide_id], pair = el("div", { class: "pair" });
  if (picture && picture.thumb) {
    const wide = picture.width_mm ? `${number(picture.width_mm, 1)} mm wide` : "", alt = `Thumbnail of ${r.slide_id}`;
    pair.append(picture.mask ? figure_of(`${wide ? `${wide}. ` : ""}Tissue mask outlined`, el("img", { class: "masked", src: picture.mask, alt: `${alt} with its tissue mask` }), el("img", { class: "bare", src: picture.thumb, alt })) : figure_of(wide || "Thumbnail", el("img", { src: picture.thumb, alt })));
    if (picture.density) pair.append(figure_of(`Nuclei per mm²: pale 0, dark ${number(picture.density_max)}`, el("img", { src: picture.density, alt: `Nuclear density of ${r.slide_id}` })));
  } else if (picture && r.status !== "failed") pair.append(el("p", { class: "missing" }, picture.error || "No picture."));
  const link = D.review ? el("a", { class: "to-review", href: `${D.review}/?slide=${encodeURIComponent(r.slide_id)}`, target: "_blank", rel: "noopener", title: "opens where `wsiseg qc review` of this run is running on this computer" }, "Review") : "";
  return el("article", { class: r.round > 0 || r.status === "failed" || r.grade === "Unacceptable" ? "card bad" : "card", "data-slide": r.slide_id }, el("h3", {}, el("span", {}, r.slide_id), pill(r.grade), link), el("div", { class: "facts" }, facts), pair.childElementCount ? pair : "",
    judged ? el("div", {}, judged) : "", guess ? el("div", {}, guess) : "", mask ? el("div", {}, mask) : "", reasons.length ? el("ul", {}, ...reasons.map((t) => el("li", {}, t))) : "", r.verdict ? el("div", {}, `Reviewed whole: ${r.verdict}. ${r.comment || ""}`) : "");
}

function worst() {
  const order = ROWS.filter(gives_cause).map((r) => [badness(r), r]).sort((a, b) => b[0] - a[0] || (a[1].slide_id < b[1].slide_id ? -1 : 1)).map(([, r]) => r);
  const list = order.concat(ROWS.filter((r) => D.pictures[r.slide_id] && !order.includes(r))); // small runs come with all pictures
  $("worst-note").textContent = order.length ? `${number(order.length)} of ${number(ROWS.length)} slides give cause to look: failed, suspect, judged or surely predicted bad, or standing out in their cohort. The worst come first${order.length > D.n_pictures ? `; the first ${D.n_pictures} with pictures` : ""}.` :
    D.has_outliers ? `No slide gives cause to look.${list.length ? " All are shown." : ""}` : "Outliers have not been sought yet (wsiseg qc outliers).";
  let shown = 0;
  const more = (n) => { $("cards").append(...list.slice(shown, shown + n).map(card)); shown = Math.min(list.length, shown + n); $("more-cards").hidden = shown >= list.length; $("more-cards").textContent = `Show more (${number(list.length - shown)} left)`; };
  more(36);
  $("more-cards").addEventListener("click", () => more(36));
  addEventListener("beforeprint", () => more(Math.max(0, Math.min(60, list.length) - shown)));
  if (D.review) $("worst-note").append(" “Review” on a card opens that slide on the review page, on the computer where `wsiseg qc review` of this run is running.");
  if (list.length > 60) $("cards").before(el("p", { class: "note print-only" }, `The first 60 of ${number(list.length)} are printed.`));
  if (list.some((r) => (D.pictures[r.slide_id] || {}).mask)) $("masks").addEventListener("change", () => document.body.classList.toggle("no-masks", !$("masks").checked));
  else $("mask-control").remove();
}

function patches() {
  if (!D.patches.length) { $("patches").remove(); return; }
  $("patch-note").textContent = `${number(D.patches.length)} of ${number(D.n_patches)} random patches, 64 µm wide; those judged not adequate come first, then unsure, then a sample of the rest.`;
  const words = { adequate: "adequate", not_adequate: "not adequate", unsure: "unsure", "": "not judged" };
  $("patch-grid").append(...D.patches.map((p) => el("div", { class: `patch ${p.word}` }, el("div", {}, el("img", { src: p.tissue, alt: `Patch of ${p.slide_id}` }), el("img", { src: p.layer, alt: "" })), `${p.slide_id}: ${words[p.word]}, ${number(p.n_nuclei)} nuclei${finite(p.fail_prob) ? `, ${number(100 * p.fail_prob)} % likely bad` : ""}`)));
  $("contours").addEventListener("change", () => document.body.classList.toggle("plain", !$("contours").checked));
}

let slideTable = null;
function filter() {
  const text = $("find").value.trim().toLowerCase(), cohort = $("by-cohort").value, kind = $("by-kind").value;
  const rows = ROWS.filter((r) => (cohort === "*" || r.cohort === cohort) &&
    (kind === "*" || (kind === "flagged" && r.round > 0) || (kind === "failed" && (r.status === "failed" || r.status === "partial")) || (kind === "none" && r.status !== "failed" && !r.n_nuclei) || r.grade === kind) &&
    (!text || `${r.slide_id} ${r.cohort} ${r.reasons} ${r.note} ${r.error} ${r.grade} ${r.foreign_reasons}`.toLowerCase().includes(text)));
  slideTable.rows(rows);
  $("shown").textContent = `${number(rows.length)} of ${number(ROWS.length)} slides`;
}
function slides() {
  const names = [...new Set(ROWS.map((r) => r.cohort))].sort();
  $("by-cohort").append(el("option", { value: "*" }, "all"), ...names.map((n) => el("option", { value: n }, cohortName(n))));
  $("by-kind").append(el("option", { value: "*" }, "all slides"), el("option", { value: "flagged" }, "outliers"), el("option", { value: "failed" }, "failed or partly failed"), el("option", { value: "none" }, "without nuclei"), ...(D.has_grades ? GRADES.map((g) => el("option", { value: g }, g)) : []));
  const columns = [
    { id: "slide_id", key: "slide_id", name: "Slide", class: "name" }, { id: "cohort", key: "cohort", name: "Cohort" }, { id: "status", key: "status", name: "Status" },
    ...(D.has_grades ? [{ id: "grade", name: "Grade", value: (r) => GRADES.indexOf(r.grade), show: (_, r) => pill(r.grade) }, { id: "bad", name: "Bad patches", value: (r) => r.bad_frac, digits: 1, show: (v, r) => (r.n_judged ? `${r.n_bad} / ${r.n_judged}` : "–") }] : []),
    ...(D.has_estimates ? [{ id: "estimate", key: "estimate", name: "Estimated bad %", digits: 1, title: "judged patches as judged, the others as predicted; 95 % interval", show: (v, r) => (finite(v) ? `${number(100 * v)} (${number(100 * r.estimate_low)}–${number(100 * r.estimate_high)})` : "–") }] : []),
    { id: "n_nuclei", key: "n_nuclei", name: "Nuclei", digits: 0 }, { id: "nuclei_per_mm2", key: "nuclei_per_mm2", name: "per mm²", digits: 0 }, { id: "tissue_mm2", key: "tissue_mm2", name: "Tissue mm²", digits: 1 },
    { id: "outside", name: "Outside the mask %", value: (r) => (r.tissue_mask === "all" ? null : r.outside_frac), digits: 2, title: "nuclei outside the tissue mask, of all, estimated from sampled windows; 95 % interval", show: (_, r) => el("span", { class: "short" }, outside(r)) },
    { id: "foreign", name: "Unlike training", value: (r) => r.foreign_score, digits: 1, title: "how unlike the training images the slide looks; flagged above 1", show: (v) => el("span", { class: "short" }, finite(v) ? number(v, 1) : "not measured") },
    { id: "area_mean_um2", key: "area_mean_um2", name: "Mean area µm²", digits: 1 }, { id: "area_std_um2", key: "area_std_um2", name: "Spread µm²", digits: 1 }, { id: "seconds", key: "seconds", name: "Seconds", digits: 1 },
    { id: "reasons", name: "Why flagged, or why it failed", class: "wide", value: (r) => r.reasons || r.error || r.note || "" },
  ];
  slideTable = table($("slide-table"), columns, ROWS, { sort: "slide_id", flag: (r) => r.round > 0 });
  if (ROWS.length > 500) $("slide-table").before(el("p", { class: "note print-only" }, "At most 500 slides are printed: find, filter or sort on the screen to choose which."));
  decisions();
  for (const id of ["find", "by-cohort", "by-kind"]) $(id).addEventListener("input", filter);
  filter();
}

// The table of all decisions: from the page itself, or the file beside it where it is too large for that.
function decisions() {
  const link = $("decisions");
  if (!D.decisions_file) { link.remove(); return; }
  link.setAttribute("download", D.decisions_file);
  link.href = encodeURIComponent(D.decisions_file);
  if (!D.decisions) { link.textContent += ` (${D.decisions_file}, beside this report)`; return; }
  link.addEventListener("click", async (event) => {
    if (link.href.startsWith("blob:")) return;
    event.preventDefault();
    const packed = Uint8Array.from(atob(D.decisions), (c) => c.charCodeAt(0));
    const plain = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
    link.href = URL.createObjectURL(new Blob([plain], { type: "text/csv;charset=utf-8" }));
    link.click();
  });
}

function errors() {
  if (!D.errors.length) { $("error-table").append(el("p", { class: "note" }, "No slide and no tile failed.")); return; }
  table($("error-table"), [{ id: "slide_id", key: "slide_id", name: "Slide", class: "name" }, { id: "tile_id", name: "Tile", value: (r) => r.tile_id, digits: 0, show: (v) => (v < 0 ? "whole slide" : number(v)) },
    { id: "x_px", key: "x_px", name: "x px", digits: 0 }, { id: "y_px", key: "y_px", name: "y px", digits: 0 }, { id: "attempts", key: "attempts", name: "Tries", digits: 0 }, { id: "error", key: "error", name: "Reason", class: "wide" }], D.errors);
}

function timings() {
  const stages = ["read", "normalize", "predict", "separate", "vectorize", "write"], colors = ["#33608f", "#7aa6c2", "#c2410c", "#8a6fb0", "#4f9d69", "#8a8f98"];
  const sums = stages.map((s) => D.seconds[s] || 0), total = sums.reduce((a, b) => a + b, 0), mm2 = ROWS.reduce((s, r) => s + (r.tissue_mm2 || 0), 0);
  if (!total) { $("time-plot").append(el("p", { class: "note" }, "No times were recorded.")); return; }
  const svg = shape("svg", { viewBox: "0 0 1000 34", role: "img", "aria-label": "Time by stage" });
  let x = 0;
  sums.forEach((s, i) => { const w = 1000 * s / total; if (w > 0) svg.append(shape("rect", { x, y: 2, width: w, height: 26, fill: colors[i] }, shape("title", {}, `${stages[i]}: ${number(s, 1)} s`))); x += w; });
  $("time-plot").append(svg);
  table($("time-table"), [{ id: "stage", name: "Stage", value: (r) => r.stage, show: (v, r) => el("span", {}, el("span", { style: `display:inline-block;width:.8em;height:.8em;background:${r.color};margin-right:.5em` }), v) }, { id: "seconds", key: "seconds", name: "Seconds, summed over workers", digits: 1 }, { id: "share", key: "share", name: "%", digits: 1 }, { id: "per", key: "per", name: "Seconds per mm²", digits: 3 }],
    stages.map((stage, i) => ({ stage, color: colors[i], seconds: sums[i], share: 100 * sums[i] / total, per: sums[i] / mm2 })), { foot: { stage: "all", color: "transparent", seconds: total, share: 100, per: total / mm2 } });
}

function provenance() {
  $("provenance-table").append(el("table", {}, el("tbody", {}, ...D.provenance.map(([k, v]) => el("tr", {}, el("th", { class: "text", scope: "row" }, k), el("td", { class: "text" }, String(v)))))));
}

$("title").textContent = D.title;
$("subtitle").textContent = D.subtitle;
for (const draw of [overview, cohorts, distributions, predicted, worst, patches, slides, errors, timings, provenance]) draw();
for (const section of document.querySelectorAll("main > section")) {
  section.prepend(el("h2", {}, section.dataset.title));
  document.querySelector("nav").append(el("a", { href: `#${section.id}` }, section.dataset.title));
}
document.body.dataset.ready = String(Math.round(performance.now()));
