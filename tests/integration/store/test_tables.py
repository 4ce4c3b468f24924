"""The smaller tables: what was put comes back, and what must not be overwritten is not."""

from __future__ import annotations

from dataclasses import replace

from relay.model import Identity
from relay.store import (
    batches,
    dead_letters,
    hosts,
    identities,
    incidents,
    instances,
    listings,
    partitions,
    reconcile,
)
from relay.store.dead_letters import DeadLetter
from relay.store.hosts import HostRow
from relay.store.identities import IdentityFailure
from relay.store.listings import Listing
from relay.store.pool import Database
from relay.store.reconcile import Counts

NOW = 1_700_000_000.0
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def identity(at: float, did: str = DID, **changes: str | None) -> Identity:
    values = {"signing_key": "zKey", "pds": "https://pds.example", "handle": "alice.example", **changes}
    return Identity(did=did, resolved_at=at, **values)


class TestIdentities:
    def test_what_was_resolved_comes_back(self, each_database: Database) -> None:
        other = identity(NOW + 0.5, "did:web:b.example", handle=None, pds=None)
        with each_database.transaction("put") as cur:
            identities.upsert_many(cur, [identity(NOW), other])
            assert identities.load_many(cur, [DID, other.did, "did:web:none"]) == {DID: identity(NOW), other.did: other}
            identities.upsert_many(cur, [])

    def test_an_older_resolution_never_replaces_a_newer_one(self, database: Database) -> None:
        with database.transaction("put") as cur:
            identities.upsert_many(
                cur, [identity(NOW, handle="new.example"), identity(NOW - 2, handle="older.example")]
            )
            identities.upsert_many(cur, [identity(NOW - 1, handle="old.example")])
            assert identities.load_many(cur, [DID])[DID].handle == "new.example"

    def test_a_failure_leaves_what_was_known_and_a_success_clears_it(self, database: Database) -> None:
        with database.transaction("put") as cur:
            identities.upsert_many(cur, [identity(NOW)])
            identities.mark_failed(cur, [IdentityFailure(did=DID, failed_at=NOW + 1, error="no\0answer"),
                                         IdentityFailure(did="did:web:gone", failed_at=NOW + 1, error="404")])  # fmt: skip
            assert set(identities.load_failures(cur, [DID, "did:web:gone"])) == {DID, "did:web:gone"}
            assert identities.load_many(cur, [DID, "did:web:gone"]) == {DID: identity(NOW)}
            identities.upsert_many(cur, [identity(NOW + 2)])
            assert set(identities.load_failures(cur, [DID, "did:web:gone"])) == {"did:web:gone"}


class TestListings:
    def test_an_enumeration_goes_on_where_it_was_stored(self, each_database: Database) -> None:
        first = Listing(
            kind="repos", host="https://pds.example", batch=3, cursor="abc", pages=1, repos=1000, started_at=NOW
        )
        done = replace(first, cursor=None, pages=2, repos=1500, finished_at=NOW + 9, error="cut \0 off")
        with each_database.transaction("save") as cur:
            assert listings.load(cur, "repos", first.host, batch=3) is None
            listings.save(cur, first)
            assert listings.load(cur, "repos", first.host, batch=3) == first
            listings.save(cur, done)
            assert listings.load(cur, "repos", first.host, batch=3) == replace(done, error="cut � off")

    def test_enumerations_of_other_batches_and_params_are_apart(self, database: Database) -> None:
        base = Listing(kind="collection", host="h", param="app.bsky.feed.post", batch=1, cursor="a", started_at=NOW)
        with database.transaction("save") as cur:
            for listing in (base, replace(base, param="x.y.z", cursor="b"), replace(base, batch=0, cursor="c")):
                listings.save(cur, listing)
            loaded = listings.load(cur, "collection", "h", "app.bsky.feed.post")
            assert loaded is not None
            assert loaded.cursor == "c"
            assert [listing.cursor for listing in listings.load_batch(cur, 1)] == ["a", "b"]
            assert listings.forget(cur, 1) == 2
            assert [listing.cursor for listing in listings.load_batch(cur, None)] == ["c"]


class TestBatches:
    def test_an_unfinished_batch_of_the_same_spec_is_resumed_and_a_finished_one_is_not(
        self, each_database: Database
    ) -> None:
        with each_database.transaction("open") as cur:
            first, resumed = batches.open_batch(cur, "--all", NOW)
            assert not resumed
            assert batches.open_batch(cur, "--all", NOW + 1) == (first, True)
            other, resumed = batches.open_batch(
                cur, "--did " + "did:plc:x " * 10_000, NOW
            )  # longer than an index entry may be
            assert not resumed
            assert [batch.id for batch in batches.list_unfinished(cur)] == [first, other]
            assert batches.finish_batch(cur, first, NOW + 2, "3 quarantined")
            assert not batches.finish_batch(cur, first, NOW + 3)
            second, resumed = batches.open_batch(cur, "--all", NOW + 4)
            assert (second == first, resumed) == (False, False)
            found = batches.get(cur, first)
            assert found is not None
            assert (found.finished_at, found.note) == (NOW + 2, "3 quarantined")
            assert batches.get(cur, 999) is None


class TestDeadLetters:
    def letter(self, **changes: object) -> DeadLetter:
        base = DeadLetter(
            at=NOW, did=DID, collection="app.bsky.feed.post", rkey="3k", cid="bafy", rev="3ka", type="CREATE", source="BACKFILL",
            reason="rejected", message="no\0thanks", ingester="127.0.0.1:7000", attempts=5, size=3, operation=b"\0\1\xff",
        )  # fmt: skip
        return replace(base, **changes)  # type: ignore[arg-type]

    def test_letters_come_back_newest_first_and_with_their_operation_when_asked_for(
        self, each_database: Database
    ) -> None:
        with each_database.transaction("add") as cur:
            dead_letters.add_many(cur, [])
            dead_letters.add_many(
                cur, [self.letter(), self.letter(did="did:web:b", reason="too_large", operation=None)]
            )
            newest, oldest = dead_letters.list_page(cur)
            assert (newest.reason, oldest.reason, oldest.operation, oldest.message) == (
                "too_large",
                "rejected",
                None,
                "no�thanks",
            )
            assert oldest.id is not None
            assert dead_letters.get(cur, [oldest.id]) == [self.letter(id=oldest.id, message="no�thanks")]
            assert dead_letters.count_by_reason(cur) == {"rejected": 1, "too_large": 1}

    def test_lists_are_filtered_and_paged(self, database: Database) -> None:
        with database.transaction("add") as cur:
            dead_letters.add_many(cur, [self.letter(rkey=str(n), did=f"did:web:{n % 2}") for n in range(1200)])
            page = dead_letters.list_page(cur, limit=2)
            assert [letter.rkey for letter in page] == ["1199", "1198"]
            assert [letter.rkey for letter in dead_letters.list_page(cur, before=page[-1].id, limit=1)] == ["1197"]
            assert [letter.rkey for letter in dead_letters.list_page(cur, did="did:web:0", limit=1)] == ["1198"]
            assert dead_letters.list_page(cur, reason="nothing") == []

    def test_deleted_letters_are_gone(self, database: Database) -> None:
        with database.transaction("add") as cur:
            dead_letters.add_many(cur, [self.letter(), self.letter(rkey="3m")])
            ids = [letter.id for letter in dead_letters.list_page(cur)]
            assert dead_letters.delete(cur, [ids[0] or 0, 999]) == 1
            assert [letter.id for letter in dead_letters.list_page(cur)] == ids[1:]

    def test_the_same_operation_refused_again_is_the_same_letter(self, each_database: Database) -> None:
        with each_database.transaction("add") as cur:
            dead_letters.add_many(cur, [self.letter(), self.letter(at=NOW + 1, rev="3kb")])
            dead_letters.add_many(
                cur, [self.letter(at=NOW + 2, rev="3kc", operation=None), self.letter(reason="oversize")]
            )
            newest, oldest = dead_letters.list_page(cur)
            assert (newest.reason, oldest.reason) == ("oversize", "rejected")
            assert (oldest.at, oldest.rev, oldest.attempts) == (NOW + 2, "3kc", 10)
            assert dead_letters.get(cur, [oldest.id or 0])[0].operation == b"\0\1\xff"


class TestIncidents:
    def test_one_of_a_kind_is_open_at_a_time_and_closed_ones_are_shown_for_a_day(self, each_database: Database) -> None:
        with each_database.transaction("open") as cur:
            hole = incidents.open_incident(cur, "hole", "cursor too old", NOW)
            assert incidents.open_incident(cur, "hole", "again", NOW + 1) == hole
            other = incidents.open_incident(cur, "frame", "undecodable", NOW + 2)
            assert incidents.close_incident(cur, other, NOW + 3)
            assert not incidents.close_incident(cur, other, NOW + 4)
            assert [incident.id for incident in incidents.list_open(cur)] == [hole]
            assert incidents.list_open(cur, "frame") == []
            shown = incidents.list_recent(cur, NOW + 100)
            assert [(incident.id, incident.closed_at) for incident in shown] == [(hole, None), (other, NOW + 3)]
            assert [incident.id for incident in incidents.list_recent(cur, NOW + 90_000)] == [hole]
            assert incidents.open_incident(cur, "frame", "another", NOW + 5) != other

    def test_a_reconcile_closes_what_did_not_happen_again_after_it_began(self, each_database: Database) -> None:
        with each_database.transaction("before") as cur:
            answered = incidents.open_incident(cur, "hole", "a hole", NOW)
            again = incidents.open_incident(cur, "outdated_cursor", "too old", NOW)
        with each_database.transaction("begin") as cur:
            began = reconcile.open_new(cur, "all")
        with each_database.transaction("meanwhile") as cur:
            assert incidents.open_incident(cur, "outdated_cursor", "too old", NOW) == again
        with each_database.transaction("end") as cur:
            assert incidents.close_answered(cur, began.began_at, NOW + 9, "; but") == [answered]
            assert [each.id for each in incidents.list_open(cur)] == [again]
            closed = next(each for each in incidents.list_recent(cur, NOW + 9) if each.id == answered)
            assert (closed.text, closed.closed_at) == ("a hole; but", NOW + 9)


class TestReconcile:
    def test_one_pass_is_open_at_a_time_and_its_counts_add_up(self, each_database: Database) -> None:
        with each_database.transaction("pass") as cur:
            reconcile.set_baseline(cur)
            baseline = reconcile.find_last(cur)
            assert baseline is not None
            assert baseline.note == reconcile.BASELINE
            began = reconcile.open_new(cur, "all")
            reconcile.set_baseline(cur)
            reconcile.add_counts(cur, began.id, Counts(compared=3, differed=2))
            reconcile.add_counts(cur, began.id, Counts(compared=4, queued=1, found=5))
            found = reconcile.find_open(cur)
            assert found is not None
            assert (found.compared, found.differed, found.queued, found.found) == (7, 2, 1, 5)
            reconcile.finish(cur, began.id, hosts_total=9, hosts_failed=1, note="no\0te")
            assert reconcile.find_open(cur) is None
        with each_database.transaction("last") as cur:
            last = reconcile.find_last(cur)
            assert last is not None
            assert (last.id, last.hosts_total, last.hosts_failed, last.note) == (began.id, 9, 1, "no�te")

    def test_the_lock_is_of_one_session(self, database: Database) -> None:
        first, second = database.session("first"), database.session("second")
        with first.transaction("lock") as cur:
            assert reconcile.try_lock(cur)
        with second.transaction("lock") as cur:
            assert not reconcile.try_lock(cur)
        first.close()
        with second.transaction("lock") as cur:
            assert reconcile.try_lock(cur)
        second.close()

    def test_hosts_come_with_how_many_repos_live_there(self, each_database: Database) -> None:
        with each_database.transaction("hosts") as cur:
            for number in range(30):
                cur.execute(
                    "INSERT INTO repo (did, partition, host, state) VALUES (%s, 0, %s, 'synced')",
                    (f"did:plc:{number}", f"https://{'abc'[number % 3]}" if number else None),
                )
            assert reconcile.tracked_hosts(cur, enough=10) == [("https://a", 9), ("https://b", 10), ("https://c", 10)]
            assert reconcile.tracked_hosts(cur, after="https://b", enough=2) == [("https://c", 2)]

    def test_what_a_complete_listing_did_not_have_is_missing(self, each_database: Database) -> None:
        with each_database.transaction("missing") as cur:
            for number in range(12):
                state = ("synced", "inactive", "pending")[number % 3]
                cur.execute(
                    "INSERT INTO repo (did, partition, host, state, tracked) VALUES (%s, 0, 'https://a', %s, %s)",
                    (f"did:plc:{number:02}", state, number != 9),
                )
            reconcile.add_seen(cur, "https://a", 1, ["did:plc:00", "did:plc:01", "did:plc:99"])
            reconcile.add_seen(cur, "https://a", 2, ["did:plc:03"])
            reconcile.add_seen(cur, "https://b", 1, ["did:plc:04"])
            reconcile.add_seen(cur, "https://a", 2, ["did:plc:10"])  # two passes at once: both count
            reconcile.add_seen(cur, "https://a", 3, [])
            assert reconcile.put_missing(cur, "https://a") == 3
            assert {each.did for each in reconcile.candidates(cur, 4e9, 10)} == {
                "did:plc:04",
                "did:plc:06",
                "did:plc:07",
            }
            assert all(each.missing for each in reconcile.candidates(cur, 4e9, 10))


class TestPartitions:
    def test_a_cursor_is_stored_and_a_first_one_only_where_there_is_none(self, each_database: Database) -> None:
        with each_database.transaction("cursor") as cur:
            assert partitions.read(cur).cursor is None
            assert partitions.store_first_cursor(cur, "wss://a", 100, None)
            assert not partitions.store_first_cursor(cur, "wss://a", 50, None)
            partitions.store_cursor(cur, "wss://a", 200, 5)
            found = partitions.read(cur)
            assert (found.upstream, found.cursor, found.cursor_time_us) == ("wss://a", 200, 5)
            assert partitions.store_first_cursor(cur, "wss://b", 7, None)  # another upstream counts on its own
            assert partitions.read(cur).cursor == 7


class TestInstances:
    def test_an_instance_shows_itself_until_it_leaves_or_is_silent_for_long(self, each_database: Database) -> None:
        with each_database.transaction("register") as cur:
            mine = instances.register(
                cur, name="relay", command="run", pid=1, host="box", version="0.1", phase="starting", started_at=NOW
            )
            assert instances.heartbeat(
                cur, mine, "running", metrics_address="127.0.0.1:9090", status={"repos": {"synced": 1}}
            )
            assert instances.heartbeat(cur, mine, "draining", metrics_address="127.0.0.1:9090")  # the last status stays
            [found] = instances.list_instances(cur)
            assert (found.id, found.command, found.phase, found.metrics_address) == (
                mine,
                "run",
                "draining",
                "127.0.0.1:9090",
            )
            assert found.status == {"repos": {"synced": 1}}
            assert instances.forget_silent(cur, 3600) == 0
            cur.execute("UPDATE instance SET heartbeat_at = heartbeat_at - interval '2 hours'")
            assert instances.list_instances(cur)[0].silent_s > 7000
            assert instances.forget_silent(cur, 3600) == 1
            assert not instances.heartbeat(cur, mine, "running")


class TestHosts:
    def test_listings_and_answers_are_kept_side_by_side(self, each_database: Database) -> None:
        a = HostRow(host="https://a", status="active", accounts=5, seq=9)
        with each_database.transaction("hosts") as cur:
            hosts.upsert_listed(cur, [a, HostRow(host="https://b")])
            hosts.note_many(cur, [HostRow(host="https://a", last_success_at=NOW, last_failure_at=NOW - 1, error="x\0")])
            hosts.note_many(cur, [HostRow(host="https://a", last_success_at=NOW - 5, down_since=NOW, failures=2)])
            hosts.upsert_listed(cur, [HostRow(host="https://a", status="offline")])
            found = hosts.load_many(cur, ["https://a", "https://none"])
            assert found == {
                "https://a": replace(
                    a, status="offline", last_success_at=NOW, last_failure_at=NOW - 1, down_since=NOW, failures=2
                )
            }
            assert [row.host for row in hosts.list_page(cur)] == ["https://a", "https://b"]
            assert [row.host for row in hosts.list_page(cur, after="https://a", limit=5)] == ["https://b"]
