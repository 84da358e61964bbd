import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest

from evaluation.networks.weights import INCEPTION_V3, TABLE, WeightFile, find_weights
from random_weights import row_of, without_hash


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """Of a file that lies in another folder than the weights'."""
    for flag in ("MDM_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(flag, raising=False)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "net.bin"
    file.write_bytes(bytes(range(256)) * 5000)
    return row_of(file, "random_net")


@pytest.fixture
def server(tmp_path: Path, row: WeightFile) -> Iterator[str]:
    """Serves the row's file; ``cut.bin``: of which half comes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (tmp_path / "elsewhere" / row.file).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path == "/cut.bin" else body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_the_table() -> None:
    assert len({row.name for row in TABLE}) == len({row.file for row in TABLE}) == len(TABLE) == 6
    for row in TABLE:
        assert row.url.startswith("https://") and row.source and row.licence
        assert row.sha256 is None or (len(row.sha256) == 64 and row.sha256_from)
        if row.name.startswith("clip"):
            tag = open_clip.get_pretrained_cfg(row.model, "openai")
            assert tag["hf_hub"].strip("/") in row.url and tag["quick_gelu"] == row.quick_gelu
            assert open_clip.get_model_config(row.model)["quick_gelu"] == row.quick_gelu


def test_a_given_file_then_the_folders_then_a_download(tmp_path: Path, row: WeightFile, server: str) -> None:
    folder = tmp_path / "weights"
    served = replace(row, url=f"{server}/net.bin")
    given = tmp_path / "elsewhere" / row.file
    assert find_weights(served, folder, given).path == given and not (folder / row.file).exists()
    found = find_weights(served, folder)
    assert (found.path, found.sha256) == (folder / row.file, row.sha256)
    assert found.path.read_bytes() == given.read_bytes() and list(folder.iterdir()) == [found.path]
    server_is_not_asked = replace(row, url="http://127.0.0.1:9/")
    assert find_weights(server_is_not_asked, folder) == replace(found, row=server_is_not_asked)


def test_a_download_that_breaks_off_or_brings_another_file_leaves_nothing(
    tmp_path: Path, row: WeightFile, server: str
) -> None:
    folder = tmp_path / "weights"
    for wrong, why in (
        (replace(without_hash(row), url=f"{server}/cut.bin"), "640000 of 1280000 bytes|640000 bytes read"),
        (replace(row, url=f"{server}/net.bin", sha256="0" * 64), "not 0000"),
    ):
        with pytest.raises(ValueError, match=f"download failed .*({why}).*curl -fL -o"):
            find_weights(wrong, folder)
        assert list(folder.iterdir()) == []


def test_missing_is_one_line_at_once(tmp_path: Path, row: WeightFile, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError) as nobody_answers:
        find_weights(row, tmp_path)
    with pytest.raises(ValueError) as not_given:
        find_weights(row, tmp_path, tmp_path / "nowhere.bin")
    monkeypatch.setenv("MDM_OFFLINE", "1")
    with pytest.raises(ValueError) as offline:
        find_weights(INCEPTION_V3, tmp_path)
    assert time.monotonic() - began < 1
    assert "net.bin is missing, and the download failed (<urlopen error [Errno 111]" in str(nobody_answers.value)
    assert "nowhere.bin: No such file" in str(not_given.value)
    lacking = f"weights inception_v3: {tmp_path}/inception-2015-12-05.pt is missing, and MDM_OFFLINE=1 forbids"
    get = f"`curl -fL -o {tmp_path}/inception-2015-12-05.pt {INCEPTION_V3.url}` (sha256 {INCEPTION_V3.sha256})"
    assert str(offline.value).startswith(lacking) and str(offline.value).endswith(get)
    assert all("\n" not in str(error.value) for error in (nobody_answers, not_given, offline))


def test_an_altered_file_is_refused(tmp_path: Path, row: WeightFile) -> None:
    file = tmp_path / "elsewhere" / row.file
    unpublished = without_hash(row)
    find_weights(unpublished, tmp_path, file)
    assert (tmp_path / "net.bin.sha256").read_text() == f"{row.sha256}  net.bin\n"
    find_weights(unpublished, tmp_path, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"net.bin has sha256 .*, not .* \(this test\): another file, .*curl"):
        find_weights(row, tmp_path, file)
    with pytest.raises(ValueError, match=r"when it was first used. Put that file back; or delete .*net.bin.sha256"):
        find_weights(unpublished, tmp_path, file)


def test_a_row_outside_the_table_calls_itself_random(tmp_path: Path, row: WeightFile) -> None:
    with pytest.raises(ValueError, match="'inception_v3' are not in the table"):
        find_weights(replace(row, name="inception_v3"), tmp_path, tmp_path / "elsewhere" / row.file)
