// The engine of the page: the server that encodes images, evaluates their lattice, and renders exactly.

const query = values => new URLSearchParams(values).toString();

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Error('The viewer does not answer: is it still running?');
  }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `error ${answer.status}`);
  return answer;
}

// {picture, models, gone, max_bytes, max_download, max_side}; id: the image that a link asks for, if any.
export const start = async id => (await ask('/start?' + query(id ? {id} : {}))).json();

// {name, kind, precision, device, lattice, tile, steps: of the draft and of the final lattice}
export const about = async name => (await ask('/model?' + query({name}))).json();

// A file's image: {id, name, width, height, model: the one that suits its kind, or null}.
export const open = async file =>
  (await ask('/pictures?' + query({name: file.name}), {method: 'POST', body: file})).json();

// {bitmap, transparent}
export async function source({id}) {
  const blob = await (await ask('/source?' + query({id}))).blob();
  const kind = new Uint8Array(await blob.slice(25, 26).arrayBuffer())[0];  // of a PNG: 2 is RGB, 6 RGB and alpha
  const options = {premultiplyAlpha: 'none', colorSpaceConversion: 'none'};
  return {bitmap: await createImageBitmap(blob, options), transparent: kind === 6};
}

// A tile of the lattice with `steps` nodes per piece and axis: float16 RGB.
export const tile = async ({id}, model, row, column, steps, signal) =>
  (await ask('/tile?' + query({id, model, row, column, steps}), {signal})).arrayBuffer();

// A part {x, y, w, h, rows, columns} of the image rendered exactly.
export const render = async ({id}, model, part, signal) =>
  createImageBitmap(await (await ask('/render?' + query({id, model, ...part}), {signal})).blob());

// The address of such a part, as PNG.
export const save = async ({id}, model, part) => '/render?' + query({id, model, ...part, save: 1});

export const where = 'server';
