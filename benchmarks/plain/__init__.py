"""What is published, done as plainly as it is published: the reference of every speed-up.

One request at a time; a full forward pass at every denoising step; the output head and a
float64 softmax over all positions; masks found by comparing embeddings; six backward passes
one after another for the saliency; the vision tower run anew for every question. Written from
the description of LLaDA-V (arXiv 2505.16933) and DiSP (arXiv 2602.22246) in words of its own,
and kept slow: nothing here is to be improved.

It takes a LLaDA-V that `load_mdlm` has loaded and runs transformers' own modules inside it, so
the product's decoder, caches and batching play no part. What the host prepares (token ids,
tiles) and how projected tiles are laid out is the product's.
"""

from benchmarks.plain.answer import PlainAnswer, plain_answer
from benchmarks.plain.generate import generate
from benchmarks.plain.purify import plain_purify
from benchmarks.plain.saliency import official_scores, top_positions

__all__ = [
    "PlainAnswer",
    "generate",
    "official_scores",
    "plain_answer",
    "plain_purify",
    "top_positions",
]
