"""Whatever comes, comes over either kind of endpoint."""

import pytest

from batchkit.endpoint.http1 import Http1Endpoint
from batchkit.endpoint.session import SessionEndpoint


@pytest.fixture(params=[Http1Endpoint, SessionEndpoint], ids=["http1", "session"], autouse=True)
def open_endpoint(request, monkeypatch):
    """What opens an endpoint of that kind, for a job too."""
    monkeypatch.setattr("batchkit.job.open_endpoint", request.param)
    return request.param
