"""`GET /v1/models`: what a request may put into `model`."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from server.engine import Serving
from server.errors import ModelNotFound, NotReady
from server.routes.access import EngineHere, Require
from server.routes.description import refusals
from server.schemas import ModelCard, ModelList

router = APIRouter(prefix="/v1/models", dependencies=[Depends(Require("infer"))])


@router.get("", responses=refusals(NotReady))
async def list_models(engine: EngineHere) -> ModelList:
    """Lists the checkpoint that answers and the name `default` that stands for it."""
    return ModelList(data=_cards(engine.serving()))


@router.get("/{model_id:path}", responses=refusals(NotReady, ModelNotFound))
async def get_model(model_id: str, engine: EngineHere) -> ModelCard:
    """Describes one of them."""
    for card in _cards(engine.serving()):
        if card.id == model_id:
            return card
    raise ModelNotFound("No such model is served here; GET /v1/models lists them.")


def _cards(serving: Serving) -> list[ModelCard]:
    names = ("default", serving.checkpoint)
    return [
        ModelCard(id=name, created=serving.created, root=serving.checkpoint, parent=serving.parent)
        for name in names
    ]
