"""From a model to images of any size: renderer, image and video files, the Python API."""
