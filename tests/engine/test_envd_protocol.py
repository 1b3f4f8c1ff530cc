"""What envd answers to messages that no SDK sends."""

import json

import pytest
from e2b_code_interpreter import AsyncSandbox


def frame(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        pytest.param("Stat", b"{", 400, "invalid_argument", id="not JSON"),
        pytest.param("Stat", b"[]", 400, "invalid_argument", id="not an object"),
        pytest.param("Stat", b'{"path": 1}', 400, "invalid_argument", id="wrong type"),
        pytest.param("Stat", b'{"path": "missing"}', 404, "not_found", id="missing file"),
        pytest.param("MakeDir", b'{"path": "~"}', 409, "already_exists", id="existing directory"),
        pytest.param("RemoveWatcher", b'{"watcherId": "x"}', 404, "not_found", id="no watcher"),
    ],
)
async def test_an_unary_error_is_a_status_and_a_code(
    sandbox: AsyncSandbox, method: str, body: bytes, status: int, code: str
) -> None:
    response = await sandbox._envd_api.post(
        f"/filesystem.Filesystem/{method}",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", "invalid_argument", id="no message"),
        pytest.param(frame(b"{}") * 2, "invalid_argument", id="two messages"),
        pytest.param(frame(b"{}")[:-1], "invalid_argument", id="cut off"),
        pytest.param(frame(b"{}", flags=1), "unimplemented", id="compressed"),
        pytest.param(frame(b"nonsense"), "invalid_argument", id="not JSON"),
        pytest.param(frame(b'{"process": {"cmd": "/missing"}}'), "invalid_argument", id="no file"),
        pytest.param(
            frame(b'{"process": {"cmd": "true", "envs": {"a=b": "c"}}}'),
            "invalid_argument",
            id="no variable name",
        ),
    ],
)
async def test_a_stream_ends_with_its_error(sandbox: AsyncSandbox, body: bytes, code: str) -> None:
    response = await sandbox._envd_api.post(
        "/process.Process/Start",
        content=body,
        headers={"content-type": "application/connect+json"},
    )
    assert (response.status_code, response.content[0]) == (200, 2)
    assert json.loads(response.content[5:])["error"]["code"] == code


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"content-type": "text/plain"}, b"x", id="other type"),
        pytest.param({"content-type": "application/octet-stream"}, b"x", id="no path"),
        pytest.param(
            {"content-type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx',
            id="multipart cut off",
        ),
        pytest.param(
            {"content-type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
            id="multipart without a file",
        ),
    ],
)
async def test_a_wrong_upload_is_refused(
    sandbox: AsyncSandbox, headers: dict[str, str], body: bytes
) -> None:
    response = await sandbox._envd_api.post("/files", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, 400)
