from __future__ import annotations

from pathlib import Path

import pytest

from relay import __version__
from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.deliver.channel import Connector
from relay.errors import ConfigError


def connector(name: str = "tradr-relay", *, tls_ca: str = "", tls_cert: str = "", tls_key: str = "") -> Connector:
    delivery = DeliverySettings(tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
    return Connector(delivery, GrpcSettings(), RelaySettings(name=name))


def test_metadata_carry_name_and_version() -> None:
    assert dict(connector("my relay 1").metadata) == {"relay-name": "my relay 1", "relay-version": __version__}


def test_a_name_outside_of_ascii_is_escaped() -> None:
    assert dict(connector("kö\n").metadata)["relay-name"] == "k%C3%B6%0A"


def test_a_tls_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"delivery.tls_ca: cannot read '.*/absent.pem': No such file"):
        connector(tls_ca=str(tmp_path / "absent.pem"))


def test_a_client_certificate_needs_its_key_and_a_ca() -> None:
    with pytest.raises(ConfigError, match="need delivery"):
        connector(tls_cert="c.pem", tls_key="k.pem")
    with pytest.raises(ConfigError, match="belong together"):
        connector(tls_ca="ca.pem", tls_cert="c.pem")


def test_a_token_goes_with_every_stream_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("correct-horse-battery\n")

    def metadata() -> dict[str, str]:
        return dict(Connector(DeliverySettings(token_file=str(file)), GrpcSettings(), RelaySettings()).metadata)

    assert metadata()["authorization"] == "Bearer correct-horse-battery"
    for content in ("", "two\nlines"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="holds no token"):
            metadata()
    file.unlink()
    with pytest.raises(ConfigError, match=r"delivery\.token_file: cannot read"):
        metadata()
