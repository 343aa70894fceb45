"""Google Drive, replayed on the loopback address from recordings of our own making."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from endauda_cli.weights import drive, transport
from endauda_cli.weights.transport import BLOCK
from tests.support.command_lines import files_of, refused, result_of
from tests.support.packages import make_zip
from tests.support.web_server import Manner, Web, serve
from tests.support.weights_samples import FILE_ID, FOLDER_ID, entry, noise, sha256, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = noise(4 * BLOCK + 99)
UUID = "9d3c1c1e-0000-4000-8000-3f5b7e0a1b2c"

# Google asks before a file that is too large for its scanner: a form whose fields make the real link.
CONFIRMATION = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>
<meta http-equiv="content-type" content="text/html; charset=utf-8"/></head><body><div class="uc-main">
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="other"><input type="hidden" name="trap" value="1"></form>
<form id="download-form" action="{site}/download" method="get">
<input type="submit" id="uc-download-link" value="Download anyway"/>
<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="{uuid}"></form>
</div></body></html>"""

QUOTA = """<html><head><title>Google Drive - Quota exceeded</title></head><body><p class="uc-error-caption">
Sorry, you can't view or download this file at this time.</p><p class="uc-error-subcaption">Too many users have
viewed or downloaded this file recently.</p></body></html>"""

SIGN_IN = """<html><head><title>Google Drive: Sign-in</title></head><body>
<a href="https://accounts.google.com/ServiceLogin?service=wise">Sign in</a></body></html>"""


def listing(title: str, *entries: str) -> bytes:
    return (
        f"<!DOCTYPE html><html><head><title>{title}</title></head><body><div class='flip-list-header'>"
        f"<div class='flip-list-header-name'>Name</div></div><div class='flip-entries'>{''.join(entries)}"
        "</div></body></html>"
    ).encode()


def listed(link: str, name: str) -> str:
    return (
        f'<div class="flip-entry" id="entry-x" tabindex="0" role="link"><div class="flip-entry-info">'
        f'<a href="{link}" target="_blank"><div class="flip-entry-visual"><img src="icon.png" alt="Binary"/></div>'
        f'<div class="flip-entry-title">{name}</div></a></div><div class="flip-entry-last-modified">'
        "<div>5/31/21</div></div></div>"
    )


def file_link(id: str) -> str:
    return f"https://drive.google.com/file/d/{id}/view?usp=drive_web"


def folder_link(id: str) -> str:
    return f"https://drive.google.com/drive/folders/{id}"


class Drive:
    """Folders and files as Google shows them."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.pages: dict[str, bytes] = {}

    def put(self, id: str, content: bytes, confirm: bool = True, name: str = "model.bin") -> None:
        usual = {"Content-Disposition": f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"}
        link = f"/download?id={id}&export=download&confirm=t&uuid={UUID}"
        self.web.put(link, content, None, **{"Last-Modified": "Mon, 31 May 2021 10:00:00 GMT"}, **usual)
        asked = f"/uc?export=download&id={id}"
        if confirm:
            page = CONFIRMATION.format(site=self.web.url, id=id, uuid=UUID).encode()
            self.show(asked, page)
        else:
            self.web.files[asked] = b""
            self.web.usual[asked] = Manner(status=303, headers={"Location": link})

    def show(self, path: str, page: bytes) -> None:
        self.web.put(path, page, None, Content_Type="text/html; charset=utf-8")

    def folder(self, id: str, title: str, *entries: str) -> None:
        self.show(f"/embeddedfolderview?id={id}", listing(title, *entries))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with serve() as web:
        monkeypatch.setattr(drive, "SITE", web.url)
        yield web


@pytest.fixture
def google(web: Web, waits: list[float]) -> Drive:
    return Drive(web)


def words(root: Path, **fields: Any) -> tuple[str | Path, ...]:
    manifest = write_manifest(root, entry(**fields))
    return ("download-weights", "one", "--workspace", root, "--manifest", manifest)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("url", "file", "folder"),
    [
        (f"https://drive.google.com/file/d/{FILE_ID}/view?usp=sharing", FILE_ID, None),
        (f"https://drive.google.com/open?id={FILE_ID}", FILE_ID, None),
        (f"https://drive.google.com/uc?export=download&id={FILE_ID}", FILE_ID, None),
        (f"https://drive.usercontent.google.com/download?id={FILE_ID}&confirm=t", FILE_ID, None),
        (f"https://drive.google.com/drive/folders/{FOLDER_ID}?usp=sharing", None, FOLDER_ID),
        (f"https://drive.google.com/drive/u/0/folders/{FOLDER_ID}", None, FOLDER_ID),
        (f"https://example.org/file/d/{FILE_ID}/view", None, None),
        ("https://drive.google.com/", None, None),
    ],
)
def test_share_links(url: str, file: str | None, folder: str | None) -> None:
    assert (drive.file_id(url), drive.folder_id(url)) == (file, folder)


@pytest.mark.parametrize("confirm", [True, False], ids=["asks first", "sends at once"])
def test_a_file(tmp_path: Path, google: Drive, confirm: bool) -> None:
    google.put(FILE_ID, CONTENT, confirm)
    (found,) = result_of(*words(tmp_path, urls=[file_link(FILE_ID)]))["fetched"]
    assert found["sha256"] == sha256(CONTENT) and found["url"] == file_link(FILE_ID)
    assert (tmp_path / "weights/one.bin").read_bytes() == CONTENT


def test_a_file_is_gone_on_with_after_its_page(tmp_path: Path, google: Drive) -> None:
    """The page ignores ranges, the file does not; not a byte of the file comes twice."""
    google.put(FILE_ID, CONTENT)
    link = next(path for path in google.web.files if path.startswith("/download"))
    headers = google.web.usual[link].headers
    google.web.next[link] = [Manner(cut_after=n, headers=headers) for n in (BLOCK, 0, 2 * BLOCK + 5)]
    google.web.usual[f"/uc?export=download&id={FILE_ID}"] = Manner(
        headers={"Content-Type": "text/html; charset=utf-8"}, ignore_range=True
    )
    result_of(*words(tmp_path, urls=[file_link(FILE_ID)]))
    assert (tmp_path / "weights/one.bin").read_bytes() == CONTENT
    assert google.web.sent(link) == len(CONTENT)
    assert google.web.answers[-1].headers["If-Range"] == "Mon, 31 May 2021 10:00:00 GMT"


def test_a_page_that_comes_in_pieces(tmp_path: Path, google: Drive) -> None:
    """A server that takes the range as one of the page: the page is asked for again, whole."""
    google.put(FILE_ID, CONTENT)
    link = next(path for path in google.web.files if path.startswith("/download"))
    headers = google.web.usual[link].headers
    google.web.next[link] = [Manner(cut_after=9, headers=headers)]
    asked = f"/uc?export=download&id={FILE_ID}"
    of_page = {"Content-Type": "text/html", "Last-Modified": headers["Last-Modified"]}
    google.web.usual[asked] = Manner(headers=of_page)
    result_of(*words(tmp_path, urls=[file_link(FILE_ID)]))
    statuses = [(answer.path.partition("?")[0], answer.status) for answer in google.web.answers]
    assert statuses == [("/uc", 200), ("/download", 200), ("/uc", 206), ("/uc", 200), ("/download", 206)]
    assert google.web.sent(link) == len(CONTENT)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (QUOTA, "Google Drive's download quota of this file is used up; try again tomorrow"),
        (SIGN_IN, "Google Drive asks to sign in: the file is not shared with everyone"),
        ("<html><title>Something new</title></html>", "Google Drive shows a page instead (Something new)"),
    ],
)
def test_pages_that_are_no_file(tmp_path: Path, google: Drive, page: str, reason: str) -> None:
    google.show(f"/uc?export=download&id={FILE_ID}", page.encode())
    found = refused(*words(tmp_path, urls=[file_link(FILE_ID)]))
    assert f"one cannot be fetched: {file_link(FILE_ID)}: {reason}; open https://example.org/page" in found
    assert not list(tmp_path.rglob("*.part"))


def test_quota_after_the_confirmation(tmp_path: Path, google: Drive) -> None:
    google.put(FILE_ID, CONTENT)
    link = next(path for path in google.web.files if path.startswith("/download"))
    google.show(link, QUOTA.encode())
    assert "download quota of this file is used up" in refused(*words(tmp_path, urls=[file_link(FILE_ID)]))


def test_a_form_that_leads_out_of_the_encrypted_connection(
    tmp_path: Path, google: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(drive, "check_hop", lambda a, b: seen.append((a, b)))
    google.put(FILE_ID, CONTENT)
    result_of(*words(tmp_path, urls=[file_link(FILE_ID)]))
    assert seen == [(f"{google.web.url}/uc?export=download&id={FILE_ID}", f"{google.web.url}/download")]


def test_a_busy_drive(tmp_path: Path, google: Drive) -> None:
    google.put(FILE_ID, CONTENT)
    google.web.next[f"/uc?export=download&id={FILE_ID}"] = [
        Manner(status=500, headers={"Content-Type": "text/html"}), Manner(status=429)
    ]  # fmt: skip
    result_of(*words(tmp_path, urls=[file_link(FILE_ID)]))


# ---------------------------------------------------------------------------- folders


def weights_folder(google: Drive) -> dict[str, bytes]:
    """weights/gta5/source/model.bin, weights/gta5/ours.bin, readme.txt, a Google document."""
    files = {f"{c}{FILE_ID}": noise(1000 + i, i) for i, c in enumerate("abc")}
    google.folder(
        FOLDER_ID,
        "weights &amp; more",
        listed(folder_link("1gta5_0123456789"), "gta5"),
        listed(file_link(f"a{FILE_ID}"), "readme.txt"),
        listed(f"https://docs.google.com/document/d/d{FILE_ID}/edit", "notes"),
    )
    google.folder(
        "1gta5_0123456789",
        "gta5",
        listed(folder_link("1source_0123456789"), "source"),
        listed(folder_link(FOLDER_ID), "back to the top"),
        listed(file_link(f"b{FILE_ID}"), "ours &amp; best.bin"),
    )
    google.folder("1source_0123456789", "source", listed(file_link(f"c{FILE_ID}"), "model.bin"))
    for id, content in files.items():
        google.put(id, content)
    return files


def test_a_folder_is_listed(google: Drive) -> None:
    weights_folder(google)
    files = drive.list_folder(folder_link(FOLDER_ID), transport.Patience(), print)
    assert {file.path: file.id for file in files} == {
        "readme.txt": f"a{FILE_ID}",
        "gta5/ours & best.bin": f"b{FILE_ID}",
        "gta5/source/model.bin": f"c{FILE_ID}",
    }


def test_a_file_out_of_a_folder(tmp_path: Path, google: Drive) -> None:
    """Found by the end of its path; later downloads ask for its own id and list nothing."""
    files = weights_folder(google)
    line = words(tmp_path, urls=[folder_link(FOLDER_ID)], member="source/*.bin")
    (found,) = result_of(*line)["fetched"]
    assert found["url"] == f"{google.web.url}/file/d/c{FILE_ID}/view"
    place = tmp_path / "weights/one.bin"
    assert place.read_bytes() == files[f"c{FILE_ID}"]
    place.unlink()
    before = len([a for a in google.web.answers if "folderview" in a.path])
    assert before == 3
    result_of(*line)
    assert place.read_bytes() == files[f"c{FILE_ID}"]
    assert len([a for a in google.web.answers if "folderview" in a.path]) == before


def test_a_file_that_has_changed_since(tmp_path: Path, google: Drive) -> None:
    """The lock file knows what was first seen."""
    weights_folder(google)
    line = words(tmp_path, urls=[folder_link(FOLDER_ID)], member="source/*.bin")
    result_of(*line)
    (tmp_path / "weights/one.bin").unlink()
    google.put(f"c{FILE_ID}", noise(1002, 77))
    found = refused(*line)
    assert f"{tmp_path}/weights/one.bin: " in found and "1,002 bytes with SHA-256" in found
    assert "was first seen on 2" in found and "delete 'one' from" in found
    assert not (tmp_path / "weights/one.bin").exists() and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (
            "nothing.bin",
            "holds readme.txt, gta5/ours & best.bin, gta5/source/model.bin, but nothing like nothing.bin",
        ),
        ("*.bin", "holds several files like *.bin (gta5/ours & best.bin, gta5/source/model.bin)"),
    ],
)
def test_not_one_file(tmp_path: Path, google: Drive, member: str, reason: str) -> None:
    weights_folder(google)
    found = refused(*words(tmp_path, urls=[folder_link(FOLDER_ID)], member=member))
    assert f"{folder_link(FOLDER_ID)}: {reason}; open" in found


def test_a_whole_folder(tmp_path: Path, google: Drive) -> None:
    """Files keep their paths, archives among them are unpacked."""
    files = weights_folder(google)
    google.put(f"a{FILE_ID}", make_zip(tmp_path / "x.zip", {"plf/a.png": b"label"}).read_bytes())
    (tmp_path / "x.zip").unlink()
    line = words(tmp_path, urls=[folder_link(FOLDER_ID)], path="labels/")
    result_of(*line)
    expected = {
        "plf/a.png": b"label",
        "gta5/ours & best.bin": files[f"b{FILE_ID}"],
        "gta5/source/model.bin": files[f"c{FILE_ID}"],
    }
    assert files_of(tmp_path / "labels") == expected
    assert not (tmp_path / "labels.part").exists()


def test_a_whole_folder_is_gone_on_with(tmp_path: Path, google: Drive) -> None:
    """What is complete is not fetched again."""
    weights_folder(google)
    last = f"/uc?export=download&id=c{FILE_ID}"
    google.web.next[last] = [Manner(status=404)]
    line = words(tmp_path, urls=[folder_link(FOLDER_ID)], path="labels/")
    assert "answers 404" in refused(*line)
    assert result_of(*line, "--list")["artefacts"][0]["state"] == "partial"
    before = len(google.web.answers)
    result_of(*line)
    assert next(a.path for a in google.web.answers[before:] if "folderview" not in a.path) == last
    assert len(files_of(tmp_path / "labels")) == 3


@pytest.mark.parametrize("name", ["../../evil", "a/b", "..", "a\\b", "c:d", "a&#10;b"])
def test_a_name_that_is_no_name(tmp_path: Path, google: Drive, name: str) -> None:
    google.folder(FOLDER_ID, "x", listed(file_link(FILE_ID), name))
    google.put(FILE_ID, CONTENT)
    found = refused(*words(tmp_path, urls=[folder_link(FOLDER_ID)], path="labels/"))
    assert "which is no plain name; open" in found
    assert not list(tmp_path.parent.glob("evil*"))


def test_two_files_of_one_name(tmp_path: Path, google: Drive) -> None:
    """Drive allows it; a disk does not."""
    google.folder(FOLDER_ID, "x", *(listed(file_link(f"{c}{FILE_ID}"), "same") for c in "ab"))
    found = refused(*words(tmp_path, urls=[folder_link(FOLDER_ID)], path="labels/"))
    assert "holds two files called same; open" in found


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"m": b"2"}, "holds another m than the files before it; nothing was installed"),
        ({"m/x": b"2"}, "m is both a file and a folder; nothing was installed"),
        ({"m": b"1", "n": b"2"}, None),
    ],
)
def test_two_archives_of_one_folder(
    tmp_path: Path, google: Drive, second: dict[str, bytes], sentence: str | None
) -> None:
    """Neither silently replaces what is in the other."""
    google.folder(FOLDER_ID, "x", *(listed(file_link(f"{c}{FILE_ID}"), f"{c}.zip") for c in "ab"))
    for letter, members in (("a", {"m": b"1"}), ("b", second)):
        google.put(f"{letter}{FILE_ID}", make_zip(tmp_path / "x.zip", members).read_bytes())
    line = words(tmp_path, urls=[folder_link(FOLDER_ID)], path="labels/")
    if sentence is None:
        result_of(*line)
        assert files_of(tmp_path / "labels") == {"m": b"1", "n": b"2"}
    else:
        assert refused(*line).endswith(sentence)
        assert not (tmp_path / "labels").exists()
        assert not (tmp_path / "weights/weights.lock.json").exists()


def test_a_folder_that_holds_nothing(tmp_path: Path, google: Drive) -> None:
    google.folder(FOLDER_ID, "x")
    found = refused(*words(tmp_path, urls=[folder_link(FOLDER_ID)], path="labels/"))
    assert f"{folder_link(FOLDER_ID)}: holds no file; open" in found


def test_a_folder_that_is_not_shared(tmp_path: Path, google: Drive) -> None:
    found = refused(*words(tmp_path, urls=[folder_link(FOLDER_ID)], member="a"))
    assert f"/embeddedfolderview?id={FOLDER_ID}: the server answers 404" in found


def test_a_listing_that_stays_busy(tmp_path: Path, google: Drive) -> None:
    google.web.usual["/embeddedfolderview"] = Manner(status=503)
    found = refused(*words(tmp_path, urls=[folder_link(FOLDER_ID)], member="a"))
    assert "answers 503 Service Unavailable, 5 times in a row" in found


def test_an_archive_behind_a_share_link(tmp_path: Path, google: Drive) -> None:
    """DACS and R-MRNet are published so: the link says nothing of the file's name."""
    content = make_zip(tmp_path / "x.zip", {"saved/model.bin": b"weights"}).read_bytes()
    google.put(FILE_ID, content, name="DACS-saved.zip")
    result_of(*words(tmp_path, urls=[file_link(FILE_ID)], path="teachers/dacs/"))
    assert files_of(tmp_path / "teachers/dacs") == {"saved/model.bin": b"weights"}


def test_a_plain_file_behind_a_share_link(tmp_path: Path, google: Drive) -> None:
    """It keeps the name that the server says; of a path, only the last part."""
    google.put(FILE_ID, CONTENT, name="../../gta5.bin")
    result_of(*words(tmp_path, urls=[file_link(FILE_ID)], path="teachers/dacs/"))
    assert files_of(tmp_path / "teachers/dacs") == {"gta5.bin": CONTENT}
