"""The zoom viewer, under its former name: see viewer/serve.py."""
import os
import runpy

from _path import ROOT

runpy.run_path(os.path.join(ROOT, 'viewer', 'serve.py'), run_name='__main__')
