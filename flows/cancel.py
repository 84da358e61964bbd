"""A flow looks by itself whether it was cancelled: after an outage of the server a worker gives up telling it."""

import contextlib
import time
from collections.abc import Iterator

from prefect import State, states
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.home import Stopped

LOOK_EVERY_S = 10.0
_looked = float("-inf")


class Cancelled(Stopped):
    """The flow run was cancelled on its server."""


class End:
    """How a flow ended, as it returns it to Prefect."""

    state: State | None = None


@contextlib.contextmanager
def ends_cancelled() -> Iterator[End]:
    """A flow's work: where it is given up because it was cancelled, the flow's state is that."""
    end = End()
    try:
        yield end
    except Cancelled as cancelled:
        end.state = states.Cancelled(message=str(cancelled))


def heed_cancel() -> None:
    """Raise Cancelled where the flow run is asked to end; a server that is away is asked again later."""
    global _looked
    if flow_run.id is None or time.monotonic() - _looked < LOOK_EVERY_S:
        return
    try:
        asked = is_cancelling(flow_run.id)
    except Exception:  # whatever is wrong with the server, the work goes on
        asked = False
    _looked = time.monotonic()
    if asked:
        raise Cancelled("the flow run was cancelled")


def is_cancelling(run: str) -> bool:
    """Whether the server has it that a flow run is being cancelled, or was. Raises at once where it is away."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state  # type: ignore[arg-type]
    return state is not None and (state.is_cancelling() or state.is_cancelled())
