"""Learning from the colours of other weights, or of those a run starts from."""
import random

import torch

from datasets.loader import all_pixels
from engine.checkpoint import load_model
from engine.evaluation.evaluate import predict_rgb


class Teacher:
    """Weights whose colours are mixed into the ground truth. They are not trained.

    The teacher sees every batch flipped and transposed at random. The mean of what it tells is the output of its
    self-ensemble (average over the eight flips and transposes; EDSR's paper, Lim et al., 2017), so even its own
    start teaches a network something.

    config: complete, with `teacher: {model, share}`; device: where the batches are. Raises UserError as `load_model`.
    """

    def __init__(self, config, device):
        self.share, self.precision = config['teacher']['share'], config['precision']
        model, self.data_norm = load_model(config['teacher']['model'], device)
        self.model = model.requires_grad_(False)

    def mix(self, batch):
        """(1 - share) * ground truth + share * the teacher's colours: (B, Q, 3) in [0, 1]. batch: as `unpack` gives it.
        Draws from Python's global generator, which is seeded for each step."""
        seen = predict_rgb(self.model, turned(batch, *(random.random() < 0.5 for _ in range(3))), self.data_norm,
                           precision=self.precision)
        return batch['gt'].lerp(seen, self.share)


def turned(batch, rows, columns, transpose):
    """The batch with its images flipped and transposed, if asked, in this order; each query shows what it did before.
    batch: as `unpack` gives it. Returns {inp: (B, 3, h, w) or (B, 3, w, h), coord: (B, Q, 2), cell: (B, 1, 2) or
    (B, Q, 2), as given}."""
    inp, coord, cell = batch['inp'], batch['coord'], batch['cell']
    if coord is None:
        coord = all_pixels(inp, batch['size'])
    y, x = coord.unbind(-1)
    inp = inp.flip([dim for dim, on in ((2, rows), (3, columns)) if on])
    y, x = -y if rows else y, -x if columns else x
    if transpose:
        inp, y, x, cell = inp.transpose(2, 3), x, y, cell.flip(-1)
    return {'inp': inp, 'coord': torch.stack([y, x], dim=-1), 'cell': cell}
