// Draws an image at any scale with WebGL2: the lattice of decoded values where it has arrived, else bicubic.
//
// Positions are in pixels of the source, pixel (= code) i being centred at i + 1/2. Both methods are separable: a
// pixel of the screen at position p is
//
//     sum_r sum_c  wy[r] * wx[c] * texel(at + (c, r)),   r, c = 0 ... 3,
//
// a texel being a pixel of the source (bicubic) or a coefficient of the lattice (LIIF). A GPU reads all 16 in one pass.
// Where a CPU does its work, two passes are faster: the first sums along each row of texels into `rows`, the second
// down these.

const VERTEX = `#version 300 es
void main() {  // one triangle that covers the screen; the scissor cuts out what is drawn
  gl_Position = vec4(gl_VertexID == 1 ? 3. : -1., gl_VertexID == 2 ? 3. : -1., 0., 1.);
}`;

// Compiled once for each kind of drawing: NEAREST, BICUBIC, LIIF or REDUCED; TRANSPARENT says that the image has alpha;
// PASS is 1 or 2 of two passes, else 0. Loops are written out, which halves the time on a CPU.
const FRAGMENT = (kind, transparent, pass) => `#version 300 es
#define ${kind.toUpperCase()}
#define PASS ${pass}
${transparent ? '#define TRANSPARENT' : ''}
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D source;   // pixels of the source, from pixel \`corner\` on
uniform sampler2D lattice;  // coefficients of one tile
uniform sampler2D rows;     // what the first pass found: a column of it is one of the screen
uniform int firstRow;       // the row of texels that its first row stands for
uniform float height;       // of the screen
uniform float scale;        // pixels of the screen per pixel of the source
uniform ivec2 base;         // a pixel of the source near to what is drawn: positions are relative to its upper left
uniform vec2 origin;        // corner, which lies here on the screen, so that float32 is enough at any scale
uniform ivec2 size;         // of the source
uniform ivec2 corner;
uniform ivec2 pieces;       // of the tile
uniform float steps;        // nodes per piece
uniform float square;       // side of a square of the checkerboard; 0: none, alpha is kept
out vec4 colour;

// Keys' cubic convolution with a = -1/2, at the fraction f between the second and the third of four pixels:
//     w(t) = 3/2 |t|^3 - 5/2 |t|^2 + 1            for |t| <= 1,
//     w(t) = -1/2 |t|^3 + 5/2 |t|^2 - 4 |t| + 2   for 1 < |t| <= 2.
vec4 keys(float f) {
  return vec4(((-.5 * f + 1.) * f - .5) * f, (1.5 * f - 2.5) * f * f + 1.,
              ((-1.5 * f + 2.) * f + .5) * f, (.5 * f - .5) * f * f);
}

// Pixels beyond the border do not count; the others' weights then sum to one again.
vec4 inside(vec4 weight, int first, int n) {
  if (first >= 0 && first + 3 < n) return weight;
  ivec4 i = first + ivec4(0, 1, 2, 3);
  weight *= vec4(greaterThanEqual(i, ivec4(0))) * vec4(lessThan(i, ivec4(n)));
  return weight / (weight.x + weight.y + weight.z + weight.w);
}

// Natural cubic spline: weights of the coefficients first ... first + 3 at u in [0, steps], where it has steps + 1 of
// them. Those beyond its ends continue the last two linearly:  c[-1] = 2 c[0] - c[1].
vec4 spline(float u, float first) {
  float whole = clamp(floor(u), 0., steps - 1.), f = u - whole, e = 1. - f;
  vec4 w = vec4(e * e * e, (3. * f - 6.) * f * f + 4., (3. * e - 6.) * e * e + 4., f * f * f) / 6.;
  if (whole < first + .5) return vec4(w.y + 2. * w.x, w.z - w.x, w.w, 0.);
  if (whole > first + 1.5) return vec4(0., w.x, w.y - w.w, w.z + 2. * w.w);
  return w;
}

vec4 row(sampler2D texels, ivec2 at, vec4 w) {
  return w.x * texelFetch(texels, at, 0) + w.y * texelFetch(texels, at + ivec2(1, 0), 0)
    + w.z * texelFetch(texels, at + ivec2(2, 0), 0) + w.w * texelFetch(texels, at + ivec2(3, 0), 0);
}
vec4 interpolate(sampler2D texels, ivec2 at, vec4 wx, vec4 wy) {
  ivec2 done = ivec2(gl_FragCoord.x, at.y - firstRow);
#if PASS == 1
  return row(texels, ivec2(at.x, firstRow + int(gl_FragCoord.y)), wx);
#elif PASS == 2
  return wy.x * texelFetch(rows, done, 0) + wy.y * texelFetch(rows, done + ivec2(0, 1), 0)
    + wy.z * texelFetch(rows, done + ivec2(0, 2), 0) + wy.w * texelFetch(rows, done + ivec2(0, 3), 0);
#endif
  return wy.x * row(texels, at, wx) + wy.y * row(texels, at + ivec2(0, 1), wx)
    + wy.z * row(texels, at + ivec2(0, 2), wx) + wy.w * row(texels, at + ivec2(0, 3), wx);
}

vec4 bicubic(vec2 p) {
  vec2 whole = floor(p - .5), f = p - .5 - whole;
  ivec2 first = base + ivec2(whole) - 1;
  return interpolate(source, first - corner, inside(keys(f.x), first.x, size.x), inside(keys(f.y), first.y, size.y));
}

// Piece k of the tile spans base + [k - 1/2, k + 1/2] and has nodes 0 ... steps. The decoded image s(x) of eq. 4 is
// smooth within a piece, not across its border, so each piece has a spline.
vec4 liif(vec2 p) {
  vec2 piece = clamp(floor(p + .5), vec2(0), vec2(pieces - 1));
  vec2 t = (p + .5 - piece) * steps;
  vec2 first = clamp(floor(t) - 1., 0., steps - 3.);
  return interpolate(lattice, ivec2(piece * steps + first), spline(t.x, first.x), spline(t.y, first.y));
}

void main() {
  vec2 screen = vec2(gl_FragCoord.x, height - gl_FragCoord.y);
  vec2 p = (screen - origin) / scale;
#if defined(NEAREST)
  colour = texelFetch(source, clamp(base + ivec2(floor(p)), ivec2(0), size - 1) - corner, 0);
#elif defined(BICUBIC)
  colour = bicubic(p);
#elif defined(LIIF)
  colour = liif(p);
#else
  colour = textureLod(source, (vec2(base - corner) + p) / vec2(textureSize(source, 0)), log2(1. / scale));
#endif
#ifdef TRANSPARENT
#ifdef LIIF
  colour.a = bicubic(p).a;
#endif
  colour = clamp(colour, 0., 1.);
  if (square == 0.) return;
  ivec2 cell = ivec2(floor(screen / square));
  colour.rgb = mix(vec3(((cell.x + cell.y) & 1) == 0 ? .8 : .6), colour.rgb, colour.a);
#endif
  colour.a = 1.;
}`;
const UNIFORMS = ['source', 'lattice', 'rows', 'firstRow', 'height', 'scale', 'base', 'origin', 'size', 'corner',
  'pieces', 'steps', 'square'];

const GUTTER = 4;  // pixels around a tile of the source, for the taps of bicubic beyond its border
// Bytes of lattice that are kept; phones and tablets have less memory.
export const BUDGET = matchMedia('(pointer: coarse)').matches ? 192e6 : 512e6;

export class Painter {
  // Throws where the browser has no WebGL2.
  constructor(canvas, onLost) {
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext('webgl2', {alpha: false, antialias: false, depth: false,
      powerPreference: 'high-performance'});
    if (!gl) throw new Error('this browser has no WebGL2');
    canvas.addEventListener('webglcontextlost', onLost);
    gl.bindVertexArray(gl.createVertexArray());
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.enable(gl.SCISSOR_TEST);
    this.programs = new Map();  // 'kind transparent' -> {program, at: uniform locations}
    this.blank = this.texture(gl.NEAREST);  // something to have bound where there is no lattice
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    this.sources = [];
    this.tiles = new Map();  // 'row,column' -> {texture, steps, bytes}, the first to be dropped first
    const info = gl.getExtension('WEBGL_debug_renderer_info');
    const name = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : '';
    this.twice = /swiftshader|llvmpipe|software/i.test(name) && Boolean(gl.getExtension('EXT_color_buffer_float'));
    this.side = Math.min(1024, gl.getParameter(gl.MAX_TEXTURE_SIZE) - 2 * GUTTER);
  }

  // Use the program of a kind and pass, with what is the same for all parts of a frame.
  use(kind, pass) {
    const {gl, programs} = this, key = `${kind} ${this.transparent} ${pass}`;
    if (!programs.has(key)) programs.set(key, this.compile(kind, pass));
    const found = programs.get(key), {program, at} = found;
    if (this.used === found) return at;
    this.used = found;
    gl.useProgram(program);
    gl.uniform1i(at.source, 0);
    gl.uniform1i(at.lattice, 1);
    gl.uniform1i(at.rows, 2);
    gl.uniform1f(at.height, this.target.height);
    gl.uniform1f(at.scale, this.scale);
    gl.uniform1f(at.square, 8 * this.ratio);
    gl.uniform2i(at.size, ...this.size);
    return at;
  }

  compile(kind, pass) {
    const {gl} = this, program = gl.createProgram();
    const fragment = FRAGMENT(kind, this.transparent, pass);
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return {program, at: Object.fromEntries(UNIFORMS.map(name => [name, gl.getUniformLocation(program, name)]))};
  }

  texture(filter) {
    const {gl} = this, texture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, filter);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, filter === gl.NEAREST ? gl.NEAREST : gl.LINEAR);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    return texture;
  }

  // Take another image, an ImageBitmap whose alpha is not multiplied in, in tiles that any texture holds; not if, once
  // they are there, late() says that yet another was chosen.
  async open(bitmap, transparent, late) {
    const {gl, side} = this, {width, height} = bitmap, made = [];
    for (let top = 0; top < height; top += side) {
      for (let left = 0; left < width; left += side) {
        const l = Math.max(0, left - GUTTER), t = Math.max(0, top - GUTTER);
        const r = Math.min(width, left + side + GUTTER), b = Math.min(height, top + side + GUTTER);
        const part = await createImageBitmap(bitmap, l, t, r - l, b - t,
          {premultiplyAlpha: 'none', colorSpaceConversion: 'none'});
        const texture = this.texture(gl.LINEAR_MIPMAP_LINEAR);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
        gl.generateMipmap(gl.TEXTURE_2D);
        part.close();
        made.push({texture, corner: [l, t], left, top, right: Math.min(width, left + side),
          bottom: Math.min(height, top + side)});
      }
    }
    if (late()) return made.forEach(part => gl.deleteTexture(part.texture));
    this.sources.forEach(old => gl.deleteTexture(old.texture));
    Object.assign(this, {sources: made, size: [width, height], transparent});
    this.clear();
  }

  // Forget the lattice; `grid`: {tile} of the next one.
  clear(grid) {
    for (const {texture} of this.tiles.values()) this.gl.deleteTexture(texture);
    this.tiles.clear();
    this.grid = grid;
  }

  // Nodes per piece and axis of a tile; 0 where it has not arrived.
  steps(row, column) { return this.tiles.get(`${row},${column}`)?.steps ?? 0; }

  // Of all tiles, drop this one last.
  touch(row, column) {
    const key = `${row},${column}`, found = this.tiles.get(key);
    if (this.tiles.delete(key)) this.tiles.set(key, found);
  }

  // Number of pieces of a tile along an axis of n pixels.
  pieces(n, tile) { return Math.min(this.grid.tile, n + 1 - tile * this.grid.tile); }

  // Keep a tile of the lattice: RGB as the bytes of float16, or as a Float32Array.
  put(row, column, steps, data) {
    const {gl} = this, key = `${row},${column}`;
    const [columns, rows] = [this.pieces(this.size[0], column), this.pieces(this.size[1], row)].map(n => n * steps + 1);
    const texture = this.texture(gl.NEAREST);
    const [kind, values] = data.byteLength === 12 * columns * rows ? [gl.FLOAT, data]
      : [gl.HALF_FLOAT, new Uint16Array(data)];
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB16F, columns, rows, 0, gl.RGB, kind, values);
    gl.deleteTexture(this.tiles.get(key)?.texture ?? null);
    this.tiles.delete(key);
    this.tiles.set(key, {texture, steps, bytes: 6 * columns * rows});
    let total = 0;
    for (const tile of this.tiles.values()) total += tile.bytes;
    for (const [old, tile] of this.tiles) {
      if (total <= BUDGET) break;
      total -= tile.bytes;
      gl.deleteTexture(tile.texture);
      this.tiles.delete(old);
    }
  }

  // view: {x, y, s}: the position at `centre` of a pane, and the scale; panes: [{kind, left, right, centre}] in pixels
  // of the screen; ground: [r, g, b] around the image; ratio: pixels of the screen per CSS pixel.
  draw(view, panes, ground, ratio) {
    const {gl, canvas: {width, height}} = this;
    this.begin({frame: null, width, height}, view.s, ratio);
    gl.clearColor(...ground, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    for (const pane of this.sources.length ? panes : []) {
      this.drawPane(pane.kind, {s: view.s, ox: pane.centre - view.x * view.s, oy: height / 2 - view.y * view.s,
        left: pane.left, right: pane.right, height});
    }
  }

  // LIIF's pixels of a screen {s, ox, oy, left: 0, right, height} that is not shown: ImageData with the image's alpha.
  read(screen) {
    const {gl} = this, {s, right: width, height} = screen, out = new ImageData(width, height);
    const texture = this.texture(gl.NEAREST), frame = gl.createFramebuffer();
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    this.begin({frame, width, height}, s, 0);
    this.drawPane('liif', screen);
    const rows = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rows);
    for (let y = 0; y < height; y++) {  // the last row comes first
      out.data.set(rows.subarray(4 * width * y, 4 * width * (y + 1)), 4 * width * (height - 1 - y));
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.deleteFramebuffer(frame);
    gl.deleteTexture(texture);
    return out;
  }

  begin(target, scale, ratio) {
    const {gl} = this, {width, height} = target;
    gl.viewport(0, 0, width, height);
    gl.scissor(0, 0, width, height);
    Object.assign(this, {target, scale, ratio, used: null});
  }

  drawPane(kind, screen) {
    if (kind === 'liif' && screen.s > 1 && this.grid) return this.drawLattice(screen);
    const simple = screen.s < 1 ? 'reduced' : kind === 'nearest' ? 'nearest' : 'bicubic';
    for (const source of this.sources) this.drawPart(screen, source, simple, source);
  }

  drawLattice(screen) {
    const {grid: {tile}, size: [width, height]} = this;
    for (const [row, column] of visible(screen, this.size, tile)) {
      const part = {left: Math.max(0, column * tile - .5), top: Math.max(0, row * tile - .5),
        right: Math.min(width, (column + 1) * tile - .5), bottom: Math.min(height, (row + 1) * tile - .5)};
      const x = Math.min(column * tile, width - 1), y = Math.min(row * tile, height - 1);
      const source = this.sources.find(s => s.left <= x && x < s.right && s.top <= y && y < s.bottom);
      const found = this.tiles.get(`${row},${column}`);
      this.drawPart(screen, part, found ? 'liif' : 'bicubic', source, [column, row], found);
    }
  }

  // Draw the part {left, top, right, bottom} of the source: pixels whose centres lie in it.
  drawPart(screen, part, kind, source, tile, found) {
    const {gl} = this, {s, ox, oy} = screen;
    const edge = (o, v) => Math.ceil(o + v * s - .5);
    const left = Math.max(screen.left, edge(ox, part.left)), right = Math.min(screen.right, edge(ox, part.right));
    const top = Math.max(0, edge(oy, part.top)), bottom = Math.min(screen.height, edge(oy, part.bottom));
    if (left >= right || top >= bottom) return;
    const base = tile ? tile.map(v => v * this.grid.tile) : [part.left, part.top];
    if (!found) {  // relative to what is seen, since a source tile is large
      base[0] = Math.max(base[0], Math.floor((left - ox) / s));
      base[1] = Math.max(base[1], Math.floor((top - oy) / s));
    }
    const place = {base, origin: [ox + base[0] * s, oy + base[1] * s], source, tile, found};
    const [first, last] = this.texelRows(kind, place, top, bottom);
    const count = last - first + 1, most = Math.min(1.5 * (bottom - top), this.target.height);
    const two = this.twice && !this.transparent && count <= most;
    if (two) {
      this.toRows(true);
      this.set(this.use(kind, 1), place, first);
      gl.scissor(left, 0, right - left, count);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
      this.toRows(false);
    }
    this.set(this.use(kind, two ? 2 : 0), place, first);
    gl.scissor(left, screen.height - bottom, right - left, bottom - top);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // The first and last row of texels that the rows of the screen from `top` to `bottom` read, and one more each, since
  // float32 may round to the next.
  texelRows(kind, {base, origin, source, tile, found}, top, bottom) {
    if (kind !== 'liif' && kind !== 'bicubic') return [0, Infinity];
    const at = row => {
      const p = (row + .5 - origin[1]) / this.scale;
      if (kind === 'bicubic') return base[1] + Math.floor(p - .5) - 1 - source.corner[1];
      const {steps} = found, count = this.pieces(this.size[1], tile[1]);
      const piece = Math.min(Math.max(Math.floor(p + .5), 0), count - 1), t = (p + .5 - piece) * steps;
      return piece * steps + Math.min(Math.max(Math.floor(t) - 1, 0), steps - 3);
    };
    return [at(top) - 1, at(bottom - 1) + 4];
  }

  set(at, {base, origin, source, tile, found}, firstRow) {
    const {gl} = this;
    if (found) {
      gl.uniform2i(at.pieces, this.pieces(this.size[0], tile[0]), this.pieces(this.size[1], tile[1]));
      gl.uniform1f(at.steps, found.steps);
    }
    gl.uniform2i(at.base, ...base);
    gl.uniform2f(at.origin, ...origin);
    gl.uniform2i(at.corner, ...source.corner);
    gl.uniform1i(at.firstRow, Number.isFinite(firstRow) ? firstRow : 0);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, source.texture);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, found ? found.texture : this.blank);
  }

  // Draw into the texture `rows`, as large as the screen, or again onto the screen, where it can then be read.
  toRows(on) {
    const {gl, target: {frame: shown, width, height}} = this;
    if (!this.rows || this.rows.width !== width || this.rows.height !== height) {
      if (this.rows) gl.deleteTexture(this.rows.texture);
      const texture = this.texture(gl.NEAREST), frame = this.rows?.frame ?? gl.createFramebuffer();
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA16F, width, height, 0, gl.RGBA, gl.HALF_FLOAT, null);
      gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      this.rows = {texture, frame, width, height};
    }
    gl.activeTexture(gl.TEXTURE2);
    gl.bindTexture(gl.TEXTURE_2D, on ? this.blank : this.rows.texture);
    gl.bindFramebuffer(gl.FRAMEBUFFER, on ? this.rows.frame : shown);
  }
}

// The tiles (row, column) of the lattice that a part of the screen shows: {s, ox, oy, left, right, height}.
export function visible({s, ox, oy, left, right, height}, size, tile) {
  const first = v => Math.max(0, Math.floor((v + .5) / tile));
  const last = (v, n) => Math.min(Math.floor(n / tile), Math.floor((v + .5) / tile));
  const found = [];
  const rows = [first(-oy / s), last((height - oy) / s, size[1])];
  const columns = [first((left - ox) / s), last((right - ox) / s, size[0])];
  for (let row = rows[0]; row <= rows[1]; row++) {
    for (let column = columns[0]; column <= columns[1]; column++) found.push([row, column]);
  }
  return found;
}
