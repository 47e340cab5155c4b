// The engine of the page without a server: a worker of this page computes; images stay in the browser.
import {visible} from './draw.js';

const PIECE = 512;  // pixels per axis of a download that are drawn at a time
const calls = new Map();  // number of a call to the worker -> its {done, failed}
let facts, worker, count = 0;

function call(name, value, signal) {
  const id = ++count;
  return new Promise((done, failed) => {
    calls.set(id, {done, failed});
    signal?.addEventListener('abort', () => {
      calls.delete(id);
      worker.postMessage({name: 'drop', value: id});
      failed(new DOMException('no longer wanted', 'AbortError'));
    });
    worker.postMessage({id, name, value});
  });
}
function answered({data: {id, found, error, device}}) {
  if (device) return dispatchEvent(new CustomEvent('fallback', {detail: {...facts, device}}));
  const {done, failed} = calls.get(id) || {};
  calls.delete(id);
  if (error) failed?.(new Error(error)); else done?.(found);
}

// sw.js keeps all files, so that the page opens without a network. The first time, the page waits until sw.js sees what
// is fetched; where there is none (no https) nothing is kept.
async function keepFiles() {
  const workers = navigator.serviceWorker;
  if (!workers) return;
  const controlled = new Promise(done => workers.addEventListener('controllerchange', done, {once: true}));
  if (workers.controller) controlled.then(() => location.reload());  // the files on the host are new
  try {
    await workers.register('sw.js');
    if (!workers.controller) await Promise.race([controlled, new Promise(done => setTimeout(done, 5000))]);
  } catch (error) {
    console.warn(error.message);
  }
}

export async function start(id) {
  await keepFiles();
  facts = await (await fetch('about.json')).json();
  worker = new Worker('worker.js', {type: 'module'});
  worker.onmessage = answered;
  worker.onerror = event => {
    for (const id of calls.keys()) answered({data: {id, error: event.message || 'this browser starts no worker'}});
  };
  const picture = await open(new File([await (await fetch(facts.sample)).blob()], facts.sample), 'sample');
  return {picture, models: [facts.name], gone: Boolean(id) && id !== picture.id, max_bytes: Infinity,
    max_download: 64e6, max_side: 32767};  // a canvas has no longer sides
}
export const about = async () => ({...facts, device: await call('start', facts)});

export async function open(file, id = `file ${count}`) {
  const {bitmap, transparent} = await call('open', {id, file});
  return {id, name: file.name, width: bitmap.width, height: bitmap.height, bitmap, transparent};
}
export const source = async picture => picture;

// A tile of the lattice with `steps` nodes per piece and axis: float32 RGB.
export const tile = ({id}, model, row, column, steps, signal) =>
  call('tile', {picture: id, row, column, steps}, signal);

// The address of a part {x, y, w, h, rows, columns} drawn from the lattice, as PNG; `here` throws once it is unwanted.
export async function save({id, width, height}, model, part, painter, here) {
  const [columns, rows] = [part.columns, part.rows].map(Number), s = Math.max(columns / part.w, rows / part.h);
  const out = new OffscreenCanvas(columns, rows), pen = out.getContext('2d'), steps = facts.steps.at(-1);
  for (let top = 0; top < rows; top += PIECE) {
    for (let left = 0; left < columns; left += PIECE) {
      const screen = {s, ox: -part.x * s - left, oy: -part.y * s - top, left: 0,
        right: Math.min(PIECE, columns - left), height: Math.min(PIECE, rows - top)};
      for (const [row, column] of s > 1 ? visible(screen, [width, height], facts.tile) : []) {
        painter.touch(row, column);
        if (painter.steps(row, column) === steps) continue;
        const data = await call('tile', {picture: id, row, column, steps});
        here();
        painter.put(row, column, steps, data);
      }
      pen.putImageData(painter.read(screen), left, top);
    }
  }
  return URL.createObjectURL(await out.convertToBlob());
}

export const where = 'browser';
