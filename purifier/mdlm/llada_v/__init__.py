"""LLaDA-V: SigLIP2 tower, two-layer projector, LLaDA-8B."""

from purifier.mdlm.llada_v.model import LladaV

__all__ = ["LladaV"]
