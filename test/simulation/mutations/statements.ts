import type { Mutation } from './mutation.js'

const MODEL = 'test/simulation/model-statements.ts'
const SEEN =
  'row.operationId === item.seen_operation_id &&\n        row.attempt === item.seen_attempt &&\n        (isFree'
const FREE = "(isFree(row, database) || (item.forced && row.status === 'in_progress')) &&"
const ATTEMPT = 'return row.operationId === operation_id && row.attempt === attempt'

const KEEP_STEPS = 'fi_keep_steps: (items) =>\n    writeEach(items, isHeldBy, '

/** The model of the statements for PostgreSQL: the same guards. */
export const OF_STATEMENTS: readonly Mutation[] = [
  {
    name: 'statements: a key that is there is inserted again',
    file: 'test/simulation/model-table.ts',
    edits: [
      [
        'if (this.see(name, transaction) !== undefined) return false\n    yield name\n    if (this.see(name, transaction) !== undefined) return false\n',
        'yield name\n',
      ],
    ],
    shownBy: 119,
  },
  {
    name: 'statements: any attempt is taken over, whatever was seen',
    file: MODEL,
    edits: [[SEEN, '(isFree']],
    shownBy: 169,
  },
  {
    name: 'statements: any operation is taken over, whatever was seen',
    file: MODEL,
    edits: [[SEEN, 'row.attempt === item.seen_attempt &&\n        (isFree']],
    shownBy: 2965,
    isRare: true,
  },
  {
    name: 'statements: what is held or kept is taken over',
    file: MODEL,
    edits: [[FREE, '']],
    shownBy: 1,
  },
  {
    name: 'statements: a takeover waits for a locked row',
    file: MODEL,
    edits: [['        isLockedSkipped: true,\n', '']],
    shownBy: 349,
  },
  {
    name: 'statements: a late takeover resumes whatever has that token',
    file: MODEL,
    edits: [[' && row.fingerprint === fingerprint\n}', '\n}']],
    shownBy: 'a token names one operation, and an operation has one fingerprint',
  },
  {
    name: 'statements: a late takeover forgets whatever has that token',
    file: MODEL,
    edits: [['if (!resumed) return row.expiresAt <= database.now()', 'if (!resumed) return true']],
    shownBy: 'a key that was seen to have expired does not come back with the same token',
  },
  {
    name: 'statements: a response is resumed once it has expired',
    file: MODEL,
    edits: [["return row.status !== 'completed' && row.fingerprint", 'return row.fingerprint']],
    shownBy: 36_243,
    isRare: true,
  },
  {
    name: 'statements: a forced takeover has the number of the attempt that it ends',
    file: MODEL,
    edits: [['attempt: attempt + 1 }', 'attempt: item.forced ? attempt : attempt + 1 }']],
    shownBy: 184,
  },
  {
    name: 'statements: an earlier attempt finishes, renews and forgets',
    file: MODEL,
    edits: [[ATTEMPT, "return operation_id !== '' && attempt > 0"]],
    shownBy: 2,
  },
  {
    name: 'statements: the same attempt at another operation finishes, renews and forgets',
    file: MODEL,
    edits: [[ATTEMPT, "return operation_id !== '' && row.attempt === attempt"]],
    shownBy: 7,
  },
  {
    name: 'statements: another attempt at the same operation finishes, renews and forgets',
    file: MODEL,
    edits: [[ATTEMPT, 'return row.operationId === operation_id && attempt > 0']],
    shownBy: 4,
  },
  {
    name: 'statements: a claim that has ended is renewed and forgotten',
    file: MODEL,
    edits: [
      [
        "return isAttempt(row, item) && row.status === 'in_progress'",
        'return isAttempt(row, item)',
      ],
    ],
    shownBy: 1,
  },
  {
    name: 'statements: a claim that has ended is finished in another way',
    file: MODEL,
    edits: [
      [
        "isAttempt(row, item) && (row.status === 'in_progress' || row.status === item.status)",
        'isAttempt(row, item)',
      ],
    ],
    shownBy:
      'a claim says once how it ended, and remembers that: the guard is for a program that says both',
  },
  {
    name: 'statements: what was finished before its reply got lost is not recognized',
    file: MODEL,
    edits: [
      [
        "isAttempt(row, item) && (row.status === 'in_progress' || row.status === item.status)",
        "isAttempt(row, item) && row.status === 'in_progress'",
      ],
    ],
    shownBy: 33,
  },
  {
    name: 'statements: of two responses of one attempt the second is kept',
    file: MODEL,
    edits: [['if (row.status === status) return row\n', '']],
    shownBy: 18_362,
    isRare: true,
  },
  {
    name: 'statements: results are stored without checking who has the claim',
    file: MODEL,
    edits: [[KEEP_STEPS, KEEP_STEPS.replace('isHeldBy', "(row) => row.status === 'in_progress'")]],
    shownBy: 143,
  },
  {
    name: 'statements: results are stored when the claim has ended',
    file: MODEL,
    edits: [[KEEP_STEPS, KEEP_STEPS.replace('isHeldBy', 'isAttempt')]],
    shownBy: 212,
  },
  {
    name: 'statements: steps are read before the row is locked',
    file: MODEL,
    edits: [
      [
        'if (row === undefined) continue\n        const after = write(row, item, database)',
        'if (row === undefined) continue\n        const after = write({ ...row, steps: seen.steps }, item, database)',
      ],
    ],
    shownBy: 20,
  },
]
