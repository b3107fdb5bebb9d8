"""Bodies and parameters that the OpenAPI document allows, and such that it does not, sent to every operation.

No answer may be a 5xx other than 501 with what is not supported and 503 with `Retry-After`; every answer must be one that the
document names, in the shape that it names. Afterwards the router must answer as before, and hold no more memory than a bound.
"""
import concurrent.futures
import os
import pathlib

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

URL = os.environ["QDRANT_URL"]
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "30"))
# Resident memory that the whole cluster of this suite, router and nodes, may have: with 400 requests at once it had 1800 MiB in
# an unoptimised build, and no more however often.
MEMORY_MIB = 3000
# What operations find: paths name it now and then, so that bodies are not only met by "no such collection".
COLLECTION = "fuzzed"

schema = schemathesis.openapi.from_url(f"{URL}/openapi.json")
operations = {f"{operation.method} {operation.path}": operation for operation in
              (found.ok() for found in schema.get_all_operations())}


def make():
    body = {
        "vectors": {"dense": {"size": 4, "distance": "Cosine"}, "other": {"size": 2, "distance": "Euclid"}},
        "sparse_vectors": {"words": {}},
    }
    requests.put(f"{URL}/collections/{COLLECTION}", json=body, timeout=60)
    points = [
        {"id": n, "vector": {"dense": [n, 1, 0, 1], "other": [1, n], "words": {"indices": [n], "values": [1.0]}},
         "payload": {"n": n, "kind": "even" if n % 2 == 0 else "odd", "tags": ["a", "b"]}}
        for n in range(1, 21)
    ]
    requests.put(f"{URL}/collections/{COLLECTION}/points?wait=true", json={"points": points}, timeout=60).raise_for_status()


@pytest.fixture(scope="module", autouse=True)
def collection():
    make()
    yield
    status = requests.get(f"{URL}/readyz", timeout=10)
    assert status.status_code == 200, "the router does not answer any more"
    assert resident_mib() < MEMORY_MIB


def resident_mib():
    lines = pathlib.Path(f"/proc/{os.environ['NEARRING_PID']}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def only_expected_errors(context, response, case):
    if response.status_code == 503 and "retry-after" not in response.headers:
        raise AssertionError(f"503 without Retry-After: {response.text}")
    if response.status_code >= 500 and response.status_code not in (501, 503):
        raise AssertionError(f"{response.status_code}: {response.text}")


CHECKS = [only_expected_errors, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "not allowed"])
@pytest.mark.parametrize("name", operations)
def test_every_operation(name, mode):
    # One operation's strategy at a time: looking for examples in all of a schema that refers to itself takes for ever.
    @given(case=operations[name].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))
    def send(case):
        removes = case.method.upper() == "DELETE" and case.path == "/collections/{collection}"
        if "collection" in (case.path_parameters or {}) and not removes:
            case.path_parameters["collection"] = COLLECTION
        case.validate_response(case.call(timeout=30), checks=CHECKS)

    try:
        send()
    except Exception as error:
        # An operation without anything to get wrong.
        if type(error).__name__ not in ("Unsatisfiable", "SkipTest", "Skipped"):
            raise


def test_a_body_beyond_the_limit_is_refused():
    body = b'{"points": [' + b" " * (80 << 20) + b"]}"
    answer = requests.put(f"{URL}/collections/{COLLECTION}/points", data=body, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 413, answer.text[:300]
    assert "error" in answer.json()["status"]


def test_a_flood_is_answered_or_told_to_wait():
    query = {"query": [1, 2, 3, 4], "using": "dense", "limit": 10, "params": {"exact": True}}

    def ask(_):
        answer = requests.post(f"{URL}/collections/{COLLECTION}/points/query", json=query, timeout=60)
        return answer.status_code, answer.headers.get("retry-after"), answer.text[:200]

    make()
    memory = []
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(400) as pool:
            answers = list(pool.map(ask, range(2000)))
        for status, wait, text in answers:
            assert status == 200 or (status in (429, 503) and wait), (status, wait, text)
        assert any(status == 200 for status, _, _ in answers)
        memory.append(resident_mib())
    assert memory[1] < 1.2 * memory[0], f"memory grows from flood to flood: {memory} MiB"


@pytest.mark.parametrize("body", [
    "", "{", "[]", "null", "3", '"text"', '{"points": 1e999}', "[" * 20000, '{"filter":' * 2000 + "{}" + "}" * 2000,
    '{"ids": [' + "9" * 4000 + "]}", '{"vector": [NaN]}', "\x00", '{"limit": -1}', '{"limit": 18446744073709551616}',
])
def test_bodies_that_no_schema_would_make(body):
    for path in ("points", "points/scroll", "points/query", "points/delete", "points/payload", "points/batch", "points/count"):
        answer = requests.post(f"{URL}/collections/{COLLECTION}/{path}", data=body.encode(),
                               headers={"content-type": "application/json"}, timeout=30)
        assert 400 <= answer.status_code < 500 or answer.status_code == 200, (path, answer.status_code, answer.text[:300])
