"""Model families behind one protocol."""

from purifier.mdlm.base import ImageInput, Inputs, Mdlm, Message, Prompt
from purifier.mdlm.registry import checkpoint_id, load_mdlm

__all__ = ["ImageInput", "Inputs", "Mdlm", "Message", "Prompt", "checkpoint_id", "load_mdlm"]
