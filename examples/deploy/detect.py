"""Find objects with an exported detector: ONNX Runtime, NumPy and Pillow, nothing else.

tools/export.py CONFIG CHECKPOINT model.onnx --from-pixels      # with xcit_mm, once
python detect.py model.onnx photo.jpg                           # anywhere: pip install onnxruntime pillow
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def main(model, photo, threshold=0.5):
    session = onnxruntime.InferenceSession(model, providers=onnxruntime.get_available_providers())
    about = session.get_modelmeta().custom_metadata_map
    classes = json.loads(about['classes'])
    image = ImageOps.exif_transpose(Image.open(photo)).convert('RGB')
    boxes, scores, labels, *masks = session.run(None, {'pixels': np.asarray(image)})

    canvas = np.array(image)
    for number in np.flatnonzero(scores >= threshold):
        if masks:
            colour = np.array([220, 20, 60])
            inside = masks[0][number]
            canvas[inside] = canvas[inside] // 2 + colour // 2
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist()):
        if score < threshold:
            continue
        text = f'{classes[label] if classes else label} {score:.2f}'
        print(text, [round(side, 1) for side in box])
        draw.rectangle(box, outline=(220, 20, 60), width=2)
        draw.text(box[:2], text, fill='white', stroke_width=2, stroke_fill='black')
    picture.save('detections.jpg')


if __name__ == '__main__':
    main(*sys.argv[1:3])
