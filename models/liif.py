"""LIIF: a continuous image as a grid of latent codes and an MLP that decodes any coordinate (paper, section 3).

For a query x and the four codes z_t around it (eqs. 2 to 5, notation of the paper):

    s(x) = sum_t S_t / S * f([unfold3x3(z_t), (x - v_t) * (h, w), cell * (h, w)])

with v_t the centre of code t and S_t the area of the rectangle between x and the centre *diagonally opposite* to it.
`models/textbook.py` computes this formula literally, `models/decode.py` the same values in a fraction of the time.
"""
from typing import Annotated

import torch
from torch import nn

import models
from utils import FLAG, Spec, UserError

from . import decode
from .decode import Codes
from .models import EncoderSpec, decodes_grids, features, register


@register('liif', 'model')
class LIIF(nn.Module):
    """encoder_spec: an encoder with `out_dim`; imnet_spec: the decoder f, given `in_dim` here; without it the model
    reads the pixels of an up-sampling encoder (the fixed-scale rows of the paper's tables).
    local_ensemble, feat_unfold, cell_decode: the paper's components, each switchable (table 3: -e, -u, -c)."""

    def __init__(self, encoder_spec: EncoderSpec,
                 imnet_spec: Annotated[dict, Spec('decoder'), 'the decoder; null: the encoder up-samples'] = None,
                 local_ensemble: Annotated[bool, FLAG, 'blend the four codes around a query'] = True,
                 feat_unfold: Annotated[bool, FLAG, 'a code is the 3x3 neighbourhood of features'] = True,
                 cell_decode: Annotated[bool, FLAG, 'the decoder is given the size of the query pixel'] = True):
        super().__init__()
        self.local_ensemble = local_ensemble
        self.feat_unfold = feat_unfold
        self.cell_decode = cell_decode
        self.encoder = models.make(encoder_spec)
        self.imnet = None
        if imnet_spec is not None:
            in_dim = self.encoder.out_dim * (9 if feat_unfold else 1)  # eq. 3: 3x3 codes
            in_dim += 2 + (2 if cell_decode else 0)  # eqs. 1 and 5: relative coordinate and cell
            self.imnet = models.make(imnet_spec, args={'in_dim': in_dim})

    # The protocol of the LIIF family.

    def gen_feat(self, inp):
        """inp: (B, 3, h, w), normalized. Keeps and returns the features (B, C, h, w)."""
        self.kept = None
        self.feat = self.encoder(inp) if self.imnet is None else features(self.encoder, inp)
        return self.feat

    def query_rgb(self, coord, cell=None):
        """coord, cell: (B, Q, 2) in [-1, 1] (cell unused without cell_decode). Returns RGB (B, Q, 3), normalized.

        Reads the features in `self.feat`, which may have been replaced or changed since `gen_feat`.
        """
        return self.decode(self.current_codes(), coord, cell)

    def forward(self, inp, coord, cell):
        if decodes_grids(self):  # the two methods above are ours, so nothing has to be kept for them
            return self.decode(self.encode(inp), coord, cell)
        self.gen_feat(inp)
        return self.query_rgb(coord, cell)

    def current_codes(self):
        """Codes of `self.feat`, kept until the next `gen_feat` while neither it nor the decoder changes (writes through
        `.data` are not noticed); with gradients computed each time, so that these reach encoder and first layer."""
        if torch.is_grad_enabled():
            return self.encode_features(self.feat)
        state = [identity(t) for t in (self.feat, *(self.imnet.parameters() if self.imnet is not None else ()))]
        if self.kept is None or self.kept[0] != state:
            self.kept = state, self.encode_features(self.feat)
        return self.kept[1]

    kept = None  # (what the codes were computed from, codes)

    # Codes as values: encode once, or window by window; decode queries or grids.

    @property
    def halo(self):
        """How far beyond a window `encode` reads, in pixels; None when images cannot be encoded in windows: the
        encoder sees the whole image, or changes its size, or a subclass has features or queries of another kind."""
        if self.imnet is None or not decodes_grids(self):
            return None
        radius = getattr(self.encoder, 'receptive_radius', None)
        return None if radius is None else radius + int(self.feat_unfold)

    @property
    def floats_per_pixel(self):
        """About how many floats encoding holds at once per source pixel, by which tiles are sized."""
        shared = decode.is_relu_mlp(self.imnet)
        table = self.imnet.layers[0].out_features if shared else 9 * self.encoder.out_dim
        return getattr(self.encoder, 'floats_per_pixel', 32 * self.encoder.out_dim) + 2 * table

    def encode(self, inp, window=None):
        """Codes of inp (B, 3, h, w), normalized; with window = (top, left, bottom, right), of that part only.

        A window's codes equal that part of the whole image's: they are computed from the window and `halo` pixels
        around it, never beyond the border. Raises UserError for a window when `halo` is None.
        """
        if window is None:
            return self.encode_features(self.encoder(inp) if self.imnet is None else features(self.encoder, inp))
        if self.halo is None:
            raise UserError('this encoder looks at the whole image, so an image cannot be encoded in tiles exactly; '
                            'encode it whole')
        h, w = inp.shape[-2:]
        top, left, bottom, right = window
        # The table's 3x3 needs features one code beyond the window; its padding then falls only on the border.
        t, l, b, r = grow(window, int(self.feat_unfold), h, w)
        T, L, B, R = grow(window, self.halo, h, w)
        feat = self.encoder(inp[..., T:B, L:R])[..., t - T:b - T, l - L:r - L]
        crop = (slice(top - t, bottom - t), slice(left - l, right - l))
        return Codes(feat[(..., *crop)], decode.feature_table(self, feat, crop), (h, w), (top, left))

    def encode_features(self, feat):
        """Codes of a whole image's features (B, C, h, w)."""
        return Codes(feat, decode.feature_table(self, feat), tuple(feat.shape[-2:]))

    def decode(self, codes, coord, cell=None):
        """RGB (B, Q, 3), normalized, of scattered queries coord, cell (B, Q, 2)."""
        return decode.at_queries(self, codes, coord, cell)

    def decode_grid(self, codes, y, x, cell, chunk=None):
        """RGB (B, 3, H, W), normalized, at the crossings of rows y (H,) and columns x (W,); cell: (2,), one pixel size
        for all; chunk: queries decoded at a time, chosen for the device when None."""
        return decode.on_grid(self, codes, y, x, cell, chunk)


def identity(tensor):
    """A value that changes when a tensor is replaced or written to; writes to inference tensors are not counted."""
    return id(tensor), None if tensor.is_inference() else tensor._version


def grow(window, by, h, w):
    """The window (top, left, bottom, right) extended by `by` pixels, within an image of h x w."""
    top, left, bottom, right = window
    return max(top - by, 0), max(left - by, 0), min(bottom + by, h), min(right + by, w)
