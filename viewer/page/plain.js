// Draws without WebGL2, and models without a lattice: the browser's own smoothing, and over it views that the server
// rendered once movement stopped.

export class PlainPainter {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext('2d', {alpha: false});
    this.view = null;  // {bitmap, x, y, w, h}: the last rendered part of the source
  }

  open(bitmap) { Object.assign(this, {bitmap, view: null}); }

  clear() { this.view = null; }

  put(bitmap, part) { this.view = {bitmap, ...part}; }

  draw({x, y, s}, panes, ground) {
    const {pen, canvas, bitmap} = this;
    pen.fillStyle = `rgb(${ground.map(v => Math.round(255 * v))})`;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    if (!bitmap) return;
    for (const pane of panes) {
      const place = ({x: left, y: top, w, h}) =>
        [pane.centre + (left - x) * s, canvas.height / 2 + (top - y) * s, w * s, h * s];
      pen.save();
      pen.beginPath();
      pen.rect(pane.left, 0, pane.right - pane.left, canvas.height);
      pen.clip();
      pen.imageSmoothingEnabled = pane.kind !== 'nearest';
      pen.imageSmoothingQuality = 'high';
      pen.drawImage(bitmap, ...place({x: 0, y: 0, w: bitmap.width, h: bitmap.height}));
      if (pane.kind === 'liif' && this.view) {
        const [left, top, w, h] = place(this.view), {width, height} = this.view.bitmap;
        if (Math.abs(w - width) < .6) pen.drawImage(this.view.bitmap, Math.round(left), Math.round(top));
        else pen.drawImage(this.view.bitmap, left, top, w, h);
      }
      pen.restore();
    }
  }
}
