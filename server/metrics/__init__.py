"""What the service tells Prometheus: requests, answers, swaps and jobs.

Nothing here knows the web framework, and nothing that is measured knows Prometheus: the engine
and the deployer call observers, everything else is read when somebody asks.
"""

from server.metrics.metrics import Metrics
from server.metrics.requests import ObservedRequests
from server.metrics.trace import Trace

__all__ = ["Metrics", "ObservedRequests", "Trace"]
