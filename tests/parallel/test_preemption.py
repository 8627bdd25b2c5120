"""The notice of a metadata server that stands in for Google's."""

import http.server
import threading

import pytest

from curia2_jax.parallel import preemption


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """What the server has still to say; it insists on Google's header."""
    left = ["FALSE", "FALSE", "TRUE"]

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google" and self.path.endswith("wait_for_change=true")
            body = left.pop(0).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("localhost", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(preemption, "_URL", f"http://localhost:{server.server_port}/preempted?wait_for_change=true")
    monkeypatch.setattr(preemption, "_MACHINE", tmp_path / "product_name")
    yield left
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_machine_of_google_is_told(answers, tmp_path):
    (tmp_path / "product_name").write_text("Google Compute Engine\n")
    told, said = threading.Event(), []
    preemption.watch(lambda why: (said.append(why), told.set()))
    assert told.wait(20) and said == ["Google Cloud takes this machine back"] and answers == []


@pytest.mark.parametrize("machine", ["Standard PC\n", None])
def test_another_machine_asks_nobody(answers, tmp_path, machine):
    if machine:
        (tmp_path / "product_name").write_text(machine)
    before = threading.active_count()
    preemption.watch(lambda why: None)
    assert threading.active_count() == before and len(answers) == 3
