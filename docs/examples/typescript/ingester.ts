// A complete ingester in one file: stores JSON records in PostgreSQL.
//
//     npm ci && npm run build
//     node dist/ingester.js 127.0.0.1:50052 'postgresql://records:secret@localhost/records'

import * as grpc from '@grpc/grpc-js';
import * as protoLoader from '@grpc/proto-loader';
import pg from 'pg';
import type { ProtoGrpcType } from './generated/ingester';
import type { IngesterServiceHandlers } from './generated/ingester/v1/IngesterService';
import type { Operation__Output as Operation } from './generated/ingester/v1/Operation';
import type { OperationError } from './generated/ingester/v1/OperationError';
import type { OperationRequest__Output as OperationRequest } from './generated/ingester/v1/OperationRequest';
import type { OperationResponse } from './generated/ingester/v1/OperationResponse';

// COLLATE "C": revs compare bytewise.
const SCHEMA = `
CREATE TABLE IF NOT EXISTS account (did text COLLATE "C" PRIMARY KEY, rev text COLLATE "C" NOT NULL DEFAULT '',
    active boolean NOT NULL DEFAULT true, status text NOT NULL DEFAULT '', status_time_us bigint NOT NULL DEFAULT -1,
    handle text NOT NULL DEFAULT '', pds text NOT NULL DEFAULT '', identity_time_us bigint NOT NULL DEFAULT -1);
CREATE TABLE IF NOT EXISTS record (did text COLLATE "C", collection text COLLATE "C", rkey text COLLATE "C",
    cid text NOT NULL, rev text COLLATE "C" NOT NULL, record json, record_cbor bytea, PRIMARY KEY (did, collection, rkey))`;

const NEW_ACCOUNTS = 'INSERT INTO account (did) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING';
const LOCKED_ONES = 'SELECT * FROM account WHERE did = ANY($1) ORDER BY did FOR UPDATE';
const PUT_ACCOUNT = `UPDATE account SET rev = $2, active = $3, status = $4, status_time_us = $5, handle = $6, pds = $7,
    identity_time_us = $8 WHERE did = $1`;
const PUT_RECORD = `INSERT INTO record VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (did, collection, rkey) DO UPDATE
    SET cid = excluded.cid, rev = excluded.rev, record = excluded.record, record_cbor = excluded.record_cbor`;
const DROP_RECORD = 'DELETE FROM record WHERE did = $1 AND collection = $2 AND rkey = $3';
const DROP_ALL = 'DELETE FROM record WHERE did = $1';
const DROP_OLDER = `DELETE FROM record WHERE did = $1 AND rev < $2 AND ($3 OR collection = ANY($4)
    OR EXISTS (SELECT FROM unnest($5::text[]) AS prefix WHERE starts_with(collection, prefix)))`;

type Account = {
  did: string; rev: string; active: boolean; status: string; status_time_us: string; // bigint arrives as text
  handle: string; pds: string; identity_time_us: string;
};
type Write = [statement: string, values: unknown[]];

async function ingest(request: OperationRequest): Promise<OperationResponse> {
  const errors: OperationError[] = [];
  const wanted = request.operations.filter((op, index) => {
    const problem = malformed(op); // rule 3
    if (problem) errors.push({ index, code: 'REJECT', message: problem });
    return !problem;
  });
  try {
    await store(wanted);
  } catch (error) {
    console.error(`batch ${request.batch_id}:`, error);
    return { batch_id: request.batch_id, errors: [{ index: 0, code: 'RETRY', message: String(error) }] };
  }
  return { batch_id: request.batch_id, errors };
}

// Rule 1: one transaction; what was not committed was never answered.
async function store(operations: Operation[]): Promise<void> {
  const client = await db.connect();
  let failure: Error | undefined;
  try {
    await client.query('BEGIN');
    const dids = [...new Set(operations.map((op) => op.did))].sort(); // two transactions never wait for each other
    await client.query(NEW_ACCOUNTS, [dids]);
    const { rows } = await client.query<Account>(LOCKED_ONES, [dids]);
    const accounts = new Map(rows.map((row) => [row.did, row]));
    const writes = operations.flatMap((op) => apply(accounts.get(op.did)!, op));
    for (const a of accounts.values()) {
      const times = [a.status_time_us, a.handle, a.pds, a.identity_time_us];
      writes.push([PUT_ACCOUNT, [a.did, a.rev, a.active, a.status, ...times]]);
    }
    await Promise.all(writes.map(([statement, values]) => client.query(statement, values))); // in this order
    await client.query('COMMIT');
  } catch (error) {
    failure = error as Error;
    throw error;
  } finally {
    client.release(failure); // a connection that failed is closed, which rolls back
  }
}

function apply(account: Account, op: Operation): Write[] {
  if (op.type === 'ACCOUNT') { // rule 7
    if (BigInt(op.time_us) < BigInt(account.status_time_us)) return [];
    account.active = op.account?.active ?? false;
    account.status = op.account?.status ?? '';
    account.status_time_us = op.time_us;
    return account.status === 'deleted' ? [[DROP_ALL, [op.did]]] : [];
  }
  if (op.type === 'IDENTITY') {
    if (BigInt(op.time_us) < BigInt(account.identity_time_us)) return [];
    account.handle = op.identity?.handle ?? '';
    account.pds = op.identity?.pds ?? '';
    account.identity_time_us = op.time_us;
    return [];
  }
  if (op.rev < account.rev) return []; // rule 2
  account.rev = op.rev;
  if (op.type === 'REPO_BEGIN' && op.identity && account.identity_time_us === '-1') {
    account.handle = op.identity.handle; // until an IDENTITY says more
    account.pds = op.identity.pds;
  }
  if (account.status === 'deleted') return [];
  const key = [op.did, op.collection, op.rkey];
  switch (op.type) {
    case 'CREATE': case 'UPDATE': // rule 4
      return [[PUT_RECORD, [...key, op.cid, op.rev, op.record_json ?? null, op.record_cbor ?? null]]];
    case 'DELETE':
      return [[DROP_RECORD, key]];
    case 'REPO_END': { // rule 5
      const patterns = op.nsid_filter.map((pattern) => pattern.replace(/\.\*$/, '.'));
      const prefixes = patterns.filter((pattern) => pattern.endsWith('.'));
      const exact = patterns.filter((pattern) => !pattern.endsWith('.'));
      return [[DROP_OLDER, [op.did, op.rev, patterns.length === 0, exact, prefixes]]];
    }
    default:
      return [];
  }
}

const TYPES = ['CREATE', 'UPDATE', 'DELETE', 'ACCOUNT', 'IDENTITY', 'REPO_BEGIN', 'REPO_END'];

function malformed(op: Operation): string {
  const isUpsert = op.type === 'CREATE' || op.type === 'UPDATE';
  if (!op.did) return 'no did';
  if (!TYPES.includes(op.type)) return `unknown type ${op.type}`;
  if ((isUpsert || op.type === 'DELETE') && !(op.collection && op.rkey && op.rev)) return 'no collection, rkey or rev';
  if (isUpsert && !op.record_cbor?.length) {
    try {
      JSON.parse(op.record_json ?? '');
    } catch (error) {
      return `no record: ${error}`;
    }
  }
  return '';
}

const handlers: IngesterServiceHandlers = {
  async StreamOperations(call) {
    let expected = 0;
    try {
      // Without destroyOnReturn the loop's end would destroy the stream, and nothing could be answered any more.
      for await (const request of call.iterator({ destroyOnReturn: false }) as AsyncIterable<OperationRequest>) {
        expected += 1;
        if (request.batch_id !== String(expected)) {
          const details = `batch_id ${request.batch_id}, expected ${expected}`;
          call.emit('error', { code: grpc.status.INVALID_ARGUMENT, details });
          return;
        }
        const response = await ingest(request);
        call.write(response);
        if (response.errors!.some((error) => error.code === 'RETRY')) break; // nothing more of this stream is stored
      }
      call.end();
    } catch (error) {
      console.error('stream:', error); // it was cut: what was not acknowledged comes again
    }
  },
  Ingest(call, callback) {
    ingest(call.request).then((response) => callback(null, response), callback);
  },
  HealthCheck(_call, callback) {
    db.query('SELECT 1').then(
      () => callback(null, { status: 'SERVING' }),
      (error) => callback(null, { status: 'NOT_SERVING', message: String(error) }),
    );
  },
};

const [address, dsn] = process.argv.slice(2);
if (!address || !dsn) {
  console.error('usage: node dist/ingester.js HOST:PORT postgresql://...');
  process.exit(2);
}
const db = new pg.Pool({ connectionString: dsn, connectionTimeoutMillis: 5_000 });
db.on('error', (error) => console.error('database:', error)); // an idle connection broke; the next query opens another
await db.query(SCHEMA);

const definition = protoLoader.loadSync(new URL('../../../../proto/ingester.proto', import.meta.url).pathname, {
  longs: String, enums: String, bytes: Buffer, defaults: true, oneofs: true, keepCase: true,
});
const { ingester } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
const server = new grpc.Server({ 'grpc.max_receive_message_length': 32 << 20 });
server.addService(ingester.v1.IngesterService.service, handlers);
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`listening on port ${port}`);
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => { server.forceShutdown(); void db.end(); }); // what was not acknowledged comes again
}
