"""The soak in small."""

from __future__ import annotations

import soak
from running import Running


def test_five_hundred_requests_at_once_of_all_kinds_leave_nothing_behind(server: Running):
    pid = server.process.pid if server.process else None
    report = soak.soak(server, requests=500, connections=64, seed=1, pid=pid)
    assert report["violations"] == [] and report["failed"] == 0 and report["panics"] == 0
    assert report["busy at the end"] == 0
    assert report["good"] > 350 and report["bad"] > 25 and report["broken off"] > 25
