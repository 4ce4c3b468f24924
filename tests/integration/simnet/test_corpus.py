"""The real repositories as a network."""

from __future__ import annotations

import pytest
import requests

from relay.simnet.block import cid_text
from relay.simnet.corpus import Corpus
from relay.simnet.network import SimNetwork
from relay.simnet.oracle import compare_digests, records_digest
from tests.support.data import data_path, expected, needs_data
from tests.unit.simnet.reading import read_export, signature_is_good

pytestmark = [needs_data, pytest.mark.usefixtures("no_leaks")]


def _corpus(network: SimNetwork) -> Corpus:
    assert isinstance(network.network, Corpus)
    return network.network


def _fetch(network: SimNetwork, did: str) -> bytes:
    document = requests.get(f"{network.plc_url}/{did}", timeout=10).json()
    origin = document["service"][0]["serviceEndpoint"]
    return requests.get(f"{origin}/xrpc/com.atproto.sync.getRepo", params={"did": did}, timeout=10).content


def test_every_car_is_served_as_it_is(corpus_network: SimNetwork) -> None:
    corpus, facts = _corpus(corpus_network), expected()
    served: set[str] = set()
    for account in corpus.accounts:
        for number in range(len(account.cars)):
            car = corpus.serve(account.did, number)
            assert _fetch(corpus_network, account.did) == data_path(car.name).read_bytes()
            served.add(car.name)
    assert served == {*facts["cars"], *facts["other_cars"], *facts["must_refuse"]}
    assert {len(account.cars) for account in corpus.accounts} == {1, 2, 3}


def test_what_must_sync_verifies_with_a_served_key_and_has_the_digest(corpus_network: SimNetwork) -> None:
    corpus = _corpus(corpus_network)
    digests = corpus.digests()
    assert len(digests) + len(corpus.refused()) == len(corpus.accounts)
    assert len(digests) >= 10
    for did, digest in digests.items():
        document = requests.get(f"{corpus_network.plc_url}/{did}", timeout=10).json()
        export = read_export(_fetch(corpus_network, did))
        assert export.commit is not None
        assert signature_is_good(export.commit, document["verificationMethod"][0]["publicKeyMultibase"])
        assert not export.missing
        assert records_digest({path: cid_text(cid) for path, cid in export.records.items()}) == digest


def test_each_candidate_key_can_be_the_document_s(corpus_network: SimNetwork) -> None:
    corpus = _corpus(corpus_network)
    account = next(
        account for account in corpus.accounts if account.current.acceptable and len(account.current.keys) == 4
    )
    export = read_export(_fetch(corpus_network, account.did))
    assert export.commit is not None
    for key in account.current.keys:
        corpus.use_key(account.did, key)
        document = requests.get(f"{corpus_network.plc_url}/{account.did}", timeout=10).json()
        assert document["verificationMethod"][0]["publicKeyMultibase"] == key
        assert signature_is_good(export.commit, key)


def test_what_must_be_refused_says_so_by_its_bytes(corpus_network: SimNetwork) -> None:
    corpus = _corpus(corpus_network)
    names = {corpus.account(did).current.name.rpartition("/")[2] for did in corpus.refused()}
    assert names >= {"attie.car", "repo_slice.car", "carv2-basic.car", "carv1-basic.car", "divy.repo", "fixtures.car"}
    assert not names & {"calabro.car", "empty.car"}


def test_the_listing_shows_every_account(corpus_network: SimNetwork) -> None:
    answers = [
        requests.get(f"{origin}/xrpc/com.atproto.sync.listRepos", timeout=10) for origin in corpus_network.host_urls
    ]
    listed = [repo["did"] for answer in answers for repo in answer.json()["repos"]]
    assert sorted(listed) == sorted(corpus_network.dids())


def test_nothing_delivered_differs_from_what_must_sync(corpus_network: SimNetwork) -> None:
    differences = compare_digests(_corpus(corpus_network).digests(), {})
    with_records = [
        account
        for account in _corpus(corpus_network).accounts
        if account.current.acceptable and account.current.records
    ]
    assert len(differences) == len(with_records)
