"""The compose file: valid by the published schema, and as locked down as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.__main__ import _serve_parser

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"

Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
    return content


@pytest.fixture(params=["disp", "demo"])
def service(request: pytest.FixtureRequest, compose: dict[str, Any]) -> Service:
    found: Service = compose["services"][request.param]
    return found


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_valid_by_the_compose_specification() -> None:
    result = validate(COMPOSE)
    assert result.returncode == 0, result.stdout


def test_the_check_finds_a_mistake(tmp_path: Path, compose: dict[str, Any]) -> None:
    compose = yaml.safe_load(yaml.safe_dump(compose))
    compose["services"]["disp"]["helthcheck"] = {}
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(yaml.safe_dump(compose))
    result = validate(broken)
    assert result.returncode == 1
    assert "helthcheck" in result.stdout


def test_services_run_with_as_little_as_possible(service: Service) -> None:
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert "privileged" not in service
    assert all(port.startswith("${DISP_BIND:-127.0.0.1}:") for port in service["ports"])


def test_the_key_comes_from_a_secret_file(compose: dict[str, Any], service: Service) -> None:
    assert service["secrets"] == ["disp_api_key"]
    assert set(compose["secrets"]["disp_api_key"]) == {"file"}
    command = service["command"]
    assert command[command.index("--key-file") + 1] == "/run/secrets/disp_api_key"
    assert "environment" not in service


def test_the_server_understands_the_commands(service: Service) -> None:
    args = _serve_parser().parse_args(service["command"])
    assert args.key_file == Path("/run/secrets/disp_api_key")
    assert args.demo or args.model == Path("/model")


def test_health_is_watched_and_the_server_may_drain(service: Service) -> None:
    check = service["healthcheck"]
    assert check["test"][:3] == ["CMD", "disp", "health"]
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    assert service["stop_grace_period"] == "45s"


def test_the_model_gets_a_gpu_and_is_mounted_read_only(compose: dict[str, Any]) -> None:
    disp = compose["services"]["disp"]
    (device,) = disp["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    model, _ = disp["volumes"]
    assert (model["target"], model["read_only"]) == ("/model", True)
    assert disp["profiles"] == ["gpu"]


def test_what_was_activated_outlives_the_container(compose: dict[str, Any]) -> None:
    disp = compose["services"]["disp"]
    _, data = disp["volumes"]
    assert (data["type"], data["source"] in compose["volumes"]) == ("volume", True)
    assert _serve_parser().parse_args(disp["command"]).data_dir == Path(data["target"])
    # A new volume takes the owner of the folder that it hides.
    made = "install --directory --owner=10001 --group=10001 --mode=700 " + data["target"]
    assert made in (ROOT / "docker" / "Dockerfile").read_text("utf-8")


def test_the_demo_needs_neither_gpu_nor_model(compose: dict[str, Any]) -> None:
    demo = compose["services"]["demo"]
    assert demo["profiles"] == ["cpu"]
    assert not {"deploy", "volumes"} & set(demo)
    assert "--demo" in demo["command"]
