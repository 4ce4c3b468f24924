"""The page of a running service, as a browser shows it, and its search, as anybody asks it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from tests.integration.backfill.conftest import MakeScene
from tests.integration.service.conftest import address_of, end, get, status
from tests.support.browser import chromium, look_at, picture, shades
from tests.support.waiting import wait_until


def _card(page: str, label: str) -> str:
    found = re.search(rf"<span>{label}</span><b[^>]*>([^<]*)</b>", page)
    assert found, f"{label}: {page[:2000]}"
    return found[1]


def test_a_browser_shows_what_status_says_without_a_complaint_and_goes_on_showing_it(
    make_scene: MakeScene, tmp_path: Path
) -> None:
    chromium()
    scene = make_scene(accounts=12, inactive_share=0.0)
    program = scene.start("run")
    wait_until(lambda: status(scene)["repos"]["synced"] == 12 and status(scene)["firehose"]["connected"], str(program))
    scene.network.write(5)
    wait_until(lambda: status(scene)["firehose"]["cursor"] == scene.network.log.newest_seq, "the cursor at the end")
    url = f"http://{address_of(program, scene)}/"

    shown = status(scene)
    seen = look_at(url, tmp_path)
    assert seen.console == ()
    assert f"<title>{shown['instance']}: running</title>" in seen.dom
    assert _card(seen.dom, "Repos synced") == "12"
    assert _card(seen.dom, "Operations delivered") == f"{shown['operations_delivered']:,}"
    assert _card(seen.dom, "Records delivered") == f"{shown['records_delivered']:,}"

    later = look_at(url, tmp_path, width=390, for_ms=11_000)  # the script has asked twice
    assert later.console == ()
    assert _card(later.dom, "Repos synced") == "12"
    assert re.search(r'<p class="notice" id="stale" hidden="">', later.dom)

    for width, height in ((1280, 1400), (390, 1400)):
        assert shades(picture(url, tmp_path, width=width, height=height))[:2] == (width, height)
    assert shades(tmp_path / "page-1280.png")[2] > 60
    end(program)


def test_a_search_tells_a_repos_story_and_of_what_is_no_did_or_not_known(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=3, inactive_share=0.0)
    program = scene.start("run")
    wait_until(lambda: scene.counts() == {"synced": 3}, f"all at rest: {program}")
    did = scene.network.dids()[0]
    address = address_of(program, scene)
    row = scene.rows()[did]

    code, page = get(address, f"/?did={quote(did)}")
    assert code == 200
    assert f"<h2>{did}</h2>" in page
    for name, text in (("state", "synced"), ("host", row.host), ("rev", row.rev)):
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page, name
    assert "http-equiv" not in page  # what was found stays

    assert "not known here" in get(address, "/?did=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")[1]
    for bad in ("nobody", "did:plc:\0", "'; DROP TABLE repo; --", "<script>alert(1)</script>", "x" * 3000):
        code, page = get(address, f"/?did={quote(bad)}")
        assert code == 200
        assert "This is not a DID" in page
        assert "<script>alert" not in page
    assert scene.counts() == {"synced": 3}
    told = end(program)
    for text in ("stopped after ", "  fetched      3 repos", "  repos        3 synced", "  the next start goes on"):
        assert text in told
