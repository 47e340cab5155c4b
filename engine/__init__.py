"""What the programs share: configs, devices, batches, training, evaluation, checkpoints, rendering."""
import os


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder of the project

# How long threads that wait for one another spin; set before torch starts any. The default, milliseconds, makes small
# parallel jobs many times slower as soon as another process needs a core (docs/speed.md).
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '3000')
