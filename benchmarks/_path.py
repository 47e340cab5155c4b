"""Imported first by the programs of this folder, so that they find the project's packages."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import engine  # noqa: E402 (before torch: it sets how threads wait)
