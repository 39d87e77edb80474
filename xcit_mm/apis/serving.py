"""A small HTTP server for one model: takes an image, answers with the predictions as JSON or drawn on the image.

    xcit-mm serve CONFIG CHECKPOINT --port 8000
    xcit-mm serve mask_rcnn.onnx --port 8000
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?score_thr=0.5'
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?output=overlay' > overlay.jpg

Waiting requests are computed in batches. The server is one process on one device; put a proxy before it for encryption
and authentication.
"""

import argparse
import asyncio
import base64
import io
import queue
import threading
from concurrent.futures import Future
from typing import List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image

from ..engine.screen import short_screen
from ..errors import UsageError, clear_errors
from .inference import Inferencer

MOST_PIXELS = 50_000_000
MOST_WAITING = 64
PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>xcit_mm</title>
<style>
body { font: 16px sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
img { max-width: 100% } pre { overflow: auto; max-height: 20em }
</style>
<h1 id="name">xcit_mm</h1>
<p><input type="file" id="file" accept="image/*">
<label>from score <input type="number" id="score" value="0.3" min="0" max="1" step="0.05"></label></p>
<p id="state"></p><img id="overlay" alt=""><pre id="found"></pre>
<script>
const get = id => document.getElementById(id)
fetch('health').then(answer => answer.json()).then(health => { get('name').textContent = health.model })
async function look() {
  const file = get('file').files[0]
  if (!file) return
  get('state').textContent = 'computing ...'
  const ask = output => fetch(`predict?output=${output}&score_thr=${get('score').value}`, {method: 'POST', body: file})
  const [overlay, found] = await Promise.all([ask('overlay'), ask('json')])
  const text = await found.json()
  get('state').textContent = found.ok ? '' : text.detail
  get('overlay').src = overlay.ok ? URL.createObjectURL(await overlay.blob()) : ''
  const short = (key, value) => ['map', 'mask'].includes(key) ? '...' : value
  get('found').textContent = found.ok ? JSON.stringify(text, short, 1) : ''
}
get('file').onchange = get('score').onchange = look
</script>
"""


class Job(NamedTuple):
    """A request that waits for its answer.

    Attributes:
        content (bytes): The file.
        score_thr (float): Detections of lower scores are left out.
        overlay (bool): True for a JPEG with the predictions drawn in, False for a result.
        answer (Future): bytes or a dict.
    """

    content: bytes
    score_thr: float
    overlay: bool
    answer: Future


class Worker(threading.Thread):
    """The only thread that uses the model; takes waiting requests in batches of up to ``batch_size`` images."""

    def __init__(self, inferencer: Inferencer, batch_size: int):
        super().__init__(daemon=True, name='model')
        self.inferencer, self.batch_size = inferencer, batch_size
        self.waiting: queue.Queue[Job] = queue.Queue(MOST_WAITING)

    def submit(self, content: bytes, score_thr: float, overlay: bool) -> Future:
        """Queue a request.

        Raises:
            queue.Full: If too many requests are waiting.
        """
        job = Job(content, score_thr, overlay, Future())
        self.waiting.put_nowait(job)
        return job.answer

    def run(self) -> None:
        """Answer for as long as the process lives."""
        while True:
            jobs = [self.waiting.get()]
            while len(jobs) < self.batch_size and not self.waiting.empty():
                jobs.append(self.waiting.get())
            for key in {(job.score_thr, job.overlay) for job in jobs}:
                self._answer([job for job in jobs if (job.score_thr, job.overlay) == key], *key)

    def _answer(self, jobs: List[Job], score_thr: float, overlay: bool) -> None:
        try:
            if overlay:
                for job in jobs:
                    job.answer.set_result(_jpeg(self.inferencer.picture(job.content, score_thr)))
                return
            found = self.inferencer([job.content for job in jobs], score_thr=score_thr, batch_size=len(jobs))
            for job, result in zip(jobs, found):
                job.answer.set_result(_plain(result))
        except Exception as error:  # the thread continues, and those that wait get the error
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)


def _jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode('.jpg', picture[..., ::-1])[1].tobytes()


def _plain(result: dict) -> dict:
    """A result of the inferencer without the name of the image; a label map as a PNG in base64."""
    result = {key: value for key, value in result.items() if key != 'image'}
    if isinstance(result.get('map'), np.ndarray):
        labels = result['map'].astype(np.uint8 if result['map'].max(initial=0) < 256 else np.uint16)
        result['map'] = base64.b64encode(cv2.imencode('.png', labels)[1].tobytes()).decode()
    return result


def create_app(inferencer: Inferencer, name: str, batch_size: int = 8, most_bytes: int = 20_000_000):
    """The application, for any ASGI server.

    Args:
        inferencer (Inferencer): The model.
        name (str): What the page calls it.
        batch_size (int): Images that are computed together, if they are of one size.
        most_bytes (int): Largest file; larger ones, and images of more than 50 million pixels, are refused.

    Returns:
        fastapi.FastAPI: With the paths /, /health and /predict; /docs describes them.

    Raises:
        UsageError: If FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, HTTPException, Query, Request, Response
        from fastapi.responses import HTMLResponse
    except ImportError as error:
        raise UsageError(f'{error.name} is not installed: pip install fastapi uvicorn') from None

    worker = Worker(inferencer, batch_size)
    worker.start()
    app = FastAPI(title=name)

    async def content_of(request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most_bytes:
                raise HTTPException(413, f'the file is larger than {most_bytes / 1e6:g} MB')
            parts.append(part)
        content = b''.join(parts)
        width, height = _size_of(content)
        if width * height > MOST_PIXELS:
            raise HTTPException(413, f'the image has {width}x{height} pixels, more than {MOST_PIXELS / 1e6:g} million')
        return content

    @app.get('/', response_class=HTMLResponse)
    def page() -> str:
        return PAGE

    @app.get('/health')
    def health() -> dict:
        if not worker.is_alive():
            raise HTTPException(503, 'the thread of the model has ended')
        task = type(inferencer.task).__name__.lower()
        classes = list(inferencer.task.classes or ())
        return {'status': 'ok', 'model': name, 'task': task, 'classes': classes, 'waiting': worker.waiting.qsize()}

    @app.post('/predict')
    async def predict(
        request: Request,
        score_thr: float = Query(0.3, ge=0, le=1, description='leave out detections of lower scores'),
        output: str = Query('json', pattern='^(json|overlay)$', description='json, or overlay: a JPEG'),
    ):
        """The body is the image file itself."""
        content = await content_of(request)
        try:
            answer = await asyncio.wrap_future(worker.submit(content, score_thr, output == 'overlay'))
        except queue.Full:
            raise HTTPException(503, f'{MOST_WAITING} requests are waiting already', {'Retry-After': '1'}) from None
        except UsageError as error:
            raise HTTPException(422, str(error)) from None
        if isinstance(answer, bytes):
            return Response(answer, media_type='image/jpeg')
        if 'error' in answer:
            raise HTTPException(422, answer['error'])
        return answer

    return app


def _size_of(content: bytes) -> Tuple[int, int]:
    """Width and height from the header of a file; (0, 0) if Pillow cannot read it: then the reader reports it."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except Image.DecompressionBombError:
        return (MOST_PIXELS, 2)
    except Exception:  # damaged files raise many kinds
        return (0, 0)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the options of the command."""
    parser = argparse.ArgumentParser(
        prog='xcit-mm serve',
        description='Serve a model over HTTP.',
        epilog='example: xcit-mm serve xcit_s12_16_in1k published --port 8000',
    )
    parser.add_argument('model', help='config file, name of a published model, or exported file (.onnx, .xml)')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help="file or address of the weights, or 'published' for those of the name; not for an exported file",
    )
    parser.add_argument('--device', help='such as cuda:0 or cpu; default: a GPU if there is one')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 to be reached from elsewhere; default: 127.0.0.1')
    parser.add_argument('--port', type=int, default=8000, help='default: 8000')
    parser.add_argument('--batch-size', type=int, default=8, help='images computed together; default: 8')
    parser.add_argument('--max-mb', type=float, default=20, help='largest file; default: 20')
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Serve until interrupted."""
    args = parse_args(argv)
    with clear_errors(), short_screen():
        try:
            import uvicorn
        except ImportError:
            raise UsageError('uvicorn is not installed: pip install fastapi uvicorn') from None
        if args.batch_size < 1 or args.max_mb <= 0:
            raise UsageError(f'--batch-size and --max-mb must be above 0, got {args.batch_size} and {args.max_mb:g}')
        checkpoint = None if args.checkpoint == 'published' else args.checkpoint
        inferencer = Inferencer(args.model, checkpoint, args.device)
        app = create_app(inferencer, args.model, args.batch_size, int(args.max_mb * 1e6))
    uvicorn.run(app, host=args.host, port=args.port)


if __name__ == '__main__':
    main()
