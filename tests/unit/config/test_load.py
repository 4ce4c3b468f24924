"""From file, environment and flags to settings: order, names, and every mistake with its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from relay.config.keys import KEYS, Key
from relay.config.load import BadConfig, Loaded, load
from relay.config.schema import Settings
from relay.config.show import value_of
from relay.errors import ConfigError

HOME = {"HOME": "/home/ada"}


def _load(
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, tuple[Any, str]] | None = None,
    *,
    folder: Path | None = None,
    is_root: bool = False,
) -> Loaded:
    """Load `text` as `folder/relay.yaml`, with no usual file in sight."""
    path = None
    if text is not None:
        assert folder is not None
        path = folder / "relay.yaml"
        path.write_text(text)
    return load(path, {**HOME, **(environ or {})}, overrides, usual_files=(), is_root=is_root)


def _mistakes(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines of the error, with FILE for the file's name."""
    with pytest.raises(BadConfig) as caught:
        _load(text, environ, folder=folder)
    return [str(mistake).replace(str(folder / "relay.yaml"), "FILE") for mistake in caught.value.mistakes]


def test_without_anything_the_declared_defaults_are_in_force() -> None:
    loaded = _load()
    for name, key in KEYS.items():
        if name not in ("relay.data_dir", "database.path"):
            assert value_of(loaded.settings, name) == key.default, name
            assert loaded.origins[name] == "default"


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    text = "backfiller:\n  slots: 5\n  workers: 5\n  parallel_backfills: 5\n"
    environ = {"WORKERS": "6", "BACKFILLER_PARALLEL_BACKFILLS": "6"}
    loaded = _load(text, environ, {"backfiller.parallel_backfills": (7, "--parallel")}, folder=tmp_path)
    section = loaded.settings.backfiller
    assert (section.slots, section.workers, section.parallel_backfills) == (5, 6, 7)
    assert loaded.origins["backfiller.slots"] == f"{tmp_path}/relay.yaml:2"
    assert loaded.origins["backfiller.workers"] == "environment WORKERS"
    assert loaded.origins["backfiller.parallel_backfills"] == "--parallel"
    assert not loaded.is_default("backfiller.slots")
    assert loaded.is_default("backfiller.buffer_size")


def _other_value(key: Key) -> str:
    """Return an acceptable text for `key` that is not its default."""
    special = {
        "firehose.relay_host": "wss://other.example",
        "firehose.nsid_filter": "com.example.",
        "discovery.collections": "com.example.post",
        "discovery.collection_host": "https://other.example",
        "discovery.mode": "tracked",
        "identity.plc_url": "https://plc.example",
        "ingesters": "one.example:1,two.example:2",
        "verify.max_record_bytes": "77",
        "database.max_idle_conns": "7",
        "delivery.batch_bytes": "2048",
        "metrics.port": "9999",
        "database.dsn": "host=other",
    }
    if key.name in special:
        return special[key.name]
    if key.choices:
        return next(choice for choice in key.choices if choice != key.default)
    if key.type is bool:
        return "false" if key.default else "true"
    if key.type is str:
        return "/some/where" if key.is_path else "other"
    lower, upper = key.at_least or 0, key.at_most if key.at_most is not None else 1e9
    return str(key.type((key.default + 1) if key.default + 1 <= upper else lower))


@pytest.mark.parametrize("name", KEYS)
def test_every_key_can_be_set_by_each_of_its_variables_and_in_the_file(name: str, tmp_path: Path) -> None:
    key = KEYS[name]
    text = _other_value(key)
    # Files that TLS needs come in pairs.
    pair = {"tls_cert": "tls_key", "tls_key": "tls_cert"}.get(name.rpartition(".")[2])
    beside: dict[str, str] = {}
    if pair:
        beside[name.rpartition(".")[0].upper() + "_" + pair.upper()] = "/pair"
    if name.startswith("delivery.tls_") and not name.endswith("tls_ca"):
        beside["DELIVERY_TLS_CA"] = "/ca"
    if name.endswith("client_ca"):
        beside |= {"GRPC_TLS_CERT": "/cert", "GRPC_TLS_KEY": "/key"}
    if name == "grpc.host":
        beside["GRPC_TOKEN_FILE"] = "/token"
    assert name.replace(".", "_").upper() in key.variables
    seen = []
    for variable in key.variables:
        loaded = _load(environ={**beside, variable: text})
        assert loaded.origins[name] == f"environment {variable}"
        seen.append(value_of(loaded.settings, name))
    section, _, last = name.rpartition(".")
    line = f"'{text}'" if key.type in (str, tuple) else text
    yaml_text = f"{section}:\n  {last}: {line}\n" if section else f"{last}: {line}\n"
    loaded = _load(yaml_text, beside, folder=tmp_path)
    seen.append(value_of(loaded.settings, name))
    assert seen == [seen[0]] * len(seen)
    assert seen[0] != value_of(_load().settings, name)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("relay.name", "RELAY_NAME"),
        ("relay.data_dir", "DATA_DIR"),
        ("firehose.relay_host", "FIREHOSE_HOST"),
        ("firehose.nsid_filter", "NSID_FILTER"),
        ("discovery.mode", "DISCOVERY_MODE"),
        ("backfiller.parallel_backfills", "PARALLEL_BACKFILLS"),
        ("backfiller.workers", "WORKERS"),
        ("verify.workers", "VERIFY_WORKERS"),
        ("backfiller.buffer_size", "BUFFER_SIZE"),
        ("identity.plc_url", "PLC_URL"),
        ("http.contact", "HTTP_CONTACT"),
        ("ingesters", "INGESTER_ADDRESSES"),
        ("delivery.record_encoding", "RECORD_ENCODING"),
        ("grpc.port", "GRPC_PORT"),
        ("database.dsn", "DATABASE_DSN"),
        ("database.path", "DATABASE_PATH"),
        ("metrics.port", "METRICS_PORT"),
        ("security.allow_private_hosts", "ALLOW_PRIVATE_HOSTS"),
        ("log_level", "LOG_LEVEL"),
        ("log_format", "LOG_FORMAT"),
    ],
)
def test_the_short_names_that_operators_rely_on(name: str, short: str) -> None:
    assert short in KEYS[name].variables


def test_both_names_set_alike_is_fine_and_differently_is_an_error(tmp_path: Path) -> None:
    same = _load(environ={"NSID_FILTER": "a.b.c, d.e.f", "FIREHOSE_NSID_FILTER": "a.b.c,d.e.f"})
    assert same.settings.firehose.nsid_filter == ("a.b.c", "d.e.f")
    assert _mistakes(tmp_path, "", {"WORKERS": "3", "BACKFILLER_WORKERS": "4"}) == [
        "environment: backfiller.workers: WORKERS=3 and BACKFILLER_WORKERS=4 differ; set one of them"
    ]


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    loaded = _load(environ={"RELAY_NAME": "", "WORKERS": "", "BACKFILLER_WORKERS": "3", "INGESTER_ADDRESSES": ""})
    assert loaded.settings.relay.name == "tradr-relay"
    assert loaded.settings.backfiller.workers == 3


@pytest.mark.parametrize("variable", ["NSID_FILTER", "FIREHOSE_NSID_FILTER"])
def test_an_empty_filter_variable_means_every_collection(variable: str) -> None:
    assert _load(environ={variable: ""}).settings.firehose.nsid_filter == ()


@pytest.mark.parametrize("variable", ["FIREHOSE_HOST", "FIREHOSE_RELAY_HOST"])
def test_an_empty_host_variable_means_no_firehose(variable: str) -> None:
    assert _load(environ={variable: ""}).settings.firehose.relay_host == ""


def test_an_empty_and_a_full_filter_variable_differ(tmp_path: Path) -> None:
    lines = _mistakes(tmp_path, "", {"NSID_FILTER": "", "FIREHOSE_NSID_FILTER": "a.b.c"})
    assert lines == [
        "environment: firehose.nsid_filter: NSID_FILTER= and FIREHOSE_NSID_FILTER=a.b.c differ; set one of them"
    ]


def test_every_mistake_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    text = """
relay: {name: 12}
backfiller:
  paralel_backfills: 3
  slots: 1
backfiler: {}
log_level: loud
ingesters: [a]
verify: {signatures: "yes"}
http:
"""
    with pytest.raises(ConfigError) as caught:
        _load(text, {"WORKERS": "many", "METRICS_PORT": "70000"}, folder=tmp_path)
    file = tmp_path / "relay.yaml"
    assert str(caught.value).splitlines() == [
        "9 mistakes in the configuration:",
        f"  {file}:4: backfiller.paralel_backfills: no such key (did you mean parallel_backfills?)",
        f"  {file}:6: backfiler: no such key (did you mean backfiller?)",
        f"  {file}:2: relay.name: expected text, got 12; put it in quotes if it is meant",
        f"  {file}:5: backfiller.slots: 1 is too small; at least 2",
        f"  {file}:7: log_level: expected one of debug, info, warning, error, got loud",
        f"  {file}:9: verify.signatures: expected true or false, got the text 'yes'",
        "  environment WORKERS: backfiller.workers: expected a whole number, got many",
        "  environment METRICS_PORT: metrics.port: 70000 is too large; at most 65535",
        f"  {file}:8: ingesters: a: a: expected host:port, the port is missing",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relay:\n  name: a\n  name: b\n", "FILE:3: relay.name: is set twice, first on line 2"),
        ("relay: {}\nhttp: {}\nrelay: {}\n", "FILE:3: relay: is set twice, first on line 1"),
        ("relay: [1]\n", "FILE:1: relay: expected keys, as in `name: value`"),
        ("- relay\n", "FILE:1: expected sections, as in `name: value`"),
        ("relay:\n  name:\n", "FILE:2: relay.name: has no value; remove the line, or write '' for an empty text"),
        ("metrics: {port: 10:30}\n", "FILE:1: metrics.port: expected a whole number, got 10:30"),
        ("metrics: {port: '9090'}\n", "FILE:1: metrics.port: expected a whole number, got the text '9090'"),
        ("metrics: {port: 1.5}\n", "FILE:1: metrics.port: expected a whole number, got 1.5"),
        ("metrics: {port: [1]}\n", "FILE:1: metrics.port: expected a whole number, got a list"),
        ("http: {connect_timeout_sec: .inf}\n", "FILE:1: http.connect_timeout_sec: expected a number, got .inf"),
        ("http: {connect_timeout_sec: .}\n", "FILE:1: http.connect_timeout_sec: expected a number, got ."),
        ("http: {contact: 5}\n", "FILE:1: http.contact: expected text, got 5; put it in quotes if it is meant"),
        ("relay: {data_dir: off}\n", "FILE:1: relay.data_dir: expected text, got off; put it in quotes if it is meant"),
        ("relay: {name: !!binary aGk=}\n", "FILE:1: relay.name: expected text"),
        ("relay: {<<: {name: x}}\n", "FILE:1: relay.<<: no such key"),
        ("relay: {port: 1}\n", "FILE:1: relay.port: no such key (did you mean metrics.port?)"),
        ("relay: {? [a] : 1}\n", "FILE:1: relay.?: no such key"),
        ('http: {contact: "a\\r\\nX: y"}\n', "FILE:1: http.contact: contains a line break or another control character: 'a\\r\\nX: y'"),
        ("a: b: c\n", "FILE:1: is not YAML: mapping values are not allowed here"),
        ("a: *b\n", "FILE:1: is not YAML: found undefined alias 'b'"),
        ("--- a\n--- b\n", "FILE:2: is not YAML: but found another document"),
        ("discovery: {mode: collection}\n", "FILE:1: discovery.mode: collection needs discovery.collections: the NSIDs that a tracked repo holds one of"),
        ("discovery: {collections: [app.bsky.]}\n", "FILE:1: discovery.collections: app.bsky.: app.bsky. is a prefix; collections are listed by whole NSIDs"),
        ("firehose: {nsid_filter: '-'}\n", None),
        ("firehose: {nsid_filter: 'no spaces.'}\n", None),
        ("database: {max_idle_conns: 60}\n", "FILE:1: database.max_idle_conns: more idle connections than database.max_open_conns allows (50)"),
        ("grpc: {tls_cert: /c}\n", "FILE:1: grpc.tls_cert: needs grpc.tls_key beside it"),
        ("metrics: {port: 50051}\n", "FILE:1: metrics.port: 50051 is grpc.port already"),
        ("ingesters: ['a:1', 'a:1']\n", "FILE:1: ingesters: a:1,a:1: a:1 is listed twice; one address is one ingester"),
        ("database: {dsn: 'postgres//u:hunter2@h/d'}\n", "FILE:1: database.dsn: ***: expected postgresql://user:password@host:5432/name, or key=value pairs as libpq reads them"),
        ("grpc: {host: 0.0.0.0}\n", "FILE:1: grpc.host: 0.0.0.0 can be reached from other machines: calls need grpc.token_file then"),
        ("relay: {name: ''}\n", "FILE:1: relay.name: : expected 1 to 64 printable ASCII characters"),
    ],
)  # fmt: skip
def test_a_mistake_names_key_value_and_place(text: str, message: str | None, tmp_path: Path) -> None:
    lines = _mistakes(tmp_path, text)
    assert len(lines) == 1
    if message is None:
        assert lines[0].startswith("FILE:1: firehose.nsid_filter: ")
    else:
        assert lines == [message]


def test_no_message_shows_a_password(tmp_path: Path) -> None:
    text = 'database: {dsn: "postgresql://u:hunter2@h/d\\n"}\n'
    lines = _mistakes(tmp_path, text, {"DATABASE_DSN": "host=h password=hunter2\n"})
    assert len(lines) == 2
    assert not any("hunter2" in line for line in lines)


def test_two_dsn_variables_that_differ_show_no_password(tmp_path: Path) -> None:
    # DATABASE_DSN is both the short and the long name: a flag is the only other source, and it wins.
    loaded = _load(environ={"DATABASE_DSN": "host=a"}, overrides={"database.dsn": ("host=b", "--dsn")})
    assert loaded.settings.database.dsn == "host=b"


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    for path, environ in ((missing, {}), (None, {"RELAY_CONFIG": str(missing)})):
        with pytest.raises(BadConfig, match=r"none\.yaml: cannot be read: No such file"):
            load(path, environ, usual_files=())


def test_the_first_usual_file_that_exists_is_read(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    second.write_text("log_level: debug\n")
    assert load(None, HOME, usual_files=(first, second)).settings.log_level == "debug"
    first.write_text("log_level: error\n")
    loaded = load(None, HOME, usual_files=(first, second))
    assert loaded.settings.log_level == "error"
    assert loaded.file == first
    named = tmp_path / "named.yaml"
    named.write_text("")
    assert load(None, {**HOME, "RELAY_CONFIG": str(named)}, usual_files=(first,)).file == named
    assert load(second, {**HOME, "RELAY_CONFIG": str(named)}, usual_files=(first,)).file == second


def test_the_usual_file_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("log_level: error\n")
    monkeypatch.chdir(tmp_path)
    assert load(None, HOME).settings.log_level == "error"


def test_a_usual_place_that_is_no_file_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read: Is a directory"):
        load(None, HOME, usual_files=(tmp_path,))


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.yaml"
    path.write_bytes(b"relay:\n  name: \xff\n")
    with pytest.raises(BadConfig, match=r"relay\.yaml:2: is not UTF-8"):
        load(path, HOME)
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(BadConfig, match="larger than 1,048,576 bytes"):
        load(path, HOME)
    path.write_text("[" * 100_000)
    with pytest.raises(BadConfig, match="is not YAML"):
        load(path, HOME)


@pytest.mark.parametrize(
    ("environ", "is_root", "data_dir", "path"),
    [
        ({}, True, "/var/lib/tradr-relay", "/var/lib/tradr-relay/pg"),
        ({}, False, "/home/ada/.local/share/tradr-relay", "/home/ada/.local/share/tradr-relay/pg"),
        ({"DATABASE_PATH": "/srv/state/base"}, True, "/srv/state", "/srv/state/base"),
        ({"DATA_DIR": "/srv/data"}, False, "/srv/data", "/srv/data/pg"),
        ({"DATA_DIR": "/srv/data", "DATABASE_PATH": "/else/pg"}, False, "/srv/data", "/else/pg"),
        ({"DATA_DIR": "~/relay"}, False, "/home/ada/relay", "/home/ada/relay/pg"),
        ({"DATA_DIR": "here"}, False, f"{os.getcwd()}/here", f"{os.getcwd()}/here/pg"),
    ],
)
def test_folders_that_nobody_chose(environ: dict[str, str], is_root: bool, data_dir: str, path: str) -> None:
    settings = _load(environ=environ, is_root=is_root).settings
    assert (settings.relay.data_dir, settings.database.path) == (data_dir, path)


def test_addresses_are_brought_into_one_form(tmp_path: Path) -> None:
    text = """
firehose: {relay_host: "https://Relay.Example/xrpc/com.atproto.sync.subscribeRepos", nsid_filter: [app.bsky.*, com.example.a]}
discovery: {collection_host: wss://lists.example}
identity: {plc_url: "http://localhost:2582/"}
ingesters: "one:1, [::1]:2"
"""
    settings = _load(text, folder=tmp_path).settings
    assert settings.firehose.relay_host == "wss://relay.example"
    assert settings.firehose.nsid_filter == ("app.bsky.", "com.example.a")
    assert settings.discovery.collection_host == "https://lists.example"
    assert settings.identity.plc_url == "http://localhost:2582"
    assert settings.ingesters == ("one:1", "[::1]:2")


def test_flags_have_the_type_of_their_key_or_are_parsed() -> None:
    loaded = _load(
        overrides={
            "firehose.nsid_filter": (["app.bsky.feed.post"], "--collection"),
            "http.connect_timeout_sec": (3, "--timeout"),
            "backfiller.workers": ("4", "--workers"),
        }
    )
    assert loaded.settings.firehose.nsid_filter == ("app.bsky.feed.post",)
    assert loaded.settings.http.connect_timeout_sec == 3.0
    assert loaded.settings.backfiller.workers == 4
    with pytest.raises(BadConfig, match=r"--workers: backfiller\.workers: expected a whole number, got true"):
        _load(overrides={"backfiller.workers": (True, "--workers")})


def test_a_misspelt_variable_is_warned_of_and_a_foreign_one_is_not() -> None:
    environ = {
        "BACKFILLER_WORKRS": "3",
        "WORKRS": "3",
        "PORTS": "80",
        "LOGNAME": "somebody",
        "HTTP_PROXY": "http://proxy",
        "GRPC_VERBOSITY": "debug",
        "RELAY_TEST_DATA": "x",
    }
    warnings = _load(environ=environ).warnings
    assert warnings == (
        "environment BACKFILLER_WORKRS: no such setting (did you mean BACKFILLER_WORKERS?)",
        "environment WORKRS: no such setting (did you mean WORKERS?)",
    )


def test_settings_can_be_built_by_hand_with_the_same_defaults() -> None:
    by_hand, loaded = Settings(), _load().settings
    assert by_hand.delivery == loaded.delivery
    assert by_hand.firehose == loaded.firehose


def test_a_file_that_says_what_the_default_is_asks_for_nothing_and_an_environment_that_does_asks(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("log_level: info\n")
    assert load(file, {}).is_left_alone("log_level")
    assert not load(file, {}).is_default("log_level")
    assert not load(file, {"LOG_LEVEL": "info"}).is_left_alone("log_level")
    assert not load(file, {}, {"log_level": ("info", "--log-level")}).is_left_alone("log_level")
    file.write_text("log_level: debug\n")
    assert not load(file, {}).is_left_alone("log_level")
