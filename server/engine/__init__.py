"""The engine: one thread owns the model and answers prepared requests, several at a time.

Nothing here knows HTTP. A request is a `Job`; `Engine.reserve` gives it a place, the place
turns it into a `Ticket`, and the ticket's future ends in an `Answer` or an error.
"""

from server.engine.counters import EngineCounters
from server.engine.engine import Engine, EngineState
from server.engine.job import Job, Progress, Serving, Ticket
from server.engine.outcomes import Observer
from server.engine.pace import Room
from server.engine.queue import Place
from server.engine.swap import CommitLater

__all__ = [
    "CommitLater",
    "Engine",
    "EngineCounters",
    "EngineState",
    "Job",
    "Observer",
    "Place",
    "Progress",
    "Room",
    "Serving",
    "Ticket",
]
