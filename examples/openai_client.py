"""The same service through OpenAI's own package; only `defense` is ours.

pip install openai
python examples/openai_client.py scene.jpg
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("DISP_BASE_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ["DISP_API_KEY"],
)
image = Path(sys.argv[1])
kind = {".png": "png", ".webp": "webp"}.get(image.suffix, "jpeg")
url = f"data:image/{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"

completion = client.chat.completions.create(
    model="default",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "Describe the image."},
            ],
        }
    ],
    extra_body={"defense": {"ratio": 0.3}},
)
print(completion.choices[0].message.content)
print((completion.model_extra or {})["defense"])
