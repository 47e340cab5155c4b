"""Test set-up: the repository root comes first on the path, because `test.py` and `datasets/` share their names
with packages that may be installed."""
import os
import sys


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:] = [ROOT] + [p for p in sys.path if os.path.abspath(p or '.') != ROOT]
for name in ('test', 'datasets'):
    if name in sys.modules and not (getattr(sys.modules[name], '__file__', '') or '').startswith(ROOT):
        del sys.modules[name]

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # busy cores: small two-thread jobs run many times faster
