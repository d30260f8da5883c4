import t from 'tap'
import { decide } from '../../src/core/decide.js'
import type { SeenRecord } from '../../src/core/record.js'

const response = { statusCode: 201, headers: {}, body: new Uint8Array() }
const seen = { operationId: 'o', attempt: 3 }
const process = { holder: 'host:1', since: new Date(0) }
const takeFresh = { kind: 'take', seen, resumed: false }
const takeResumed = { kind: 'take', seen, resumed: true }

// Every cell: status, lease, expiry, fingerprint, policy. Written out, not computed.
const TABLE = `
  in_progress runs    kept    same  rerun     busy
  in_progress runs    kept    same  uncertain busy
  in_progress runs    kept    other rerun     mismatch
  in_progress runs    kept    other uncertain mismatch
  in_progress runs    expired same  rerun     busy
  in_progress runs    expired same  uncertain busy
  in_progress runs    expired other rerun     mismatch
  in_progress runs    expired other uncertain mismatch
  in_progress ran-out kept    same  rerun     resumed
  in_progress ran-out kept    same  uncertain uncertain
  in_progress ran-out kept    other rerun     mismatch
  in_progress ran-out kept    other uncertain mismatch
  in_progress ran-out expired same  rerun     fresh
  in_progress ran-out expired same  uncertain fresh
  in_progress ran-out expired other rerun     fresh
  in_progress ran-out expired other uncertain fresh
  released    runs    kept    same  rerun     resumed
  released    runs    kept    same  uncertain resumed
  released    runs    kept    other rerun     mismatch
  released    runs    kept    other uncertain mismatch
  released    runs    expired same  rerun     fresh
  released    runs    expired same  uncertain fresh
  released    runs    expired other rerun     fresh
  released    runs    expired other uncertain fresh
  released    ran-out kept    same  rerun     resumed
  released    ran-out kept    same  uncertain resumed
  released    ran-out kept    other rerun     mismatch
  released    ran-out kept    other uncertain mismatch
  released    ran-out expired same  rerun     fresh
  released    ran-out expired same  uncertain fresh
  released    ran-out expired other rerun     fresh
  released    ran-out expired other uncertain fresh
  completed   runs    kept    same  rerun     replay
  completed   runs    kept    same  uncertain replay
  completed   runs    kept    other rerun     mismatch
  completed   runs    kept    other uncertain mismatch
  completed   runs    expired same  rerun     fresh
  completed   runs    expired same  uncertain fresh
  completed   runs    expired other rerun     fresh
  completed   runs    expired other uncertain fresh
  completed   ran-out kept    same  rerun     replay
  completed   ran-out kept    same  uncertain replay
  completed   ran-out kept    other rerun     mismatch
  completed   ran-out kept    other uncertain mismatch
  completed   ran-out expired same  rerun     fresh
  completed   ran-out expired same  uncertain fresh
  completed   ran-out expired other rerun     fresh
  completed   ran-out expired other uncertain fresh`

const EXPECTED: Record<string, object> = {
  busy: { kind: 'busy', ...process },
  mismatch: { kind: 'mismatch' },
  uncertain: { kind: 'uncertain', ...seen },
  replay: { kind: 'replay', response },
  fresh: takeFresh,
  resumed: takeResumed,
}

const rows = TABLE.trim()
  .split('\n')
  .map((line) => line.trim().split(/ +/))

t.equal(new Set(rows.map((row) => row.slice(0, 5).join())).size, 3 * 2 * 2 * 2 * 2, 'every cell')

for (const [status, lease, expiry, fingerprint, policy, expected] of rows) {
  t.test(
    `${status}, lease ${lease}, ${expiry}, ${fingerprint} fingerprint, ${policy}: ${expected}`,
    async (t) => {
      const record: SeenRecord = {
        fingerprint: 'f',
        status: status as SeenRecord['status'],
        operationId: 'o',
        attempt: 3,
        leaseLeftMs: lease === 'runs' ? 1 : 0,
        isExpired: expiry === 'expired',
        response: status === 'completed' ? response : null,
        unreadBodyBytes: 0,
        ...process,
      }
      const decision = decide(record, fingerprint === 'same' ? 'f' : 'g', policy as 'rerun')
      t.strictSame(decision, EXPECTED[expected as string])
    },
  )
}

t.test('a completed record without a response is refused, not replayed', async (t) => {
  const record: SeenRecord = {
    fingerprint: 'f',
    status: 'completed',
    operationId: 'o',
    attempt: 1,
    leaseLeftMs: 0,
    isExpired: false,
    response: null,
    unreadBodyBytes: 0,
  }
  t.throws(() => decide(record, 'f', 'rerun'), TypeError)
})
