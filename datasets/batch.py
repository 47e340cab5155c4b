"""From the loader's batch to floats on the device."""
import torch


def unpack(batch, device):
    """Move a batch and make it float: a dict of
        inp    float32 (B, 3, h, w) in [0, 1]
        coord  float32 (B, Q, 2); None when the queries are all pixels of `size`, in `make_coord` order
        cell   float32 (B, 1, 2), one for all queries, or (B, Q, 2)
        gt     float32 (B, Q, 3) in [0, 1]
        size   int64 (B, 2) on the CPU, (H, W) of the image the queries come from; None when the loader does not tell
    Takes our wrappers' small form (uint8 `inp` and `gt`) and the published form (floats) alike.
    """
    out = {key: batch.get(key) for key in ('inp', 'coord', 'cell', 'gt')}
    for key, value in out.items():
        if value is None:
            continue
        moved = value.to(device, non_blocking=True)
        out[key] = moved.float() / 255 if value.dtype == torch.uint8 else moved.float()
    return {**out, 'size': batch.get('size')}
