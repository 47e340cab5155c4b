// Computes the lattice of an image: encodes blocks of it, and decodes tiles from their codes. viewer/static.py
// describes the graphs, and tests/viewer/test_static.py has the same steps in Python.

const KEPT = 16;  // blocks whose codes are kept
const MOST = 40e6;  // pixels of an image
const dropped = new Set();  // calls that are no longer wanted
const images = new Map();  // id -> {width, height, data, codes} of the image on the page and the one that follows
let about, device, engine, queue = Promise.resolve();

const tasks = {
  async start(value) {
    about = value;
    const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
    device = adapter ? 'webgpu' : 'wasm';
    engine = load();
    engine.catch(() => null);  // told to whoever asks for a tile
    return [device];
  },

  // The pixels of a file, for the page.
  async open({id, file}) {
    const bitmap = await createImageBitmap(file, {colorSpaceConversion: 'none'}).catch(() => {
      throw new Error(`${file.name} cannot be opened: expected an undamaged image of a kind that this browser shows`);
    });
    const {width, height} = bitmap;
    if (width * height > MOST) throw new Error(`${file.name} has more than ${MOST / 1e6} million pixels`);
    const pen = new OffscreenCanvas(width, height).getContext('2d');
    pen.drawImage(bitmap, 0, 0);
    const found = pen.getImageData(0, 0, width, height), {data} = found;
    const transparent = data.some((v, i) => i % 4 === 3 && v < 255);
    if (transparent) {  // where nothing is seen, pixels take the colours around them, which spread into the edges
      pen.globalCompositeOperation = 'destination-over';
      for (let k = 2; k < 2 * Math.max(width, height); k *= 2) {
        const [w, h] = [Math.ceil(width / k), Math.ceil(height / k)], small = new OffscreenCanvas(w, h);
        small.getContext('2d').drawImage(bitmap, 0, 0, w, h);
        pen.drawImage(small, 0, 0, width, height);
      }
      const filled = pen.getImageData(0, 0, width, height).data;
      for (let i = 0; i < data.length; i += 4) if (!data[i + 3]) data.set(filled.subarray(i, i + 3), i);
    }
    images.set(id, {width, height, data, codes: new Map()});
    if (images.size > 2) images.delete(images.keys().next().value);
    const shown = await createImageBitmap(found, {premultiplyAlpha: 'none', colorSpaceConversion: 'none'});
    return [{bitmap: shown, transparent}, [shown]];
  },

  async tile({picture, row, column, steps}, call) {
    const image = images.get(picture), {tile, block, rows} = about, n = tile + 1;
    const here = () => {
      if (dropped.delete(call) || !image) throw new Error('no longer wanted');
    };
    here();
    const {codes, depth} = await encode(image, Math.floor(row / block), Math.floor(column / block));
    const down = along(row, image.height), across = along(column, image.width), side = block * tile + 1;
    const width = tile * steps + 1, sum = new Float32Array((tile + 2) * steps * width * 3);
    for (let first = 0; first < n; first += rows[steps]) {
      await new Promise(done => setTimeout(done));  // messages come in
      here();
      const part = new Float32Array(rows[steps] * n * depth);
      for (let i = 0; i < rows[steps] * n; i++) {
        const from = (down.at[first + Math.floor(i / n)] * side + across.at[i % n]) * depth;
        part.set(codes.subarray(from, from + depth), i * depth);
      }
      const found = await run(`lattice${steps}`, {codes: [part, rows[steps], n, depth],
        y: [down.beyond.slice(first, first + rows[steps]), rows[steps]], x: [across.beyond, n]});
      for (let i = 0, at = first * steps * width * 3; i < found.length; i++) sum[at + i] += found[i];
    }
    const high = down.nodes(steps), wide = across.nodes(steps), line = wide * 3, out = new Float32Array(high * line);
    for (let y = 0; y < high; y++) {
      const from = (y + steps) * width * 3;
      out.set(sum.subarray(from, from + line), y * line);
      for (let k = 0; k < 3; k++) toSplines(out, y * line + k, 3, wide, about.splines[steps]);
    }
    for (let start = 0; start < line; start++) toSplines(out, start, line, high, about.splines[steps]);
    return [out, [out.buffer]];
  },
};

// The values at `count` nodes become coefficients of the splines of viewer/lattice.py. They are data[start], and each
// `stride` numbers further on. Those at the ends of a piece stay as they are.
function toSplines(data, start, stride, count, matrix) {
  const steps = matrix.length - 1, values = [];
  for (let first = start; first + steps * stride < start + count * stride; first += steps * stride) {
    for (let i = 0; i <= steps; i++) values[i] = data[first + i * stride];
    for (let i = 1; i < steps; i++) {
      let sum = 0;
      for (let k = 0; k <= steps; k++) sum += matrix[i][k] * values[k];
      data[first + i * stride] = sum;
    }
  }
}

// The codes of a tile along an axis of n pixels. at: in its block; beyond: what is added to their offsets.
function along(place, n) {
  const {tile, block} = about, first = Math.floor(place / block) * block * tile - 1;
  const wanted = Array.from({length: tile + 1}, (_, i) => place * tile - 1 + i);
  const inside = wanted.map(i => Math.min(Math.max(i, 0), n - 1));
  return {at: inside.map(i => i - first), beyond: Float32Array.from(wanted, (v, i) => 2 * (v - inside[i])),
    nodes: steps => Math.min(tile, n + 1 - place * tile) * steps + 1};
}

async function encode({width, height, data, codes: kept}, row, column) {
  const key = `${row},${column}`, {tile, block, halo} = about, side = block * tile + 1 + 2 * halo;
  if (!kept.has(key)) {
    const [top, left] = [row, column].map(i => i * block * tile - 1 - halo);
    const pixels = new Float32Array(3 * side * side), mask = new Float32Array(side * side);
    for (let y = Math.max(0, -top); y < Math.min(side, height - top); y++) {
      for (let x = Math.max(0, -left); x < Math.min(side, width - left); x++) {
        const from = 4 * ((y + top) * width + x + left), to = y * side + x;
        for (let k = 0; k < 3; k++) pixels[k * side * side + to] = data[from + k] / 255;
        mask[to] = 1;
      }
    }
    const codes = await run('encoder', {image: [pixels, 1, 3, side, side], mask: [mask, 1, 1, side, side]});
    kept.set(key, {codes, depth: codes.length / (block * tile + 1) ** 2});
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(key);
}

async function load() {
  const ort = await import(`./ort/ort.${device}.min.mjs`), sessions = {};
  ort.env.wasm.wasmPaths = new URL('ort/', location.href).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
  for (const name of ['encoder', ...about.steps.map(steps => `lattice${steps}`)]) {
    sessions[name] = await ort.InferenceSession.create(`${name}.onnx`, {executionProviders: [device]});
  }
  return {sessions, Tensor: ort.Tensor};
}

// What a graph gives for {name: [numbers, ...shape]}. The CPU replaces a GPU that fails; the page says so.
async function run(name, inputs) {
  try {
    const {sessions, Tensor} = await engine, tensors = {};
    for (const [key, [values, ...shape]] of Object.entries(inputs)) tensors[key] = new Tensor('float32', values, shape);
    const {out} = await sessions[name].run(tensors);
    return await out.getData();
  } catch (error) {
    if (device === 'wasm') throw error;
    console.warn(error?.message ?? error);
    device = 'wasm';
    postMessage({device});
    engine = load();
    return run(name, inputs);
  }
}

onmessage = ({data: {id, name, value}}) => {
  if (name === 'drop') return dropped.add(value);
  const work = async () => {
    try {
      const [found, moved] = await tasks[name](value, id);
      postMessage({id, found}, moved || []);
    } catch (error) {
      postMessage({id, error: error?.message || String(error)});  // onnxruntime rejects with other values, too
    }
  };
  if (name === 'tile') queue = queue.then(work); else work();
};
