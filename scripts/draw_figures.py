"""Draw the diagrams of docs/how-liif-works.md:  python scripts/draw_figures.py [--output docs/figures]

Coordinates come from utils.axis_coord, so what is drawn is what the code does.
"""
import io
import os

from _path import ROOT

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle

from engine.runtime import Parser, run_program
from utils import axis_coord, write_file

CODE, QUERY, LINE, SOFT = '#1f3b63', '#d1362f', '#9aa3ad', '#eef1f5'
CORNERS = ['#4c8fd6', '#58a55c', '#e39a2d', '#9a6cc7']  # the four codes: top left, top right, bottom left, bottom right
STYLE = {'font.size': 11, 'font.family': 'DejaVu Sans', 'axes.spines.top': False, 'axes.spines.right': False,
         'axes.edgecolor': LINE, 'axes.titlesize': 12, 'xtick.color': '#444',
         'ytick.color': '#444', 'mathtext.fontset': 'dejavusans'}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--output', default=os.path.join(ROOT, 'docs', 'figures'))
    args = parser.parse_args(argv)
    plt.switch_backend('Agg')
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            data = io.BytesIO()
            figure.savefig(data, format='png', dpi=110, facecolor='white', metadata={'Software': None})
            plt.close(figure)
            write_file(os.path.join(args.output, f'{name}.png'), data.getvalue())


def centres(n):
    return axis_coord(n).numpy()


def draw_grid(ax, h, w):
    """Cells of an h x w grid over [-1, 1] x [-1, 1], y downwards."""
    for k in range(h + 1):
        ax.plot([-1, 1], [-1 + 2 * k / h] * 2, color=LINE, lw=1)
    for k in range(w + 1):
        ax.plot([-1 + 2 * k / w] * 2, [-1, 1], color=LINE, lw=1)


def draw_domain(ax, aspect, title):
    ax.set(xlim=(-1.04, 1.04), ylim=(1.04, -1.04), aspect=aspect, xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlabel='x')
    ax.set_title(title, pad=26)
    ax.set_ylabel('y', rotation=0)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def overview():
    figure, ax = plt.subplots(figsize=(8.4, 2.5), layout='constrained')
    ax.set(xlim=(0, 84), ylim=(0, 25))
    ax.axis('off')

    def box(x, y, w, h, text, color):
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle='round,pad=0,rounding_size=1', fc=color, ec=LINE))
        ax.text(x + w / 2, y + h / 2, text, ha='center', va='center', fontsize=10)

    def arrow(start, end):
        ax.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': '#444', 'lw': 1.2})

    box(1, 14, 12, 8, 'image\n3 × h × w', SOFT)
    box(18, 14, 13, 8, 'encoder\n(EDSR, RDN)', '#dbe7f5')
    box(36, 14, 13, 8, 'codes\nC × h × w', SOFT)
    box(36, 2, 13, 8, 'query: y, x\nand cell', '#f8dcda')
    box(55, 8, 12, 8, 'decoder f\n(MLP)', '#dbe7f5')
    box(72, 8, 11, 8, 'RGB\nat y, x', SOFT)
    arrow((13, 18), (18, 18))
    arrow((31, 18), (36, 18))
    arrow((49, 18), (55, 13.5))
    arrow((49, 6), (55, 10.5))
    arrow((67, 12), (72, 12))
    ax.text(15, 11.5, 'once per image', ha='left', va='top', fontsize=9.5, color='#555')
    ax.text(61, 5.8, 'once per query\nand corner', ha='center', va='top', fontsize=9.5, color='#555')
    return figure


def coordinates():
    """One rectangle, two grids over it: 2 x 3 codes, 3 x 5 output pixels."""
    h, w, H, W = 2, 3, 3, 5
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.5), layout='constrained')
    aspect = h / w
    draw_domain(axes[0], aspect, f'codes: {h} rows, {w} columns')
    draw_grid(axes[0], h, w)
    for y in centres(h):
        for x in centres(w):
            axes[0].plot(x, y, 'o', color=CODE, ms=7)
            label = f'({y:.2g}, {x:.2g})'.replace('-', '−')
            axes[0].text(x, y + 0.13, label, ha='center', va='top', fontsize=9.5, color=CODE)

    draw_domain(axes[1], aspect, f'output: {H} rows, {W} columns')
    axes[1].add_patch(Rectangle((1 - 2 / W, -1), 2 / W, 2 / H, fc='#f8dcda', ec=QUERY, lw=1.5, zorder=3))
    draw_grid(axes[1], H, W)
    ys, xs = np.meshgrid(centres(H), centres(W), indexing='ij')
    axes[1].plot(xs, ys, '.', color=QUERY, ms=7, zorder=4)
    ys, xs = np.meshgrid(centres(h), centres(w), indexing='ij')
    axes[1].plot(xs, ys, 'o', color=CODE, ms=7, mfc='none', zorder=4)
    arrow = {'arrowstyle': '<->', 'color': QUERY, 'lw': 1.2, 'shrinkA': 0, 'shrinkB': 0}
    axes[1].annotate('', (1 - 2 / W, -1.08), (1, -1.08), arrowprops=arrow, annotation_clip=False)
    axes[1].text(1 - 1 / W, -1.12, '2/W', color=QUERY, ha='center', va='bottom')
    axes[1].annotate('', (1.06, -1), (1.06, -1 + 2 / H), arrowprops=arrow, annotation_clip=False)
    axes[1].text(1.1, -1 + 1 / H, '2/H', color=QUERY, va='center')
    return figure


def corners():
    """The query between four codes: each code's weight is the area of the rectangle of its colour."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.1), layout='constrained', width_ratios=[1, 1.15])
    ax, y, x = axes[0], 0.7, 0.35
    # The rectangle between x and a corner has the colour of the corner opposite to it.
    for k, (i, j) in enumerate([(1, 1), (1, 0), (0, 1), (0, 0)]):
        left, top = min(x, j), min(y, i)
        width, height = abs(x - j), abs(y - i)
        ax.add_patch(Rectangle((left, top), width, height, fc=CORNERS[k], alpha=0.35, ec='white', lw=2))
        ax.text(left + width / 2, top + height / 2, f'$S_{{{"00 01 10 11".split()[k]}}}$', ha='center', va='center')
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        ax.plot(j, i, 'o', color=CORNERS[k], ms=13, mec=CODE, mew=1.2, clip_on=False, zorder=4)
        ax.text(j + (0.09 if j else -0.09), i, f'$z_{{{"00 01 10 11".split()[k]}}}$', va='center',
                ha='left' if j else 'right')
    ax.plot(x, y, 'X', color=QUERY, ms=11, zorder=5)
    ax.set(xlim=(-0.25, 1.25), ylim=(1.12, -0.12), aspect=1, title='weight of a code: the area of its colour')
    ax.axis('off')

    ax = axes[1]
    t = np.linspace(0, 1, 200)
    ax.plot(t, 1 - t, color=CORNERS[0], lw=2.5)
    ax.plot(t, t, color=CORNERS[1], lw=2.5)
    ax.text(0.11, 0.91, 'left code', color=CORNERS[0])
    ax.text(0.89, 0.91, 'right code', color=CORNERS[1], ha='right')
    ax.plot([x, x], [0, 1], color=QUERY, lw=1.2, ls='--')
    ax.plot([x, x], [x, 1 - x], 'o', color=QUERY, ms=6)
    ax.text(x + 0.02, 0.03, 'query', color=QUERY)
    ax.set(title='weights along one axis', xticks=[0, 0.5, 1],
           xticklabels=['centre of\nthe left code', 'border', 'centre of\nthe right code'], yticks=[0, 0.5, 1],
           xlim=(0, 1), ylim=(0, 1.02))
    return figure


def ensemble():
    """What one axis looks like with the nearest code alone, and blended."""
    n, t = 4, np.linspace(-1, 1, 801)
    v = centres(n)
    level, slope = np.array([0.15, 0.6, 0.45, 0.8]), np.array([0.25, -0.1, 0.3, -0.2])

    def f(i, x):
        return level[i] + slope[i] * (x - v[i]) * n / 2

    figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.9), layout='constrained', sharey=True)
    nearest = np.clip(((t + 1) * n / 2).astype(int), 0, n - 1)
    left = np.clip(np.floor((t + 1) * n / 2 - 0.5).astype(int), 0, n - 1)
    right = np.clip(left + 1, 0, n - 1)
    right[t < v[0]] = 0
    share = np.clip((t - v[left]) * n / 2, 0, 1)
    blended = (1 - share) * f(left, t) + share * f(right, t)
    for ax, title in zip(axes, ('nearest code alone: jumps at the borders', 'local ensemble: continuous')):
        for i in range(n):
            reach = np.abs(t - v[i]) <= 2 / n
            ax.plot(t[reach], f(i, t[reach]), color=CORNERS[i], lw=1.5, ls=(0, (3, 2)), zorder=1)
            ax.plot(v[i], 0, 'o', color=CORNERS[i], ms=9, clip_on=False, zorder=4)
        for k in range(n + 1):
            ax.axvline(-1 + 2 * k / n, color=LINE, lw=0.8, zorder=0)
        ax.set(title=title, xlim=(-1, 1), ylim=(0, 1.05), yticks=[], xticks=[-1, 0, 1], xlabel='x')
    for i in range(n):
        part = nearest == i
        axes[0].plot(t[part], f(i, t[part]), color=QUERY, lw=2.5, zorder=3)
    axes[1].plot(t, blended, color=QUERY, lw=2.5, zorder=3)
    axes[0].set_ylabel('value')
    return figure


def relative():
    """The relative coordinate of the nearest code, and of the two codes that are blended, along one axis."""
    n, t = 4, np.linspace(-1, 1, 1601)
    v = centres(n)
    figure, ax = plt.subplots(figsize=(8.4, 2.9), layout='constrained')
    for i in range(n):
        rel = (t - v[i]) * n
        ax.plot(np.where(np.abs(rel) <= 2, t, np.nan), rel, color=CORNERS[i], lw=1.3, ls=(0, (3, 2)))
        ax.plot(np.where(np.abs(rel) <= 1, t, np.nan), rel, color=CORNERS[i], lw=3)
        ax.plot(v[i], 0, 'o', color=CORNERS[i], ms=10, mec=CODE, zorder=4)
    for k in range(n + 1):
        ax.axvline(-1 + 2 * k / n, color=LINE, lw=0.8, zorder=0)
    ax.axhline(0, color=LINE, lw=0.8, zorder=0)
    ax.set(xlim=(-1, 1), ylim=(-2.15, 2.15), yticks=[-2, -1, 0, 1, 2], xticks=[-1, -0.75, -0.25, 0.25, 0.75, 1],
           xlabel='x, with the centres and borders of 4 codes', ylabel='(x − centre) · 4')
    return figure


def unfold():
    figure, ax = plt.subplots(figsize=(8.4, 3.1), layout='constrained')
    ax.set(xlim=(-1.2, 16.5), ylim=(5.3, -1.2), aspect=1)
    ax.axis('off')
    for i in range(-1, 4):
        for j in range(-1, 5):
            inside = 0 <= i < 4 and 0 <= j < 5
            near = i in (-1, 0, 1) and j in (2, 3, 4)
            ax.add_patch(Rectangle((j, i), 1, 1, fc='#dbe7f5' if near and inside else 'white' if inside else SOFT,
                                   ec=LINE, lw=1, ls='-' if inside else ':'))
            if inside:
                ax.plot(j + 0.5, i + 0.5, 'o', color=CODE, ms=4)
            elif near:
                ax.text(j + 0.5, i + 0.5, '0', ha='center', va='center', color='#777')
    ax.add_patch(Rectangle((2, -1), 3, 3, fc='none', ec=QUERY, lw=2, zorder=4))
    ax.plot(3.5, 0.5, 'o', color=QUERY, ms=8, zorder=5)
    for k in range(9):
        ax.text(k % 3 + 2.16, k // 3 - 0.81, k, fontsize=8.5, color=QUERY, ha='center', va='center', zorder=6)
    ax.text(2.0, 4.35, 'codes, C channels each', ha='center', va='top', fontsize=10.5)

    left = 7.1
    ax.annotate('', (left - 0.15, 0.5), (5.2, 0.5), arrowprops={'arrowstyle': '-|>', 'color': '#444', 'lw': 1.3})
    for name, x0 in (('channel 0', left), ('channel C−1', left + 9 * 0.45 + 1.0)):
        for k in range(9):
            ax.add_patch(Rectangle((x0 + k * 0.45, 0.05), 0.45, 0.9, fc=SOFT if k < 3 else '#dbe7f5', ec=LINE))
            ax.text(x0 + (k + 0.5) * 0.45, 0.5, k, ha='center', va='center', fontsize=8.5, color=QUERY)
        ax.text(x0 + 4.5 * 0.45, 1.2, name, ha='center', va='top', fontsize=10.5)
    ax.text(left + 9 * 0.45 + 0.5, 0.5, '…', ha='center', va='center')
    ax.text(left + 9 * 0.45 + 0.5, 2.6, 'one code of 9C channels: c · 9 + k', ha='center', va='center', fontsize=10.5)
    return figure


def ties():
    """Queries moved half a code to either side: between codes at x2, on the very border at x3."""
    figure, axes = plt.subplots(2, 1, figsize=(8.4, 3.9), layout='constrained')
    for ax, s in zip(axes, (2, 3)):
        n = 3
        v, q = centres(n), centres(n * s)
        for i in range(n):
            ax.add_patch(Rectangle((-1 + 2 * i / n, 0), 2 / n, 0.5, fc=SOFT, ec=LINE))
            ax.plot(v[i], 0.25, 'o', color=CODE, ms=14, mfc='white', mew=1.5, zorder=3)
        ax.plot(q, [0.25] * len(q), 'x', color=QUERY, ms=7, mew=2, zorder=4)
        one = q[s + s // 2]
        for side in (-1, 1):
            ax.annotate('', (one + side / n, 0.82), (one, 0.82), arrowprops={
                'arrowstyle': '-|>', 'color': QUERY, 'lw': 1.4, 'shrinkA': 0, 'shrinkB': 0})
            ax.plot([one + side / n] * 2, [0.5, 0.8], color=QUERY, lw=1, ls=':')
        ax.plot([one, one], [0.25, 0.82], color=QUERY, lw=1, ls=':')
        ax.text(one, 0.9, '± half a code', ha='center', va='bottom', color=QUERY, fontsize=10)
        ax.text(-1.04, 0.25, f'×{s}', ha='right', va='center', fontsize=13)
        where = 'inside a code on either side' if s % 2 == 0 else 'exactly on the border of two codes'
        ax.text(1.04, 0.25, where, ha='left', va='center', fontsize=10.5)
        ax.set(xlim=(-1.12, 1.95), ylim=(-0.05, 1.15))
        ax.axis('off')
    return figure


def cell():
    figure, ax = plt.subplots(figsize=(8.4, 1.9), layout='constrained')
    ax.axvspan(0.5, 2, color='#dbe7f5')
    ax.text(1.25, 0.74, 'trained: ×1 to ×4', ha='center', va='center', fontsize=10.5, color=CODE)
    for s in (1, 2, 3, 4, 6, 8, 12, 30):
        trained = s <= 4
        ax.plot(2 / s, 0.25, 'o', color=CODE if trained else QUERY, ms=8)
        ax.text(2 / s, 0.36, f'×{s}', ha='center', va='bottom', fontsize=10, color=CODE if trained else QUERY)
    ax.set(xlim=(0, 2.08), ylim=(0, 1), yticks=[], xticks=[0, 0.5, 1, 1.5, 2], xlabel='relative cell, 2 / scale')
    ax.spines['left'].set_visible(False)
    return figure


FIGURES = {draw.__name__: draw for draw in (overview, coordinates, relative, corners, ensemble, unfold, cell, ties)}

if __name__ == '__main__':
    run_program(main)
