"""A model under the names of the published class, and peft on it."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.mdlm.registry import load_mdlm
from purifier.seeding import seeded


class Published(nn.Module):
    """The weights under the modules' names of the published class, around our own modules."""

    def __init__(self, modules: LladaVModules) -> None:
        super().__init__()
        self.model = modules.language_model
        inner, outer = nn.Module(), nn.Module()
        outer.vision_tower = inner
        inner.vision_model = modules.vision_tower
        self.model.vision_tower = outer
        self.model.mm_projector = modules.mm_projector
        self.model.image_newline = modules.image_newline
        self.lm_head = modules.lm_head


def read_by_peft(base: Path, folder: Path) -> dict[str, Tensor]:
    """The weights of a base with an exported folder on it, as the docs say how."""
    mdlm = load_mdlm(base)
    assert isinstance(mdlm.modules, LladaVModules)
    model = Published(mdlm.modules)
    assert model.state_dict().keys() == mdlm.published_weights().keys()
    if (folder / "projector.safetensors").exists():
        found = model.load_state_dict(load_file(folder / "projector.safetensors"), strict=False)
        assert not found.unexpected_keys
    with seeded(0):  # peft draws factors before it reads the stored ones
        wrapped = PeftModel.from_pretrained(model, str(folder))
    return dict(wrapped.merge_and_unload().state_dict())
