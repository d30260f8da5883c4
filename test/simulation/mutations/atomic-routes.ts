import type { Mutation } from './mutation.js'

const TRANSACTION = 'src/atomic/transaction.ts'
const MODEL = 'test/simulation/model-atomic.ts'
const MAY_WRITE =
  'row.operationId === seenId && row.attempt === seenAttempt && isFree(row, database)'

/** Claim, effects and response in one transaction. */
export const OF_ATOMIC_ROUTES: readonly Mutation[] = [
  {
    name: 'atomic: a transaction commits though another was faster',
    file: 'src/atomic/atomic-claim.ts',
    edits: [["if (written === 'lost') throw new LeaseLost()", '']],
    shownBy: 119,
  },
  {
    name: 'atomic: a response is given out before its commit is confirmed',
    file: TRANSACTION,
    edits: [['await Promise.race([this.#over, rejectedBy(this.signal)])', '']],
    shownBy: 1,
  },
  {
    name: 'atomic: a transaction whose time is over commits',
    file: TRANSACTION,
    edits: [['      this.signal.throwIfAborted()\n', '']],
    shownBy:
      'effect and response are committed together, and nobody is told of success: a retry gets the response',
  },
  {
    name: 'atomic: an expired key lends its operation to the next one',
    file: 'src/atomic/atomic-claims.ts',
    edits: [['resumed && seen\n', 'seen\n']],
    shownBy: 3,
  },
  {
    name: 'atomic: a key that runs does not keep other requests away',
    file: 'src/atomic/atomic-claims.ts',
    edits: [["if (!isAlone) return { kind: 'busy', waitedMs: 0 }", '']],
    shownBy: 'of two that saw the same, one is refused by the last statement: only work is saved',
  },
  {
    name: 'atomic: the record replaces whatever has come in between',
    file: MODEL,
    edits: [[MAY_WRITE, "row.operationId !== '' || (seenId === '' && seenAttempt === 0)"]],
    shownBy: 119,
  },
  {
    name: 'atomic: the record replaces another operation that is free',
    file: MODEL,
    edits: [[MAY_WRITE, "isFree(row, database) && seenId !== '' && seenAttempt !== 0"]],
    shownBy: 2638,
  },
]
