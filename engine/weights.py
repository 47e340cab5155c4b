"""The trained weights that come with the project: weights/<name>/model.pth."""
import glob
import os

from utils import UserError

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'weights')


def default_model(folder=FOLDER):
    """The checkpoint to use when none is named: that of the name in weights/default.txt, else the newest one. Raises
    UserError when there is none."""
    try:
        with open(os.path.join(folder, 'default.txt')) as f:
            found = [os.path.join(folder, f.read().strip(), 'model.pth')]
    except FileNotFoundError:
        found = sorted(glob.glob(os.path.join(folder, '*', 'model.pth')), key=os.path.getmtime)
    if not found or not os.path.isfile(found[-1]):
        raise UserError('no weights come with this copy of the project: name a checkpoint, --model save/.../'
                        'epoch-last.pth (bash scripts/quickstart.sh trains a small one in minutes)')
    return found[-1]
