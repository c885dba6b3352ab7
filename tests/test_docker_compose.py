"""Test that scripts/docker-compose.yml can be read, opens no port to other machines, and calls `synboost listen` as it can be called."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import yaml

from synboost_monai.hospital.options import ListenOptions
from synboost_monai.hospital.peers import Peers

PATH = Path(__file__).resolve().parents[1] / "scripts/docker-compose.yml"


def test_options_exist_and_ports_are_for_this_machine() -> None:
    compose = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    services = compose["services"]
    for service in services.values():
        assert re.fullmatch(r"[\w/]+:\d[\w.-]+", service["image"])  # pinned
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        named = {volume.split(":")[0] for volume in service["volumes"]} - {".."}
        assert named <= set(compose["volumes"])
    words = shlex.split(services["synboost"]["command"][-1])
    words = words[words.index("listen") + 2 :]
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])}
    known = {field.name: field for field in fields(ListenOptions)}
    assert set(given) <= set(known)
    times = {name: float(given.pop(name)) for name in ("quiet_seconds", "poll_seconds")}
    options = ListenOptions(**{**given, "contours": given["contours"] == "true"}, **times)
    assert Peers.of(("poll", options.poll), ("destination", options.destination)).is_same  # no secret is asked for
