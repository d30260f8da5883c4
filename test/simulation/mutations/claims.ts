import type { Mutation } from './mutation.js'

const DECIDE = 'src/core/decide.ts'
const CLAIMS = 'src/claims/claims.ts'
const RESOLVE = 'src/operations/resolve.ts'

/** What a record means, and who may have it. */
export const OF_CLAIMS: readonly Mutation[] = [
  {
    name: 'a lease that runs holds nothing',
    file: DECIDE,
    edits: [
      [
        "const isHeld = record.status === 'in_progress' && record.leaseLeftMs > 0",
        'const isHeld = false',
      ],
    ],
    shownBy: 7,
  },
  {
    name: 'an expired key is free though its lease runs',
    file: DECIDE,
    edits: [['if (record.isExpired && !isHeld)', 'if (record.isExpired)']],
    shownBy: 'the takeover compares the lease again and does not match: only statements are wasted',
  },
  {
    name: 'what was done for an expired key is resumed',
    file: DECIDE,
    edits: [["kind: 'take', seen, resumed: false", "kind: 'take', seen, resumed: true"]],
    shownBy: 3,
  },
  {
    name: 'another fingerprint is no mismatch',
    file: DECIDE,
    edits: [["if (record.fingerprint !== fingerprint) return { kind: 'mismatch' }", '']],
    shownBy: 5,
  },
  {
    name: 'an uncertain operation is rerun',
    file: DECIDE,
    edits: [
      ["if (record.status === 'in_progress' && onLeaseExpired === 'uncertain') {", 'if (false) {'],
    ],
    shownBy: 9,
  },
  {
    name: 'a takeover resumes nothing',
    file: DECIDE,
    edits: [["kind: 'take', seen, resumed: true }\n}", "kind: 'take', seen, resumed: false }\n}"]],
    shownBy: 2,
  },
  {
    name: 'a takeover that did not match is taken for one that did',
    file: CLAIMS,
    edits: [
      ['if (taken === undefined) return undefined\n', ''],
      ['const { steps } = taken\n', 'const { steps } = taken ?? { steps: {} }\n'],
    ],
    shownBy: 4,
  },
  {
    name: 'a grant that arrived late is not renewed',
    file: CLAIMS,
    edits: [['performance.now() - askedAt > leaseMs / 2', 'false']],
    shownBy: 1427,
  },
  {
    name: 'a renewal of a late grant that did not match is taken for one that did',
    file: CLAIMS,
    edits: [
      ['if (!(await this.#inTime(extending))) return undefined', 'await this.#inTime(extending)'],
    ],
    shownBy: 352,
  },
  {
    name: 'a lease is counted from the arrival of its grant',
    file: CLAIMS,
    edits: [
      ['performance.now() - askedAt > leaseMs / 2', 'false'],
      [
        'onLeaseExpired, ...granted, askedAt }',
        'onLeaseExpired, ...granted, askedAt: performance.now() }',
      ],
    ],
    shownBy: 977,
  },
  {
    name: 'a request that begins anew keeps the operation that it began first',
    file: CLAIMS,
    edits: [
      [
        "crashPoint('claim:asking')",
        "crashPoint('claim:asking')\n    const operationId = randomUUID()",
      ],
      [
        'const begun = { operationId: randomUUID(), attempt: 1 }',
        'const begun = { operationId, attempt: 1 }',
      ],
    ],
    shownBy: 118_455,
    isRare: true,
  },
  {
    name: 'a new key that was granted too late is not given back',
    file: CLAIMS,
    edits: [['this.#undo(inserting, () => this.#forget({ ...wish, ...begun }))', '']],
    shownBy: 'it costs time alone: nobody runs it until its lease has run out',
  },
  {
    name: 'a takeover that was granted too late is not given back',
    file: CLAIMS,
    edits: [['else taking.then((taken) => taken && giveBack()).catch(() => {})', '']],
    shownBy: 'it costs time alone: nobody runs it until its lease has run out',
  },
  {
    name: 'a takeover that failed gives back an attempt of another request',
    file: CLAIMS,
    edits: [['if (isAnew) this.#undo', 'if (isAnew || taking) this.#undo']],
    shownBy: 66_875,
    isRare: true,
  },
  {
    name: 'a statement that failed is taken for one that did nothing',
    file: CLAIMS,
    edits: [['isOfItsData(error) ? undefined : giveBack()', 'void error']],
    shownBy: 'it costs time alone: what arrives after all is free once its lease has run out',
  },
  {
    name: 'a takeover for an operator that was granted too late looks released',
    file: CLAIMS,
    edits: [
      [
        'this.#takeOverSeen(wish, decision, undefined, undefined)',
        'this.#takeOverSeen(wish, decision, undefined, (token) => this.#finish({ ...wish, ...token, response: null }))',
      ],
    ],
    shownBy: 10_520,
    isRare: true,
  },
  {
    name: 'the second of two requests in one list is told that it made the record',
    file: CLAIMS,
    edits: [["if (inserted.kind === 'seen') return inserted", 'return inserted']],
    shownBy: 7,
  },
  {
    name: 'a list inserts one key twice, and both are told that they made it',
    file: CLAIMS,
    edits: [
      [
        'this.#insert = batched(store, store.insert, { identify, join: joinInsert }, begin)',
        'this.#insert = batched(store, store.insert, { identify: (item) => item as never }, begin)',
      ],
      ['made.add(row.operationId)', 'made.add(row.key)', 'test/simulation/model-statements.ts'],
      ['made.has(item.operation_id)', 'made.has(item.key)', 'test/simulation/model-statements.ts'],
    ],
    shownBy: 7,
  },
  {
    name: 'a list inserts one key twice',
    file: CLAIMS,
    edits: [
      [
        'this.#insert = batched(store, store.insert, { identify, join: joinInsert }, begin)',
        'this.#insert = batched(store, store.insert, { identify: (item) => item as never }, begin)',
      ],
    ],
    shownBy: 'the statement tells the two apart by the operation that each would begin',
  },
  {
    name: 'a list renews one lease twice',
    file: CLAIMS,
    edits: [
      [
        'this.#extend = batched(store, store.extend, { identify }, hold)',
        'this.#extend = batched(store, store.extend, { identify: (item) => item as never }, hold)',
      ],
    ],
    shownBy: 7,
    isRare: true,
  },
  {
    name: 'a list takes over one record twice',
    file: CLAIMS,
    edits: [
      [
        'this.#takeOver = batched(store, store.takeOver, { identify }, begin)',
        'this.#takeOver = batched(store, store.takeOver, { identify: (item) => item as never }, begin)',
      ],
    ],
    shownBy: 863,
    isRare: true,
  },
  {
    name: 'a list ends one attempt twice',
    file: CLAIMS,
    edits: [
      [
        '{ identify, sizeOf: ({ response }) => response?.body?.byteLength ?? 0 },',
        '{ identify: (item) => item as never, sizeOf: ({ response }) => response?.body?.byteLength ?? 0 },',
      ],
    ],
    shownBy: 52_977,
    isRare: true,
  },
  {
    name: 'a list stores the steps of one attempt twice',
    file: CLAIMS,
    edits: [
      [
        'this.#keepSteps = batched(store, store.keepSteps, { identify, sizeOf }, hold)',
        'this.#keepSteps = batched(store, store.keepSteps, { identify: (item) => item as never, sizeOf }, hold)',
      ],
    ],
    shownBy: 'no schedule among 60,000: an attempt writes one result at a time',
  },
  {
    name: 'a list forgets one record twice',
    file: CLAIMS,
    edits: [
      [
        'this.#forget = batched(store, store.forget, { identify }, hold)',
        'this.#forget = batched(store, store.forget, { identify: (item) => item as never }, hold)',
      ],
    ],
    shownBy: 107,
    isRare: true,
  },
  {
    name: 'a lock timeout of an insert is taken for a failure of the store',
    file: CLAIMS,
    edits: [["if (isLockTimeout(error)) return { kind: 'busy', waitedMs: 0 }", '']],
    shownBy: 308,
  },
  {
    name: 'a decision is about whatever attempt is there',
    file: RESOLVE,
    edits: [['if (!isCurrent) return', 'if (!isCurrent && false) return']],
    shownBy: 289,
  },
  {
    name: 'a decision is about whatever operation is there',
    file: RESOLVE,
    edits: [['(attempt.operationId === current.operationId && attempt', '(attempt']],
    shownBy: 7671,
    isRare: true,
  },
  {
    name: 'a decision is written without a takeover that matched',
    file: RESOLVE,
    edits: [
      ['forced: isForced } as const', 'forced: true } as const'],
      ['if (isRunning && !isForced) return running(seen)', ''],
    ],
    shownBy: 314,
  },
  {
    name: 'a handler begins though its claim was lost when its name was stored',
    file: 'src/operations/handlers.ts',
    edits: [
      [
        'if (!(await writeHeld(prisma, claim, recovery))) throw new LeaseLost()',
        'await writeHeld(prisma, claim, recovery)',
      ],
    ],
    shownBy:
      'what an attempt begins that has lost its claim is refused wherever it writes: only work is saved',
  },
]
