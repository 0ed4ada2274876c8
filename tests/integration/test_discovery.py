"""Every service can be discovered and watched with standard tools: reflection, health, --help."""

import subprocess
import sys

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local import Services

NAMES = {
    "embedder": "likeness.embedder.v1.EmbedderService",
    "indexer": "likeness.indexer.v1.IndexerService",
    "gateway": "likeness.gateway.v1.SearchService",
}


@pytest.mark.parametrize("service", NAMES)
def test_reflection_lists_the_service_and_gives_its_whole_contract(services: Services, service: str) -> None:
    with grpc.insecure_channel(services.addresses[service]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAMES[service]),
        ]
        listed, found = stub.ServerReflectionInfo(iter(requests), timeout=10)  # type: ignore[operator]

    names = {each.name for each in listed.list_services_response.service}
    assert {NAMES[service], "grpc.health.v1.Health"} <= names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in found.file_descriptor_response.file_descriptor_proto
    ]
    methods = {method.name for file in files for each in file.service for method in each.method}
    assert methods >= {"embedder": {"Embed"}, "indexer": {"Query"}, "gateway": {"Search", "IndexImages"}}[service]


@pytest.mark.parametrize("service", NAMES)
def test_health_answers_for_the_process_and_for_the_service_by_name(services: Services, service: str) -> None:
    with grpc.insecure_channel(services.addresses[service]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAMES[service]):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)  # type: ignore[attr-defined]
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="another"), timeout=10)  # type: ignore[attr-defined]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", NAMES)
def test_help_prints_every_setting_with_its_default(service: str) -> None:
    done = subprocess.run([sys.executable, "-m", service, "--help"], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    for variable in (f"LIKENESS_{service.upper()}_PORT", "LIKENESS_DRAIN_S", "LIKENESS_LOG_LEVEL"):
        assert f"{variable}  (default: " in done.stdout


def test_a_port_that_is_taken_ends_the_start_with_a_clear_message(services: Services) -> None:
    environment = {**services.environment, "LIKENESS_LOG_STYLE": "json"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert services.addresses["gateway"] in done.stderr
