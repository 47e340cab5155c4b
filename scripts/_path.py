"""Imported first by the programs of this folder: they find the project's packages wherever they are started."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
