"""The environment names proxies and passwords for other programs; requests go straight to their endpoint without them."""

import pytest


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_proxy_and_no_password_file_of_the_environment_is_heeded(
    scheme, command, serve, record, files, write_requests, tmp_path
):
    proxy = serve(lambda _: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    endpoint = record()
    netrc = tmp_path / "netrc"
    netrc.touch(mode=0o600)
    netrc.write_text("machine 127.0.0.1 login someone password netrc-password-1\n")
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "FTP_PROXY")
    for name in names:
        command.environ |= {name: f"http://{proxy.origin}", name.lower(): f"http://{proxy.origin}"}
    command.environ |= {"NO_PROXY": "", "no_proxy": "", "NETRC": str(netrc), "HOME": str(tmp_path)}
    netrc.with_name(".netrc").write_bytes(netrc.read_bytes())
    netrc.with_name(".netrc").chmod(0o600)
    base_url = endpoint.base_url.replace("http:", f"{scheme}:")
    words = ["run", write_requests(3), "-o", files.results_path, "--base-url", base_url, "--max-attempts", 1]
    ran = command(*words, code=3 if scheme == "https" else 0)
    assert proxy.connections == 0
    assert len(endpoint.received) == (3 if scheme == "http" else 0)
    assert not any("authorization" in headers for headers, _ in endpoint.received)
    if scheme == "https":
        assert "no TLS connection to 127.0.0.1" in ran.err  # it speaks none, and said so itself
