"""The PLC directory, and the well-known documents of did:web accounts."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from relay.simnet.answers import Request, Response, json_response
from relay.simnet.faults import (
    ANSWER_FAULTS,
    DOCUMENT_FAULTS,
    Fault,
    FaultKind,
    FaultPlan,
    Place,
    bad_answer,
    bad_manners,
)
from relay.simnet.traffic import Traffic
from relay.simnet.views import Document, Hosted, Network

_DOCUMENT_TYPE = "application/did+ld+json"


class Plc:
    """Answers `GET /<did>` and `GET /.well-known/did.json` (of `web_did`). Runs in the server's thread."""

    def __init__(
        self, network: Network, plan: FaultPlan, traffic: Traffic, *, web_did: str | None = None, gone_status: int = 410
    ) -> None:
        """`gone_status`: what a tombstoned DID gets; 410 by the document, 404 by the code of plc.directory."""
        self.plan = plan
        self._network = network
        self._traffic = traffic
        self._web_did = web_did
        self._gone_status = gone_status

    def __call__(self, request: Request) -> Response:
        did = self._web_did if request.path == "/.well-known/did.json" else unquote(request.path[1:])
        place = Place(endpoint="plc", did=did)
        self._traffic.count("plc", "plc")
        fault = self.plan.pick(ANSWER_FAULTS, place)
        if fault is not None:
            wrong = bad_answer(fault)
            if wrong is not None:
                return wrong
        response = self._document(did or "", place)
        return bad_manners(fault, response) if fault is not None else response

    def _document(self, did: str, place: Place) -> Response:
        with self._network.lock:
            account = self._network.find(did)
            if account is None or (did.startswith("did:web:") and did != self._web_did):
                return json_response({"message": f"DID not registered: {did}"}, 404)
            if account.tombstoned:
                return json_response({"message": f"DID not available: {did}"}, self._gone_status)
            fault = self.plan.pick(DOCUMENT_FAULTS, place)
            document = _wrong_document(fault, account, self._network) if fault is not None else None
            if document is None:
                if fault is not None:
                    self.plan.take_back(fault, place)
                document = did_document(account, self._network)
        response = json_response(document)
        response.content_type = _DOCUMENT_TYPE
        return response


def did_document(account: Hosted, network: Network) -> dict[str, Any]:
    """Return an account's DID document as plc.directory writes it."""
    return _write(account, Document(account.multikey, account.host, account.pds_override), network)


def _wrong_document(fault: Fault, account: Hosted, network: Network) -> dict[str, Any] | None:
    document = did_document(account, network)
    match fault.kind:
        case FaultKind.STALE_DOCUMENT:
            return _write(account, account.past_documents[-1], network) if account.past_documents else None
        case FaultKind.OTHER_DOCUMENT:
            return {**document, "id": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"}
        case FaultKind.NO_KEY:
            return {**document, "verificationMethod": []}
        case FaultKind.NO_PDS:
            return {**document, "service": []}
        case _:
            return None


def _write(account: Hosted, said: Document, network: Network) -> dict[str, Any]:
    did = account.did
    return {
        "@context": [
            "https://www.w3.org/ns/did/v1",
            "https://w3id.org/security/multikey/v1",
            "https://w3id.org/security/suites/secp256k1-2019/v1",
        ],
        "id": did,
        "alsoKnownAs": [f"at://{account.handle}"],
        "verificationMethod": [
            {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": said.multikey}
        ],
        "service": [
            {
                "id": "#atproto_pds",
                "type": "AtprotoPersonalDataServer",
                "serviceEndpoint": said.pds_override or network.host_urls[said.host],
            }
        ],
    }
