"""`make install` into a folder, and the wheel into a folder: what is there works from outside of the checkout. Downloads nothing.

The dependencies are those of this environment, by PYTHONPATH: what is installed here is the project alone.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.config.load import load
from tests.support.processes import ROOT

PIP_ARGS = "--no-index --no-deps --no-build-isolation"
LEFT = ("config.yaml", "ingester.environment")


def _run(*command: str, env: dict[str, str] | None = None, cwd: Path | str = "/") -> str:
    """What it printed; its end has to be 0."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        command,
        env={**clean, "LANG": "C.UTF-8", "PYTHONPATH": ":".join(site.getsitepackages()), **(env or {})},
        cwd=cwd, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, (
        f"{' '.join(command)}: {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    )
    return ended.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows of the checkout: building writes into it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".", ":!tests"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split("\0"):  # fmt: skip
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root that it was installed into, as a packager does."""
    root = tmp_path_factory.mktemp("root")
    before = sorted(checkout.rglob("*"))
    _make("install", checkout, root)
    assert sorted(checkout.rglob("*")) == before, "root would have left something in the checkout"
    yield root
    shutil.rmtree(root)


def _make(target: str, checkout: Path, root: Path) -> str:
    return _run(
        "make", target, f"DESTDIR={root}", "PREFIX=/opt/relay", f"PYTHON={sys.executable}", f"PIP_ARGS={PIP_ARGS}",
        cwd=checkout,
    )  # fmt: skip


def test_the_installed_command_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    command = installed / "opt/relay/bin/tradr-relay"
    assert _run(str(command), "--version").startswith("tradr-relay ")
    assert _run(str(command), "--config", str(installed / "etc/tradr-relay/config.yaml"), "config", "check")
    (tmp_path / "link").symlink_to(command)
    assert _run(str(tmp_path / "link"), "--version", cwd=tmp_path).startswith("tradr-relay ")


def test_it_runs_its_own_code_and_not_the_checkout(installed: Path) -> None:
    python = installed / "opt/relay/lib/tradr-relay/bin/python"
    found = _run(str(python), "-c", "import relay; print(relay.__file__)").strip()
    assert Path(found).is_relative_to(installed)


def test_units_completions_and_documents_are_in_place(installed: Path) -> None:
    units = installed / "etc/systemd/system"
    for unit in ("tradr-relay.service", "tradr-relay@.service", "tradr-relay-ingester.service"):
        text = (units / unit).read_text()
        assert "ExecStart=/opt/relay/bin/tradr-relay " in text
        assert "/usr/local/" not in text
    assert (installed / "etc/sysusers.d/tradr-relay.conf").is_file()
    share = installed / "opt/relay/share"
    assert "_tradr_relay" in (share / "bash-completion/completions/tradr-relay").read_text()
    assert (share / "zsh/site-functions/_tradr-relay").is_file()
    assert (share / "fish/vendor_completions.d/tradr-relay.fish").is_file()
    assert (share / "doc/tradr-relay/README.md").is_file()
    assert (installed / "opt/relay/lib/tradr-relay/share/tradr-relay/proto/ingester.proto").is_file()
    assert not [path for path in installed.rglob("*") if path.is_dir() and path.name.endswith(".new")]


def test_no_installed_script_names_the_folder_it_was_made_in(installed: Path) -> None:
    for script in (installed / "opt/relay/lib/tradr-relay/bin").iterdir():
        if script.is_file() and not script.is_symlink() and not script.name.lower().startswith("activate"):
            assert str(installed) not in script.read_text("utf-8").splitlines()[0], script


def test_commands_look_for_the_state_where_the_service_keeps_it(installed: Path) -> None:
    loaded = load(installed / "etc/tradr-relay/config.yaml", {})
    assert loaded.settings.relay.data_dir == "/var/lib/tradr-relay"
    unit = (installed / "etc/systemd/system/tradr-relay.service").read_text()
    assert "Environment=DATA_DIR=/var/lib/tradr-relay\n" in unit


def test_the_configuration_is_for_the_service_and_for_nobody_else(installed: Path) -> None:
    for file in (installed / "etc/tradr-relay").iterdir():
        assert file.stat().st_mode & 0o777 == 0o640, file


def test_uninstall_leaves_what_somebody_changed_and_nothing_else(
    checkout: Path, installed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(installed, root, symlinks=True)
    etc = root / "etc/tradr-relay"
    for name in LEFT:
        with (etc / name).open("a") as file:
            file.write("# ours\n")
    state = root / "var/lib/tradr-relay/spool"
    state.mkdir(parents=True)
    told = _make("uninstall", checkout, root)
    assert sorted(path.name for path in etc.iterdir()) == sorted(LEFT)
    assert all(f"left: {etc / name}" in told for name in LEFT)
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(etc)]
    assert files == []
    assert state.is_dir()


def test_wheel_and_source_distribution_hold_everything(checkout: Path, tmp_path: Path) -> None:
    import tarfile
    import zipfile

    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), ".", cwd=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    (source,) = tmp_path.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(checkout))
        for pattern in ("*.py", "*.pyi", "*.sql", "py.typed")
        for path in (checkout / "relay").rglob(pattern)
        if "__pycache__" not in path.parts
    }
    assert package - names == set()
    assert not [name for name in names if name.startswith("tests/")]
    assert any(name.endswith("share/tradr-relay/proto/ingester.proto") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for path in ("Makefile", "LICENSE", "constraints.txt", "bin/relay", "config/config.yaml", "docs/operations.md",
                 "proto/ingester.proto", "systemd/tradr-relay@.service", "config/docker/Dockerfile"):  # fmt: skip
        assert path in held, path
    # As a user does: into a folder, and away from the checkout.
    target = tmp_path / "target"
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PIP_ARGS.split(),
         "--no-compile", "--target", str(target), str(wheel))  # fmt: skip
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from relay.cli.main import main; sys.exit(main())"
    told = _run(sys.executable, "-c", code, str(target), "db", "migrate", env={"DATA_DIR": str(tmp_path / "data")})
    assert told.startswith("applied 0001 ")
