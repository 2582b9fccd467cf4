"use strict";
// A whole slide on a canvas: 256 px tiles of the level that fits the zoom, and the polygons of the view above them.
class SlideViewer {
  constructor(canvas, hint, scaleBar) {
    this.canvas = canvas; this.hint = hint; this.scaleBar = scaleBar;
    this.base = ""; this.info = null; this.tiles = new Map(); this.shapes = null; this.contours = true;
    this.x = 0; this.y = 0; this.scale = 1; // level-0 px at the canvas corner; canvas px per level-0 px
    this.wanted = 0; this.timer = 0; this.drawing = false; this.onmoved = () => {};
    this.heatOn = false; this.heat = null; this.onheat = () => {}; // predicted quality: told to the page when it comes
    let drag = null;
    canvas.addEventListener("pointerdown", (e) => { drag = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointerup", () => { drag = null; });
    canvas.addEventListener("pointermove", (e) => {
      if (!drag || !this.info) return;
      const k = devicePixelRatio / this.scale;
      this.x -= (e.clientX - drag[0]) * k; this.y -= (e.clientY - drag[1]) * k;
      drag = [e.clientX, e.clientY];
      this.moved();
    });
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      this.zoom(e.deltaY < 0 ? 1.25 : 0.8, e.offsetX * devicePixelRatio, e.offsetY * devicePixelRatio);
    }, { passive: false });
  }

  open(base, info, view = null) { // view: [x, y, scale] where the slide was left, or null for all of it
    if (this.base !== base) { this.tiles.clear(); this.shapes = null; }
    if (this.base !== base) { this.heat = null; this.onheat(null); }
    this.base = base; this.info = info;
    if (this.heatOn) this.fetchHeat();
    this.resize(); this.fit();
    if (view) { [this.x, this.y, this.scale] = view; this.moved(); }
  }

  clear() {
    this.info = null; this.base = ""; this.tiles.clear(); this.shapes = null; this.heat = null; this.onheat(null);
    this.hint.textContent = ""; this.scaleBar.hidden = true;
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width) return;
    this.canvas.width = Math.round(box.width * devicePixelRatio);
    this.canvas.height = Math.round(box.height * devicePixelRatio);
    if (this.info) this.moved();
  }

  fit() {
    if (!this.info) return;
    const { width_px: w, height_px: h } = this.info;
    this.scale = 0.96 * Math.min(this.canvas.width / w, this.canvas.height / h);
    this.x = (w - this.canvas.width / this.scale) / 2;
    this.y = (h - this.canvas.height / this.scale) / 2;
    this.moved();
  }

  zoom(factor, cx = this.canvas.width / 2, cy = this.canvas.height / 2) {
    if (!this.info) return;
    const least = 0.5 * Math.min(this.canvas.width / this.info.width_px, this.canvas.height / this.info.height_px);
    const scale = Math.min(8, Math.max(least, this.scale * factor));
    this.x += cx / this.scale - cx / scale; this.y += cy / this.scale - cy / scale;
    this.scale = scale;
    this.moved();
  }

  pan(dx, dy) {
    if (!this.info) return;
    this.x += dx * this.canvas.width / this.scale; this.y += dy * this.canvas.height / this.scale;
    this.moved();
  }

  showHeat(on) {
    this.heatOn = on;
    if (on && this.info && !this.heat) this.fetchHeat();
    this.onheat(on ? this.heat : null);
    this.redraw();
  }

  async fetchHeat() {
    const base = this.base;
    let heat;
    try {
      const answer = await fetch(`${base}/quality`), facts = await answer.json();
      if (answer.ok) {
        const image = new Image();
        image.src = `${base}/quality.png`;
        await image.decode();
        heat = { ...facts, image };
      } else heat = { error: facts.error };
    } catch { heat = { error: "The server does not answer." }; }
    if (base !== this.base) return; // another slide since
    this.heat = heat;
    if (this.heatOn) this.onheat(heat);
    this.redraw();
  }

  drawHeat(g) {
    const { image, cell_px: cell, w, h, patches } = this.heat, k = this.scale;
    g.save();
    g.beginPath();
    g.rect(-this.x * k, -this.y * k, this.info.width_px * k, this.info.height_px * k);
    g.clip(); // the last cells reach beyond the slide
    g.imageSmoothingEnabled = false;
    g.drawImage(image, -this.x * k, -this.y * k, w * cell * k, h * cell * k);
    g.restore();
    g.font = `600 ${13 * devicePixelRatio}px system-ui, "DejaVu Sans", sans-serif`;
    for (const [x, y, side, p] of patches) {
      const left = (x - this.x) * k, up = (y - this.y) * k, width = Math.max(6 * devicePixelRatio, side * k);
      for (const [color, line] of [["#fff", 5], [p > 0.5 ? "#b71c1c" : "#00695c", 2.5]]) {
        g.strokeStyle = color; g.lineWidth = line * devicePixelRatio; g.strokeRect(left, up, width, width);
      }
      if (width > 60 * devicePixelRatio) {
        const text = `${Math.round(100 * p)} % likely not adequate`;
        g.lineWidth = 4 * devicePixelRatio; g.strokeStyle = "#fff"; g.strokeText(text, left + 4, up - 7); g.fillStyle = "#111"; g.fillText(text, left + 4, up - 7);
      }
    }
  }

  showContours(on) { this.contours = on; if (this.info) this.moved(); }

  moved() {
    this.redraw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.fetchShapes(); this.onmoved(); }, 120);
  }

  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => { this.drawing = false; if (this.info) this.draw(); });
  }

  tile(level, column, row) {
    const url = `${this.base}/tile/${level}/${column}/${row}.jpg`;
    let image = this.tiles.get(url);
    if (image) { this.tiles.delete(url); this.tiles.set(url, image); return image; } // most recent last
    image = new Image();
    image.onload = () => this.redraw();
    image.onerror = () => { image.failed = true; };
    image.src = url;
    this.tiles.set(url, image);
    while (this.tiles.size > 400) this.tiles.delete(this.tiles.keys().next().value);
    return image;
  }

  draw() {
    const g = this.canvas.getContext("2d"), { width_px: w, height_px: h, max_level: top } = this.info;
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.fillStyle = "#e4e6ea"; g.fillRect(0, 0, this.canvas.width, this.canvas.height);
    g.fillStyle = "#fff";
    g.fillRect(-this.x * this.scale, -this.y * this.scale, w * this.scale, h * this.scale);
    const level = Math.min(top, Math.max(0, Math.floor(Math.log2(1 / this.scale) + 0.3)));
    g.save();
    g.beginPath();
    g.rect(-this.x * this.scale, -this.y * this.scale, w * this.scale, h * this.scale);
    g.clip(); // tiles at the border reach beyond the slide
    for (const at of [Math.min(top, level + 3), level]) this.drawLevel(g, at); // coarse below, so that nothing is blank
    g.restore();
    if (this.heatOn && this.heat && this.heat.image) this.drawHeat(g);
    if (this.contours && this.shapes && this.showsNuclei()) this.drawShapes(g);
    this.drawScale();
  }

  drawLevel(g, level) {
    const side = 256 * 2 ** level, { width_px: w, height_px: h } = this.info;
    const x1 = Math.min(w, this.x + this.canvas.width / this.scale), y1 = Math.min(h, this.y + this.canvas.height / this.scale);
    for (let row = Math.max(0, Math.floor(this.y / side)); row * side < y1; row++) {
      for (let column = Math.max(0, Math.floor(this.x / side)); column * side < x1; column++) {
        const image = this.tile(level, column, row);
        if (!image.complete || image.failed || !image.naturalWidth) continue;
        const left = Math.round((column * side - this.x) * this.scale), up = Math.round((row * side - this.y) * this.scale);
        const right = Math.round(((column + 1) * side - this.x) * this.scale), down = Math.round(((row + 1) * side - this.y) * this.scale);
        g.drawImage(image, left, up, right - left, down - up);
      }
    }
  }

  showsNuclei() { return this.scale >= 0.2 && Math.max(this.canvas.width, this.canvas.height) / this.scale <= 16000; }

  async fetchShapes() {
    if (!this.info) return;
    if (!this.showsNuclei()) { this.hint.textContent = this.contours ? "Zoom in (+) to see the contours." : ""; return; }
    this.hint.textContent = "";
    const w = Math.ceil(this.canvas.width / this.scale), h = Math.ceil(this.canvas.height / this.scale), turn = ++this.wanted;
    const view = `x=${Math.floor(this.x)}&y=${Math.floor(this.y)}&w=${w}&h=${h}`;
    try {
      const answer = await fetch(`${this.base}/nuclei?${view}`);
      if (!answer.ok) { this.hint.textContent = "The contours of this view cannot be read."; return; }
      const data = await answer.arrayBuffer();
      if (turn !== this.wanted) return; // the view has moved on
      const [n, v, all] = new Uint32Array(data, 0, 3);
      this.shapes = n ? { offsets: new Uint32Array(data, 12, n + 1), xy: new Float32Array(data, 12 + 4 * (n + 1), 2 * v) } : null;
      if (all > n) this.hint.textContent = `${n.toLocaleString("en")} of ${all.toLocaleString("en")} contours are drawn: zoom in (+) to see all.`;
      this.redraw();
    } catch { this.hint.textContent = "The server does not answer."; }
  }

  drawShapes(g) {
    const { offsets, xy } = this.shapes, k = this.scale, path = new Path2D();
    for (let i = 0; i + 1 < offsets.length; i++) {
      let at = 2 * offsets[i];
      const end = 2 * offsets[i + 1];
      path.moveTo((xy[at] - this.x) * k, (xy[at + 1] - this.y) * k);
      for (at += 2; at < end; at += 2) path.lineTo((xy[at] - this.x) * k, (xy[at + 1] - this.y) * k);
    }
    const width = Math.max(1, Math.min(2, k * 2)) * devicePixelRatio;
    g.strokeStyle = "rgba(0,40,20,.75)"; g.lineWidth = width * 2; g.stroke(path);
    g.strokeStyle = "#00e676"; g.lineWidth = width; g.stroke(path);
  }

  drawScale() {
    const mpp = this.info.mpp;
    this.scaleBar.hidden = !mpp;
    if (!mpp) return;
    const perUm = this.scale / mpp / devicePixelRatio; // css px per um
    let um = 1;
    for (const step of [2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]) if (step * perUm < 160) um = step;
    this.scaleBar.firstElementChild.style.width = `${um * perUm}px`;
    this.scaleBar.lastElementChild.textContent = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
  }
}
