"""Things to run inference on besides image files: a folder behind an address, a video."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


@contextmanager
def serve(folder):
    """The address of this machine under which the files of a folder can be fetched inside the context."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()
        thread.join()


def clip(path, frames=4):
    """Write a short video of one colour, from black to green, and return its path."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), (10 * number, 60 * number, 30 * number), np.uint8))
    writer.release()
    return str(path)
