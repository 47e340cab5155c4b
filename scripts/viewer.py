"""The zoom viewer, under its former name: see viewer/serve.py."""
import os
import runpy

runpy.run_path(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'viewer', 'serve.py'), run_name='__main__')
