"""One question about one image, answered safely, with a picture of what was masked.

python examples/ask.py scene.jpg overlay.png
"""

import sys
from pathlib import Path

from clients import Client, draw_overlay

image = Path(sys.argv[1])
target = Path(sys.argv[2] if len(sys.argv) > 2 else "overlay.png")

with Client() as client:
    answer = client.answer(image, "Describe the image.", return_saliency=True)

print(answer.text)
print(f"{answer.defense.masked} of {answer.defense.total} masked, checkpoint {answer.checkpoint}")
grids = answer.saliency
picture = draw_overlay(
    [image.read_bytes()], [grid.saliency for grid in grids], [grid.masked for grid in grids]
)
target.write_bytes(picture)
