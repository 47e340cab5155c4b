// The page: what is looked at, and what a person does about it. draw.js draws, the engine (remote.js) computes.
import * as engine from './engine.js';
import {BUDGET, Painter, visible} from './draw.js';
import {PlainPainter} from './plain.js';

const $ = id => document.getElementById(id);
const stage = $('stage'), rings = $('rings');
const STILL = 150;       // ms without movement after which an address is kept, or a plain view rendered
const CLOSEST = 1024;    // the largest scale
const AT_ONCE = 2;       // tiles asked for: one is computed, and one waits, so that the server is never idle
const OPENING = 6;       // the scale of the first view: what LIIF adds is seen best from x4 to x8
const RING = 44;         // CSS pixels of a tile on the screen, below which it gets no ring
const FLIGHT = 7000;     // ms from the whole image to the depth, or back
const DEPTH = 60;        // the scale there
const NAMES = {liif: 'LIIF', bicubic: 'bicubic', nearest: 'nearest'};
const ratio = () => window.devicePixelRatio || 1;
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
const still = matchMedia('(prefers-reduced-motion: reduce)');
const light = matchMedia('(prefers-color-scheme: light)');

let start = {}, model = null, picture = null, bitmap = null, painter = null, accelerated = true;
let view = {x: 0, y: 0, s: 1};  // centre in pixels of the image; pixels of the screen per pixel of the image
let goal = null;                // a zoom under way: {s, px, py}, towards scale s around a point of the screen
let flight = null;              // a flight under way
let modelChosen = false;        // by hand: other images are shown with it, too
let beside = false, divider = .5, simple = 'bicubic', flipped = false, timer = 0, queued = false;
const tiles = {asked: new Map(), failed: new Set(), missing: []};  // asked: tile -> AbortController
const frames = {count: 0};      // drawn since the page began, for whoever measures

// Where things are. All positions are in pixels of the screen, of which a CSS pixel has `ratio()`.

function panes() {
  const W = stage.width, half = Math.floor(W / 2), kinds = flipped ? ['liif', simple] : [simple, 'liif'];
  const cut = Math.round(W * divider);
  const found = beside ? [{left: 0, right: half, centre: half / 2, width: half},
                          {left: half, right: 2 * half, centre: half * 1.5, width: half}]
    : [{left: 0, right: cut, centre: W / 2, width: W}, {left: cut, right: W, centre: W / 2, width: W}];
  return found.map((pane, i) => ({...pane, kind: kinds[i]}));
}
const paneAt = px => { const [a, b] = panes(); return beside && px < a.right ? a : b; };
const fitting = () => Math.min(panes()[1].width / picture.width, Math.max(1, stage.height - 150 * ratio()) /
  picture.height);
const isWhole = () => picture && Math.abs(view.s / fitting() - 1) < 1e-3;
const lowest = () => Math.min(fitting(), 1) / 2;
const middle = () => [panes()[1].centre, stage.height / 2];

// What a pane shows of the image: where in the image, and how large on the screen.
function inView() {
  const {width} = panes()[1], {x, y, s} = view;
  const ox = width / 2 - x * s, oy = stage.height / 2 - y * s;
  const left = Math.max(0, Math.round(ox)), right = Math.min(width, Math.round(ox + picture.width * s));
  const top = Math.max(0, Math.round(oy)), bottom = Math.min(stage.height, Math.round(oy + picture.height * s));
  const part = {columns: right - left, rows: bottom - top,
    x: Math.max(0, (left - ox) / s), y: Math.max(0, (top - oy) / s)};
  part.w = Math.min(picture.width - part.x, part.columns / s);
  part.h = Math.min(picture.height - part.y, part.rows / s);
  return part.columns > 0 && part.rows > 0 ? part : null;
}

// Moving.

function moved() {
  view.x = clamp(view.x, 0, picture.width);
  view.y = clamp(view.y, 0, picture.height);
  view.s = clamp(view.s, lowest(), CLOSEST);
  clearTimeout(timer);
  timer = setTimeout(settled, STILL);
  document.body.dataset.state = 'moving';
  redraw();
}
function settled() {
  if (!picture) return;
  remember();
  tiles.failed.clear();  // another try
  if (usesTiles()) fetchTiles();
  else if (engine.render) renderPlain();
  else document.body.dataset.state = 'done';
}
function zoomTo(s, px, py) {  // the point under (px, py) stays where it is
  const pane = paneAt(px), dx = px - pane.centre, dy = py - stage.height / 2;
  s = clamp(s, lowest(), CLOSEST);
  view.x += dx / view.s - dx / s;
  view.y += dy / view.s - dy / s;
  view.s = s;
  moved();
}
function zoomBy(factor, px, py) {
  stopFlight();
  const s = clamp((goal ? goal.s : view.s) * factor, lowest(), CLOSEST);
  if (still.matches) return zoomTo(s, px, py);
  const before = goal;
  goal = {s, px, py, time: before ? before.time : performance.now()};
  if (!before) requestAnimationFrame(glide);
}
function glide(now) {
  if (!goal) return;
  goal.s = Math.max(goal.s, lowest());  // of a window that was enlarged meanwhile
  const share = 1 - Math.exp(-Math.max(now - goal.time, 1) / 60), left = Math.log(goal.s / view.s);
  goal.time = now;
  const done = Math.abs(left) < .003;
  zoomTo(done ? goal.s : view.s * Math.exp(left * share), goal.px, goal.py);
  if (done) goal = null; else requestAnimationFrame(glide);
}
function fit() {
  goal = null;
  view = {x: picture.width / 2, y: picture.height / 2, s: fitting()};
  moved();
}

// The zoom of the paper's project page: from the whole image down to a point, and back.
function fly() {
  if (flight) return stopFlight();
  goal = null;
  const low = fitting(), place = view.s > 1.5 * low ? {x: view.x, y: view.y} : telling();
  flight = {begun: performance.now(), low, deep: Math.max(DEPTH, 4 * low), place};
  $('fly').setAttribute('aria-pressed', true);
  requestAnimationFrame(soar);
}
function soar(now) {
  if (!flight) return;
  const t = Math.max(0, now - flight.begun) / FLIGHT, {low, deep, place} = flight;
  if (t >= 2) { stopFlight(); return fit(); }
  const share = (1 - Math.cos(Math.PI * t)) / 2;  // 0, 1, 0 at t = 0, 1, 2, at rest each time
  view.s = low * (deep / low) ** share;
  // The place moves into the middle no faster than the image grows, so that it is never lost from sight.
  const near = low * (1 / low - 1 / view.s) / (1 - low / deep);
  view.x = picture.width / 2 + (place.x - picture.width / 2) * near;
  view.y = picture.height / 2 + (place.y - picture.height / 2) * near;
  moved();
  requestAnimationFrame(soar);
}
function stopFlight() {
  flight = null;
  $('fly').setAttribute('aria-pressed', false);
}

// The place with the most detail, away from the border: the centre of the square with the largest sum of gradients.
function telling() {
  const k = Math.min(1, 256 / Math.max(picture.width, picture.height));
  const [w, h] = [picture.width, picture.height].map(n => Math.max(1, Math.round(n * k)));
  const pen = new OffscreenCanvas(w, h).getContext('2d');
  pen.drawImage(bitmap, 0, 0, w, h);
  const {data} = pen.getImageData(0, 0, w, h), grey = i => data[4 * i] + 2 * data[4 * i + 1] + data[4 * i + 2];
  const cell = 16, across = Math.max(1, Math.floor(w / cell)), sums = new Map();
  for (let y = 1; y < h; y++) {
    for (let x = 1; x < w; x++) {
      const i = y * w + x, key = Math.floor(y / cell) * across + Math.min(across - 1, Math.floor(x / cell));
      sums.set(key, (sums.get(key) || 0) + Math.abs(grey(i) - grey(i - 1)) + Math.abs(grey(i) - grey(i - w)));
    }
  }
  const [best] = [...sums].reduce((a, b) => (b[1] > a[1] ? b : a), [0, -1]);
  const at = {x: ((best % across) + .5) * cell / k, y: (Math.floor(best / across) + .5) * cell / k};
  return {x: clamp(at.x, 0, picture.width), y: clamp(at.y, 0, picture.height)};
}

// The lattice.

const usesTiles = () => accelerated && model.lattice;

// The tiles in view, the one in the middle first, as many as the memory holds.
function wanted() {
  if (view.s <= 1) return [];
  const all = new Map(), {tile, steps} = model;
  for (const pane of panes()) {
    const screen = {s: view.s, ox: pane.centre - view.x * view.s, oy: stage.height / 2 - view.y * view.s,
      left: beside ? pane.left : 0, right: beside ? pane.right : stage.width, height: stage.height};
    for (const place of visible(screen, [picture.width, picture.height], tile)) all.set(place.join(), place);
  }
  const far = ([row, column]) => Math.hypot((column + .5) * tile - view.x, (row + .5) * tile - view.y);
  const most = Math.floor(BUDGET / (6 * (tile * steps.at(-1) + 1) ** 2));
  return [...all.values()].sort((a, b) => far(a) - far(b)).slice(0, most);
}
// Ask for what is missing: first a draft of all tiles, then the final ones.
function fetchTiles() {
  const seen = wanted(), keys = new Set(seen.map(place => place.join())), {steps} = model;
  for (const place of [...seen].reverse()) painter.touch(...place);
  for (const [key, call] of tiles.asked) if (!keys.has(key)) call.abort();
  tiles.missing = seen.filter(([row, column]) => !painter.steps(row, column));
  const rough = seen.filter(([row, column]) => painter.steps(row, column) < steps.at(-1));
  const able = rough.filter(place => !tiles.failed.has(place.join()));
  able.sort((a, b) => Boolean(painter.steps(...a)) - Boolean(painter.steps(...b)));
  for (const [row, column] of able) {
    if (tiles.asked.size >= AT_ONCE) break;
    const key = `${row},${column}`, next = steps.find(n => n > painter.steps(row, column));
    if (!tiles.asked.has(key)) fetchTile(row, column, next, key);
  }
  document.body.dataset.state = able.length ? 'working' : rough.length ? 'failed' : 'done';
  const drafts = seen.length - tiles.missing.length;
  const what = tiles.missing.length ? [drafts, 'drafts'] : [seen.length - rough.length, 'tiles'];
  if (able.length) say(`${what[0]} of ${seen.length} ${what[1]}`, 0, 'loading');
  else say('', 3000, $('spoken').textContent === 'loading' && !rough.length ? 'loaded' : '');
  redraw();
}
async function fetchTile(row, column, steps, key) {
  const call = new AbortController(), mine = [picture, model];
  const current = () => mine[0] === picture && mine[1] === model && usesTiles();
  tiles.asked.set(key, call);
  try {
    const data = await engine.tile(picture, model.name, row, column, steps, call.signal);
    if (current()) painter.put(row, column, steps, data);
  } catch (error) {
    if (error.name !== 'AbortError' && current()) {
      tiles.failed.add(key);
      toast(error.message);
    }
  }
  if (tiles.asked.get(key) === call) tiles.asked.delete(key);
  if (current()) fetchTiles();
}
function forgetTiles() {
  for (const call of tiles.asked.values()) call.abort();
  tiles.asked.clear();
  tiles.failed.clear();
  painter.clear(model.lattice && {tile: model.tile});
}

// Without WebGL2 or without a lattice: the server renders what is in view.
let plainCall = null;
async function renderPlain() {
  const part = inView(), mine = picture;
  if (plainCall) plainCall.abort();
  if (!part) return;
  const call = plainCall = new AbortController();
  document.body.dataset.state = 'working';
  say('rendering');
  try {
    const found = await engine.render(picture, model.name, part, call.signal);
    if (mine !== picture || plainCall !== call) return;
    painter.put(found, part);
    if (document.body.dataset.state === 'working') document.body.dataset.state = 'done';  // not if it has moved since
    say('');
    redraw();
  } catch (error) {
    if (error.name === 'AbortError') return;
    document.body.dataset.state = 'failed';
    say('');
    toast(error.message);
  }
}

// Drawing.

function redraw() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; draw(); });
}
function ground() {
  return getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3).map(v => v / 255);
}
function draw() {
  if (!painter) return;
  frames.count++;
  painter.draw(view, picture ? panes() : [], ground(), ratio());
  if (!picture) return;
  const {s} = view, [left, right] = panes();
  $('divider').style.left = left.right / ratio() + 'px';
  $('divider').setAttribute('aria-valuenow', Math.round(100 * (beside ? .5 : divider)));
  $('divider').querySelector('.before').textContent = NAMES[left.kind];
  $('divider').querySelector('.after').textContent = NAMES[right.kind];
  $('scale').textContent = '×' + (s < 9.995 ? s.toFixed(2) : s < 99.95 ? s.toFixed(1) : s.toFixed(0));
  drawRings();
  drawMap();
}
let turning = 0;
function drawRings() {  // on each tile that is missing: turning where it is being computed
  const pen = rings.getContext('2d'), k = ratio();
  rings.hidden = !usesTiles() || !tiles.missing.length || model.tile * view.s < RING * k;  // a layer costs time
  if (rings.hidden) return;
  pen.clearRect(0, 0, rings.width, rings.height);
  const {width, height} = picture, pane = panes().find(p => p.kind === 'liif'), {tile} = model;
  const turn = performance.now() / 400;
  let working = false;
  pen.lineWidth = 2.5 * k;
  for (const [row, column] of tiles.missing) {
    const key = `${row},${column}`;
    const x = (Math.max(0, column * tile - .5) + Math.min(width, (column + 1) * tile - .5)) / 2;
    const y = (Math.max(0, row * tile - .5) + Math.min(height, (row + 1) * tile - .5)) / 2;
    const px = pane.centre + (x - view.x) * view.s, py = stage.height / 2 + (y - view.y) * view.s;
    if (px < pane.left || px > pane.right) continue;
    const asked = tiles.asked.has(key);
    const arc = asked ? ['#fff', turn, turn + 4] : ['#fff5', 0, 7];
    for (const [colour, from, to] of [['#0006', 0, 7], arc]) {
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.arc(px, py, 9 * k, from, to);
      pen.stroke();
    }
    working = working || asked;
  }
  clearTimeout(turning);
  if (working && !still.matches) turning = setTimeout(redraw, 40);
}
function drawMap() {  // where the view is in the image, once it no longer shows all of it
  const part = inView(), map = $('map'), k = ratio();
  const shown = part && part.w * part.h < .6 * picture.width * picture.height;
  map.hidden = !shown;
  if (!shown) return;
  const scale = 132 * k / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map(n => Math.max(1, Math.round(n * scale)));
  const pen = map.getContext('2d');
  if (map.width !== width || map.height !== height || map.of !== bitmap) {
    Object.assign(map, {width, height, of: bitmap, small: new OffscreenCanvas(width, height)});
    const small = map.small.getContext('2d');  // reduced once: it is drawn in every frame
    small.imageSmoothingQuality = 'high';
    small.drawImage(bitmap, 0, 0, width, height);
  }
  map.style.width = width / k + 'px';
  pen.clearRect(0, 0, width, height);
  pen.drawImage(map.small, 0, 0);
  pen.fillStyle = '#0007';
  pen.beginPath();
  pen.rect(0, 0, width, height);
  const w = Math.max(part.w * scale, 3 * k), h = Math.max(part.h * scale, 3 * k);
  const cx = (part.x + part.w / 2) * scale, cy = (part.y + part.h / 2) * scale;
  pen.rect(cx - w / 2, cy - h / 2, w, h);
  pen.fill('evenodd');
  pen.strokeStyle = '#fff';
  pen.lineWidth = 1.5 * k;
  pen.strokeRect(cx - w / 2, cy - h / 2, w, h);
}
let quiet = 0;
function say(text, ms, spoken = text) {  // spoken: to people who do not see the page, without every count
  clearTimeout(quiet);
  if (text) $('status').textContent = text;  // or it would be gone before it has faded
  $('status').classList.toggle('on', Boolean(text));
  if ($('spoken').textContent !== spoken) $('spoken').textContent = spoken;
  if (ms) quiet = setTimeout(() => say(''), ms);
}
let loud = 0;
function toast(text) {
  clearTimeout(loud);
  $('toast').textContent = text;
  $('toast').hidden = false;
  loud = setTimeout(() => { $('toast').hidden = true; }, 7000);
}

// The state in the address, by which a view can be linked to.

function remember() {
  const round = (v, digits) => Number(v.toFixed(digits));
  const values = {id: picture.id, x: round(view.x, 3), y: round(view.y, 3), s: round(view.s / ratio(), 4),
    d: round(divider, 3), m: simple, ...(beside ? {beside: 1} : {}), model: model.name};
  history.replaceState(null, '', '#' + new URLSearchParams(values));
}
function remembered() {
  const values = new URLSearchParams(location.hash.slice(1)), number = name => Number(values.get(name) ?? NaN);
  const [x, y, s, d] = ['x', 'y', 's', 'd'].map(number);
  return {id: values.get('id'), model: values.get('model'),
    simple: values.get('m') === 'nearest' ? 'nearest' : 'bicubic', beside: values.get('beside') === '1',
    divider: Number.isFinite(d) ? clamp(d, 0, 1) : .5,
    view: [x, y, s].every(Number.isFinite) && s > 0 ? {x, y, s: s * ratio()} : null};
}
async function copyLink() {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    say('the link is copied', 2500);
  } catch {
    toast('The link is in the address bar: the browser does not let pages copy here.');
  }
}

// Images in and out.

async function show(found, at, late = () => false) {
  const {bitmap: image, transparent} = await engine.source(found);
  if (late()) return;
  await painter.open(image, transparent, late);
  if (late()) return;
  [picture, bitmap] = [found, image];
  forgetTiles();
  for (const id of ['controls', 'shot']) $(id).hidden = false;
  $('link').hidden = engine.where !== 'server';
  $('divider').hidden = $('save').hidden = !usesTiles() && !engine.render;
  $('name').textContent = found.name;
  $('size').textContent = `${found.width} × ${found.height}`;
  document.title = `${found.name} · LIIF viewer`;
  goal = null;
  stopFlight();
  if (at) { view = at; return moved(); }
  if (fitting() >= 4 * ratio()) return fit();
  const s = OPENING * ratio(), {width} = panes()[1], place = telling();
  const keep = (v, n, half) => (2 * half > n ? n / 2 : clamp(v, half, n - half));  // no border in view without need
  view = {s, x: keep(place.x, found.width, width / 2 / s), y: keep(place.y, found.height, stage.height / 2 / s)};
  moved();
}
const turns = {file: 0, model: 0};  // of two that were chosen the last wins, not the one that takes longer
async function upload(file) {
  if (!file) return;
  const turn = ++turns.file, late = () => turn !== turns.file;
  try {
    await begun;
    const [size, most] = [file.size, start.max_bytes].map(n => (n / 1e6).toFixed(0));
    if (file.size > start.max_bytes) throw new Error(`${file.name} has ${size} MB, more than the ${most} MB that the ` +
      'viewer takes (--max-upload)');
    say('opening');
    const found = await engine.open(file), suits = () => !modelChosen && found.model !== model.name && found.model;
    if (late()) return;
    if (suits()) await engine.about(found.model);  // loads it before the image is shown
    await show(found, null, late);
    if (late() || !suits()) return;
    await pickModel(found.model);
    say(`the weights ${found.model} suit this kind of file`, 3000);
  } catch (error) {
    if (late()) return;
    say('');
    toast(error.message);
  }
}
function tellDevice({kind, precision, device}) {
  const name = {cpu: 'the CPU', cuda: 'a GPU', mps: "Apple's GPU", webgpu: 'the GPU (WebGPU)',
    wasm: 'the CPU (WebAssembly)'}[device];
  $('about').textContent = `${kind} in ${precision} on ${name}`;
}
addEventListener('fallback', ({detail}) => {  // of engine.js
  tellDevice(detail);
  toast('WebGPU failed in this browser, so the CPU computes.');
});
async function pickModel(name) {
  const turn = ++turns.model;
  say('loading the model');
  try {
    const found = await engine.about(name), before = model;
    if (turn !== turns.model) return;
    model = found;
    if (before && before.lattice !== found.lattice) {  // a canvas cannot change its kind of drawing
      remember();
      return location.reload();
    }
    tellDevice(found);
    $('model').value = name;
    say('');
    if (!picture) return;
    forgetTiles();
    moved();
  } catch (error) {
    if (turn !== turns.model) return;
    say('');
    if (!model) throw error;
    $('model').value = model.name;
    toast(error.message);
  }
}
function asked() {  // what a download would be: a region of the image, and its size there if nothing is changed
  if ($('saving').querySelector('[name=what]:checked').value === 'view') return inView();
  const s = Math.max(view.s, 1), {width, height} = picture;
  return {x: 0, y: 0, w: width, h: height, columns: Math.round(width * s), rows: Math.round(height * s)};
}
function cost() {
  const part = asked(), columns = Number($('columns').value), rows = Number($('rows').value), pixels = columns * rows;
  const good = part && [columns, rows].every(n => Number.isInteger(n) && n > 0 && n <= start.max_side) &&
    pixels <= start.max_download;
  $('go').disabled = !good;
  $('cost').textContent = pixels > start.max_download ? `more than ${start.max_download / 1e6} million pixels` :
    Math.max(columns, rows) > start.max_side ? `more than ${start.max_side} pixels on a side` :
    !good ? '\u00a0' : `×${(columns / part.w).toFixed(2)} of the image, ` +
      `${(pixels / 1e6).toFixed(pixels < 1e7 ? 2 : 0)} million pixels`;
}
function propose() {
  const part = asked();
  if (part) [$('columns').value, $('rows').value] = [part.columns, part.rows];
  cost();
}
function save() {
  if (!picture || !inView() || $('saving').open || $('save').hidden) return;
  stopFlight();
  propose();
  $('saving').returnValue = '';  // that of the last time stays when Escape closes it
  $('saving').showModal();
}
const keepAspect = (given, other, aspect) => {
  $(other).value = Math.max(1, Math.round($(given).value * aspect));
  cost();
};
$('columns').oninput = () => keepAspect('columns', 'rows', asked().h / asked().w);
$('rows').oninput = () => keepAspect('rows', 'columns', asked().w / asked().h);
for (const choice of document.getElementsByName('what')) choice.onchange = propose;
function download(address, ending) {
  const link = document.createElement('a');
  link.href = address;
  link.download = `${picture.name.replace(/\.[^.]*$/, '')}-${ending}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);  // does nothing to an address of the server
}
$('saving').onclose = async () => {
  if ($('saving').returnValue !== 'yes') return;
  const {x, y, w, h} = asked(), part = {x, y, w, h, rows: $('rows').value, columns: $('columns').value};
  const mine = picture, here = () => { if (mine !== picture) throw new Error('The download ended with its image.'); };
  try {
    say('preparing the download');
    const address = await engine.save(picture, model.name, part, painter, here);
    here();
    download(address, `${part.columns}x${part.rows}`);
    say('the download has begun', 3000);
  } catch (error) { toast(error.message); }
};
async function saveShot() {  // the screen as it is, with the divider and the names of the methods
  draw();  // in the same task as it is copied: WebGL does not keep what it drew
  const out = new OffscreenCanvas(stage.width, stage.height), pen = out.getContext('2d');
  const k = ratio(), [left, right] = panes();
  pen.drawImage(stage, 0, 0);
  pen.fillStyle = '#fff';
  pen.fillRect(left.right - k, 0, 2 * k, stage.height);
  pen.font = `${13 * k}px system-ui, sans-serif`;
  pen.textBaseline = 'middle';
  for (const [kind, edge, side] of [[left.kind, left.right - 12 * k, -1], [right.kind, left.right + 12 * k, 1]]) {
    const name = `${NAMES[kind]} ${$('scale').textContent}`;
    const w = pen.measureText(name).width + 20 * k;
    pen.fillStyle = '#14161ab8';
    pen.beginPath();
    pen.roundRect(side < 0 ? edge - w : edge, 16 * k, w, 26 * k, 13 * k);
    pen.fill();
    pen.fillStyle = '#fff';
    pen.fillText(name, (side < 0 ? edge - w : edge) + 10 * k, 29 * k);
  }
  download(URL.createObjectURL(await out.convertToBlob({type: 'image/png'})), 'comparison');
}

// Wheel, pointers, keys.

const at = event => [event.clientX * ratio(), event.clientY * ratio()];
for (const part of [stage, $('divider')]) part.addEventListener('wheel', event => {
  event.preventDefault();
  if (!picture) return;
  const delta = clamp(event.deltaY * [1, 16, 400][event.deltaMode], -240, 240);
  zoomBy(Math.exp(-delta * (event.ctrlKey ? .01 : .002)), ...at(event));
}, {passive: false});
const held = new Map();  // pointers that are down
function gesture() {
  const points = [...held.values()], n = points.length;
  const px = points.reduce((sum, p) => sum + p[0], 0) / n, py = points.reduce((sum, p) => sum + p[1], 0) / n;
  return {px, py, spread: n > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 0};
}
stage.onpointerdown = event => {
  if (!picture || event.button > 0) return;
  stage.setPointerCapture(event.pointerId);
  held.set(event.pointerId, at(event));
  stage.classList.add('held');
  goal = null;
  stopFlight();
};
stage.onpointermove = event => {
  if (!held.has(event.pointerId)) return;
  const before = gesture();
  held.set(event.pointerId, at(event));
  const after = gesture();
  view.x -= (after.px - before.px) / view.s;
  view.y -= (after.py - before.py) / view.s;
  if (before.spread && after.spread) zoomTo(view.s * after.spread / before.spread, after.px, after.py); else moved();
};
stage.onpointerup = stage.onpointercancel = event => {
  held.delete(event.pointerId);
  if (!held.size) stage.classList.remove('held');
};
stage.ondblclick = event => { if (picture) zoomBy(event.shiftKey ? .5 : 2, ...at(event)); };

function slide(to) {
  if (beside) return;
  divider = clamp(to, 0, 1);
  redraw();
  clearTimeout(timer);
  timer = setTimeout(document.body.dataset.state === 'moving' ? settled : remember, STILL);
}
$('divider').onpointerdown = event => { $('divider').setPointerCapture(event.pointerId); event.preventDefault(); };
$('divider').onpointermove = event => {
  if ($('divider').hasPointerCapture(event.pointerId)) slide(event.clientX / innerWidth);
};
function arrange(how) {
  const whole = isWhole();
  beside = how;
  document.body.classList.toggle('fixed', how);
  $('beside').setAttribute('aria-pressed', how);
  $('divider').tabIndex = how ? -1 : 0;
  if (whole) fit(); else if (picture) moved();
}
function choose(method) {
  simple = method;
  $('method').textContent = NAMES[method];
  if (picture) moved();
}
function flip(on) {
  if (flipped === on) return;
  flipped = on;
  redraw();
}
function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch(() => toast('The browser refuses full screen here.'));
}
function help() {
  if ($('keys').open) $('keys').close(); else $('keys').showModal();
}
const step = () => 80 * ratio() / view.s;
const pan = (dx, dy) => () => { stopFlight(); view.x += dx * step(); view.y += dy * step(); moved(); };
const actions = {
  '+': () => zoomBy(1.5, ...middle()), '=': () => zoomBy(1.5, ...middle()), '-': () => zoomBy(1 / 1.5, ...middle()),
  '0': () => { stopFlight(); fit(); }, '1': () => { stopFlight(); goal = null; zoomTo(1, ...middle()); },
  ArrowLeft: pan(-1, 0), ArrowRight: pan(1, 0), ArrowUp: pan(0, -1), ArrowDown: pan(0, 1),
  '[': () => slide(divider - .05), ']': () => slide(divider + .05), ' ': () => flip(true),
  c: () => arrange(!beside), n: () => choose(simple === 'bicubic' ? 'nearest' : 'bicubic'), v: fly, f: fullScreen,
  d: save, s: saveShot, l: () => { if (engine.where === 'server') copyLink(); }, o: () => $('file').click(), '?': help,
  Escape: stopFlight,
};
const ofDivider = {ArrowLeft: actions['['], ArrowRight: actions[']'], Home: () => slide(0), End: () => slide(1)};
addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input, select')) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (document.querySelector('dialog[open]') && !(key === '?' && $('keys').open)) return;
  if (key === ' ' && event.target.matches('button')) return;  // presses it
  const action = document.activeElement === $('divider') && ofDivider[key] || actions[key];
  if (!action || (!picture && !'of?'.includes(key))) return;
  event.preventDefault();
  action();
});
addEventListener('keyup', event => { if (event.key === ' ') flip(false); });
addEventListener('blur', () => flip(false));
const buttons = {in: actions['+'], out: actions['-'], fit: actions['0'], one: actions['1'], fly, save, shot: saveShot,
  full: fullScreen, link: copyLink, help, open: actions.o, method: actions.n, beside: actions.c};
for (const [id, action] of Object.entries(buttons)) $(id).onclick = action;
$('model').onchange = () => { modelChosen = true; pickModel($('model').value); };
$('file').onchange = () => { upload($('file').files[0]); $('file').value = ''; };
for (const name of ['dragover', 'dragleave', 'drop']) addEventListener(name, event => {
  event.preventDefault();
  document.body.classList.toggle('over', name === 'dragover');
  if (name === 'drop') upload(event.dataTransfer.files[0]);
});
addEventListener('paste', event => upload(event.clipboardData.files[0]));
function resize() {
  const whole = isWhole();
  const size = {width: Math.round(innerWidth * ratio()), height: Math.round(innerHeight * ratio())};
  Object.assign(stage, size);
  Object.assign(rings, size);
  if (!picture) redraw(); else if (whole) fit(); else moved();
}
addEventListener('resize', resize);
addEventListener('hashchange', () => location.reload());  // a link pasted here
light.onchange = redraw;

function makePainter() {
  const asked = new URLSearchParams(location.search).has('plain');
  if (model.lattice && !asked) {
    try {
      return new Painter(stage, event => { event.preventDefault(); location.reload(); });
    } catch (error) {
      console.warn(error.message);
    }
  }
  accelerated = false;
  if (!asked) toast(engine.where === 'browser'
    ? 'This browser has no WebGL2, without which only the image itself can be shown.'
    : model.lattice ? 'This browser has no WebGL2, so the viewer renders every view, once movement stops.'
    : 'This model has no lattice, so the viewer renders every view, once movement stops.');
  return new PlainPainter(stage);
}
async function begin() {
  const at = remembered();
  start = await engine.start(at.id);
  $('model').replaceChildren(...start.models.map(name => new Option(name)));
  const linked = !start.gone && start.models.includes(at.model) && at.model;
  await pickModel(linked || start.picture.model || start.models[0]);
  painter = makePainter();
  resize();
  if (start.gone) toast('The image of this link is no longer open in the viewer: open it again.');
  choose(at.simple);
  divider = at.divider;
  arrange(at.beside);
  await show(start.picture, start.gone ? null : at.view);
  $('model').hidden = start.models.length < 2;
}
const begun = begin();
begun.catch(error => toast(error.message));

// For tests and measurements. ready: whether all that is in view has arrived, and nothing moves.
const ready = () => document.body.dataset.state === 'done' && !goal && !flight &&
  stage.width === Math.round(innerWidth * ratio()) && stage.height === Math.round(innerHeight * ratio());
window.liif = {frames, zoomTo, ready, view: () => view, painter: () => painter,
  pixels: () => { draw(); return stage.toDataURL(); }};
