"""Many images at once: where does the defence change the answer?

python examples/compare.py scenes/*.jpg

The key must allow undefended answers (scope `infer:undefended`).
"""

import asyncio
import sys

from clients import AsyncClient

QUESTION = "Describe the image."


async def compare(client: AsyncClient, image: str) -> None:
    """Prints both answers to one image."""
    undefended, defended = await asyncio.gather(
        client.answer(image, QUESTION, defense=False), client.answer(image, QUESTION)
    )
    mark = " " if undefended.text == defended.text else "!"
    print(f"{mark} {image}: {undefended.text!r} -> {defended.text!r}")


async def main() -> None:
    """Compares all images of the command line, four at a time."""
    places = asyncio.Semaphore(4)

    async with AsyncClient() as client:

        async def one(image: str) -> None:
            async with places:
                await compare(client, image)

        await asyncio.gather(*(one(image) for image in sys.argv[1:]))


asyncio.run(main())
