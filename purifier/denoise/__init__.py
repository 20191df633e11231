"""The reverse process: from a response of masks to text, one denoising step at a time."""

from purifier.denoise.config import EXACT, FAST, GenerationConfig
from purifier.denoise.sampler import denoise
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step

__all__ = ["EXACT", "FAST", "DenoisingState", "GenerationConfig", "denoise", "denoising_step"]
