// A complete ingester in one file: stores JSON records in PostgreSQL.
//
//	go run . 127.0.0.1:50052 'postgresql://records:secret@localhost/records'
package main

//go:generate ../../../.venv/bin/python -m grpc_tools.protoc -I ../../../proto --go_out=ingesterpb --go_opt=paths=source_relative,Mingester.proto=ingester.example/ingesterpb --go-grpc_out=ingesterpb --go-grpc_opt=paths=source_relative,Mingester.proto=ingester.example/ingesterpb ingester.proto

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "ingester.example/ingesterpb"
)

// COLLATE "C": revs compare bytewise.
const schema = `
CREATE TABLE IF NOT EXISTS account (did text COLLATE "C" PRIMARY KEY, rev text COLLATE "C" NOT NULL DEFAULT '',
    active boolean NOT NULL DEFAULT true, status text NOT NULL DEFAULT '', status_time_us bigint NOT NULL DEFAULT -1,
    handle text NOT NULL DEFAULT '', pds text NOT NULL DEFAULT '', identity_time_us bigint NOT NULL DEFAULT -1);
CREATE TABLE IF NOT EXISTS record (did text COLLATE "C", collection text COLLATE "C", rkey text COLLATE "C",
    cid text NOT NULL, rev text COLLATE "C" NOT NULL, record json, record_cbor bytea, PRIMARY KEY (did, collection, rkey));`

const (
	newAccounts = `INSERT INTO account (did) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING`
	lockedOnes  = `SELECT did, rev, active, status, status_time_us, handle, pds, identity_time_us
    FROM account WHERE did = ANY($1) ORDER BY did FOR UPDATE`
	putAccount = `UPDATE account SET rev = $2, active = $3, status = $4, status_time_us = $5, handle = $6, pds = $7,
    identity_time_us = $8 WHERE did = $1`
	putRecord = `INSERT INTO record VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (did, collection, rkey) DO UPDATE
    SET cid = excluded.cid, rev = excluded.rev, record = excluded.record, record_cbor = excluded.record_cbor`
	dropRecord = `DELETE FROM record WHERE did = $1 AND collection = $2 AND rkey = $3`
	dropAll    = `DELETE FROM record WHERE did = $1`
	dropOlder  = `DELETE FROM record WHERE did = $1 AND rev < $2 AND ($3 OR collection = ANY($4)
    OR EXISTS (SELECT FROM unnest($5::text[]) AS prefix WHERE starts_with(collection, prefix)))`
)

type account struct {
	did, rev     string
	active       bool
	status       string
	statusTime   int64
	handle, pds  string
	identityTime int64
}

type ingester struct {
	pb.UnimplementedIngesterServiceServer
	db *pgxpool.Pool
}

func (s *ingester) StreamOperations(stream grpc.BidiStreamingServer[pb.OperationRequest, pb.OperationResponse]) error {
	for expected := uint64(1); ; expected++ {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if request.BatchId != expected {
			return status.Errorf(codes.InvalidArgument, "batch_id %d, expected %d", request.BatchId, expected)
		}
		response, err := s.Ingest(stream.Context(), request)
		if err != nil {
			return err
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		for _, problem := range response.Errors {
			if problem.Code == pb.OperationError_RETRY {
				return nil // nothing more of this stream is stored
			}
		}
	}
}

func (s *ingester) Ingest(ctx context.Context, request *pb.OperationRequest) (*pb.OperationResponse, error) {
	response := &pb.OperationResponse{BatchId: request.BatchId}
	wanted := make([]*pb.Operation, 0, len(request.Operations))
	for index, op := range request.Operations {
		if problem := malformed(op); problem != "" { // rule 3
			response.Errors = append(response.Errors,
				&pb.OperationError{Index: uint32(index), Code: pb.OperationError_REJECT, Message: problem})
		} else {
			wanted = append(wanted, op)
		}
	}
	// Rule 1: the answer comes after the commit.
	err := pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error { return store(ctx, tx, wanted) })
	if err != nil {
		log.Printf("batch %d: %v", request.BatchId, err)
		response.Errors = []*pb.OperationError{{Index: 0, Code: pb.OperationError_RETRY, Message: err.Error()}}
	}
	return response, nil
}

func (s *ingester) HealthCheck(ctx context.Context, _ *pb.HealthCheckRequest) (*pb.HealthCheckResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.db.Ping(ctx); err != nil {
		return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_NOT_SERVING, Message: err.Error()}, nil
	}
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

// store applies operations within one transaction: it locks the accounts, decides in memory, and writes in one round trip.
func store(ctx context.Context, tx pgx.Tx, operations []*pb.Operation) error {
	accounts, err := lock(ctx, tx, operations)
	if err != nil {
		return err
	}
	var writes pgx.Batch
	for _, op := range operations {
		apply(accounts[op.Did], op, &writes)
	}
	for _, a := range accounts {
		writes.Queue(putAccount, a.did, a.rev, a.active, a.status, a.statusTime, a.handle, a.pds, a.identityTime)
	}
	return tx.SendBatch(ctx, &writes).Close()
}

func lock(ctx context.Context, tx pgx.Tx, operations []*pb.Operation) (map[string]*account, error) {
	dids := make([]string, 0, len(operations))
	for _, op := range operations {
		dids = append(dids, op.Did)
	}
	slices.Sort(dids) // always in the same order: two transactions never wait for each other
	dids = slices.Compact(dids)
	if _, err := tx.Exec(ctx, newAccounts, dids); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, lockedOnes, dids)
	if err != nil {
		return nil, err
	}
	accounts := make(map[string]*account, len(dids))
	var a account
	_, err = pgx.ForEachRow(rows, []any{&a.did, &a.rev, &a.active, &a.status, &a.statusTime, &a.handle, &a.pds, &a.identityTime},
		func() error { found := a; accounts[a.did] = &found; return nil })
	return accounts, err
}

func apply(a *account, op *pb.Operation, writes *pgx.Batch) {
	switch op.Type {
	case pb.OperationType_ACCOUNT: // rule 7
		if op.TimeUs >= a.statusTime {
			a.active, a.status, a.statusTime = op.Account.GetActive(), op.Account.GetStatus(), op.TimeUs
			if a.status == "deleted" {
				writes.Queue(dropAll, op.Did)
			}
		}
		return
	case pb.OperationType_IDENTITY:
		if op.TimeUs >= a.identityTime {
			a.handle, a.pds, a.identityTime = op.Identity.GetHandle(), op.Identity.GetPds(), op.TimeUs
		}
		return
	}
	if op.Rev < a.rev { // rule 2
		return
	}
	a.rev = op.Rev
	if op.Type == pb.OperationType_REPO_BEGIN && op.Identity != nil && a.identityTime < 0 {
		a.handle, a.pds = op.Identity.Handle, op.Identity.Pds // until an IDENTITY says more
	}
	if a.status == "deleted" {
		return
	}
	switch op.Type {
	case pb.OperationType_CREATE, pb.OperationType_UPDATE: // rule 4
		var text *string
		if op.GetRecordJson() != "" {
			text = &op.Record.(*pb.Operation_RecordJson).RecordJson
		}
		writes.Queue(putRecord, op.Did, op.Collection, op.Rkey, op.Cid, op.Rev, text, op.GetRecordCbor())
	case pb.OperationType_DELETE:
		writes.Queue(dropRecord, op.Did, op.Collection, op.Rkey)
	case pb.OperationType_REPO_END: // rule 5
		exact, prefixes := []string{}, []string{}
		for _, pattern := range op.NsidFilter {
			if prefix := strings.TrimSuffix(pattern, "*"); strings.HasSuffix(prefix, ".") {
				prefixes = append(prefixes, prefix)
			} else {
				exact = append(exact, pattern)
			}
		}
		writes.Queue(dropOlder, op.Did, op.Rev, len(op.NsidFilter) == 0, exact, prefixes)
	}
}

func malformed(op *pb.Operation) string {
	isUpsert := op.Type == pb.OperationType_CREATE || op.Type == pb.OperationType_UPDATE
	switch {
	case op.Did == "":
		return "no did"
	case op.Type < pb.OperationType_CREATE || op.Type > pb.OperationType_REPO_END:
		return fmt.Sprintf("unknown type %d", op.Type)
	case (isUpsert || op.Type == pb.OperationType_DELETE) && (op.Collection == "" || op.Rkey == "" || op.Rev == ""):
		return "no collection, rkey or rev"
	case isUpsert && len(op.GetRecordCbor()) == 0 && !json.Valid([]byte(op.GetRecordJson())):
		return "no record"
	}
	return ""
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: ingester HOST:PORT postgresql://...")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db, err := pgxpool.New(ctx, os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(ctx, schema); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(32<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	pb.RegisterIngesterServiceServer(server, &ingester{db: db})
	go func() { <-ctx.Done(); server.Stop() }() // what was not acknowledged comes again
	fmt.Println("listening on port", listener.Addr().(*net.TCPAddr).Port)
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
