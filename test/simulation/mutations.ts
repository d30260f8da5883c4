/** A guard that is taken away. Each text stands exactly once in its file, or the list is wrong. */
export interface Mutation {
  /** What does not hold any more. */
  readonly name: string
  readonly file: string
  readonly edits: readonly (readonly [find: string, replace: string])[]
  /** A schedule that shows it; or why none can. */
  readonly shownBy: number | string
  /** Hardly any schedule shows it: when the code has changed, another one is not looked for. */
  readonly isRare?: true
}

const RESOLVE = 'src/operations/resolve.ts'
const CLAIMS = 'src/claims/claims.ts'
const HELD = 'src/store/held-record.ts'
const STEPS = 'src/claims/steps.ts'
const DECIDE = 'src/core/decide.ts'
const LEASE = 'src/lease.ts'
const PRISMA = 'src/store/prisma.ts'
const MODEL = 'test/simulation/model-store.ts'

export const MUTATIONS: readonly Mutation[] = [
  // What a record means.
  {
    name: 'a lease that runs holds nothing',
    file: DECIDE,
    edits: [
      [
        "const isHeld = record.status === 'in_progress' && record.leaseLeftMs > 0",
        'const isHeld = false',
      ],
    ],
    shownBy: 872,
  },
  {
    name: 'an expired key is free though its lease runs',
    file: DECIDE,
    edits: [['if (record.isExpired && !isHeld)', 'if (record.isExpired)']],
    shownBy: 'the takeover asks for the lease again and does not match: only questions are wasted',
  },
  {
    name: 'what was done for an expired key is resumed',
    file: DECIDE,
    edits: [['fence: record.fence, resumed: false }', 'fence: record.fence, resumed: true }']],
    shownBy: 36,
  },
  {
    name: 'another fingerprint is no mismatch',
    file: DECIDE,
    edits: [["if (record.fingerprint !== fingerprint) return { kind: 'mismatch' }", '']],
    shownBy: 1,
  },
  {
    name: 'an uncertain operation is rerun',
    file: DECIDE,
    edits: [
      ["if (record.status === 'in_progress' && onLeaseExpired === 'uncertain') {", 'if (false) {'],
    ],
    shownBy: 53,
  },
  {
    name: 'a takeover resumes nothing',
    file: DECIDE,
    edits: [['fence: record.fence, resumed: true }', 'fence: record.fence, resumed: false }']],
    shownBy: 2,
  },
  // Claims.
  {
    name: 'a takeover that did not match is taken for one that did',
    file: CLAIMS,
    edits: [
      ['if (taken === undefined) return undefined\n', ''],
      ['const { steps } = taken\n', 'const { steps } = taken ?? { steps: {} }\n'],
    ],
    shownBy: 6,
  },
  {
    name: 'a grant that was long on its way is not renewed',
    file: CLAIMS,
    edits: [['performance.now() - askedAt > wish.leaseMs / 2', 'performance.now() < 0']],
    shownBy: 151,
  },
  {
    name: 'a renewal of a late grant that did not match is taken for one that did',
    file: CLAIMS,
    edits: [['if (!isHeld) return undefined\n', '']],
    shownBy: 1207,
  },
  {
    name: 'a new key that was granted too late is not given back',
    file: CLAIMS,
    edits: [
      [
        "if (late.kind === 'made') void this.#forget({ ...wish, fence: 1 }).catch(() => {})",
        'void late',
      ],
    ],
    shownBy: 'it costs time alone: nobody runs it until its lease has run out',
  },
  {
    name: 'a takeover that was granted too late is not given back',
    file: CLAIMS,
    edits: [
      ['this.#finish({ ...wish, fence: fence + 1, response: null }).catch(() => {})', 'undefined'],
    ],
    shownBy: 'it costs time alone: nobody runs it until its lease has run out',
  },
  {
    name: 'a decision is about whatever attempt is there',
    file: RESOLVE,
    edits: [['if (attempt !== undefined && attempt !== fence) ', 'if (attempt === 0) ']],
    shownBy: 510,
  },
  // A claim and its lease.
  {
    name: 'results are stored by whoever had the claim',
    file: HELD,
    edits: [
      [
        "where: { tenantId, key, fence, status: 'in_progress' },",
        "where: { tenantId, key, status: 'in_progress' },",
      ],
    ],
    shownBy: 182,
  },
  {
    name: 'results are stored when the claim has ended',
    file: HELD,
    edits: [
      [
        "where: { tenantId, key, fence, status: 'in_progress' },",
        'where: { tenantId, key, fence },',
      ],
    ],
    shownBy: 250,
  },
  {
    name: 'a response that could not be stored is given out as stored',
    file: LEASE,
    edits: [["return { kind: isStored ? 'stored' : 'lost' }", "return { kind: 'stored' }"]],
    shownBy: 303,
  },
  {
    name: 'a lease is renewed for ever',
    file: LEASE,
    edits: [['if (askedAt - this.startedAt > maxRunMs) {', 'if (maxRunMs === 0) {']],
    shownBy: 18,
  },
  {
    name: 'the heartbeat does not stop',
    file: LEASE,
    edits: [['    clearTimeout(this.#heartbeat)\n', '']],
    shownBy: 'a renewal matches nothing once the claim has ended: only statements are wasted',
  },
  {
    name: 'a renewal that did not match is taken for one that did',
    file: LEASE,
    edits: [['if (!isRenewed) {', 'if (false) {']],
    shownBy:
      'its own clock has told the handler before: a lease ends for its holder no later than for others',
  },
  {
    name: 'a lease that could not be renewed is not told of',
    file: LEASE,
    edits: [
      ["if (leftMs <= 0) this.lose('its lease could not be renewed in time')", ''],
      ["if (untilEndMs <= 0) this.lose('its lease could not be renewed in time')", ''],
    ],
    shownBy: 640,
  },
  // Steps and transactions.
  {
    name: 'a step that was not stored is given to the handler',
    file: STEPS,
    edits: [['if (!isKept) throw new LeaseLost()', 'void isKept']],
    shownBy: 6,
  },
  {
    name: 'a transaction commits without its guard',
    file: STEPS,
    edits: [['if (!(await keep(tx, results))) throw new LeaseLost()', 'await keep(tx, results)']],
    shownBy: 68,
  },
  {
    name: 'a transaction commits without its result',
    file: STEPS,
    edits: [['if (!(await keep(tx, results))) throw new LeaseLost()', '']],
    shownBy: 1,
  },
  {
    name: 'a step that is done is run again',
    file: STEPS,
    edits: [['if (Object.hasOwn(this.#results, path)) return', 'if (path === undefined) return']],
    shownBy: 2,
  },
  {
    name: 'a result is stored without the earlier ones',
    file: STEPS,
    edits: [['const results = { ...this.#results, [', 'const results = { [']],
    shownBy: 1,
  },
  {
    name: 'results side by side are written side by side',
    file: STEPS,
    edits: [
      ['const turn = this.#writing.then(() => {', 'const turn = Promise.resolve().then(() => {'],
    ],
    shownBy: 40,
  },
  {
    name: 'after an uncertain write, what waited is written',
    file: STEPS,
    edits: [
      [
        'if (this.#unknownWrite) throw this.#unknownWrite.error\n      return write()',
        'return write()',
      ],
    ],
    shownBy: 2362,
  },
  {
    name: 'after an uncertain write, something else is begun',
    file: STEPS,
    edits: [
      [
        'if (this.#unknownWrite) throw this.#unknownWrite.error\n    // The record',
        '// The record',
      ],
    ],
    shownBy:
      'what it would write is refused when its turn comes, by the guard above: only work is saved',
  },
  {
    name: 'the write of a step is never uncertain',
    file: STEPS,
    edits: [['          this.#isSent = true\n          return keep(', '          return keep(']],
    shownBy: 483,
  },
  {
    name: 'a commit is never uncertain',
    file: STEPS,
    edits: [["crashPoint('transaction:recorded')\n        this.#isSent = true", '']],
    shownBy: 188,
  },
  {
    name: 'a response is stored while its work is under way',
    file: STEPS,
    edits: [
      [
        'return this.#underWay.size === 0 ? undefined :',
        'return this.#underWay.size >= 0 ? undefined :',
      ],
    ],
    shownBy: 16,
  },
  {
    name: 'work begins after the response',
    file: STEPS,
    edits: [['if (this.#isClosed) throw new StepTooLate()', '']],
    shownBy: 'its write matches nothing once the claim has ended: the mistake is only told sooner',
  },
  // The portable store.
  {
    name: 'Prisma: whoever comes takes over, whatever fence he has seen',
    file: PRISMA,
    edits: [['        fence: ask.fence,\n        // A key', '        // A key']],
    shownBy: 'the look after it compares the fence, too: nobody runs it, and its lease runs out',
  },
  {
    name: 'Prisma: whoever comes takes over, and does not look again',
    file: PRISMA,
    edits: [
      ['        fence: ask.fence,\n        // A key', '        // A key'],
      ['return row?.fence === ask.fence + 1 ?', 'return row !== null ?'],
    ],
    shownBy: 2788,
  },
  {
    name: 'Prisma: a late takeover resumes whatever has that fence',
    file: PRISMA,
    edits: [['ask.resumed ? { fingerprint: ask.fingerprint } : {', 'ask.resumed ? {} : {']],
    shownBy: 235,
  },
  {
    name: 'Prisma: a late takeover forgets whatever has that fence',
    file: PRISMA,
    edits: [
      [
        '{ fingerprint: ask.fingerprint } : { expiresAt: { lte: now } }',
        '{ fingerprint: ask.fingerprint } : {}',
      ],
    ],
    shownBy:
      'the contract of stores asks for it; here no statement is on its way for as long as a key is remembered',
  },
  {
    name: 'Prisma: a lease that runs is taken over',
    file: PRISMA,
    edits: [
      [
        "{ status: 'in_progress', leaseUntil: { lte: now } },\n          { status: 'completed'",
        "{ status: 'in_progress' },\n          { status: 'completed'",
      ],
    ],
    shownBy: 434,
  },
  {
    name: 'Prisma: a response that is kept is taken over',
    file: PRISMA,
    edits: [["{ status: 'completed', expiresAt: { lte: now } },", "{ status: 'completed' },"]],
    shownBy: 358,
  },
  {
    name: 'Prisma: the clock of a takeover is estimated',
    file: PRISMA,
    edits: [
      [
        'async function takeOver(ask: TakeOver): Promise<Taken | undefined> {\n    const now = await clock.ask()',
        'async function takeOver(ask: TakeOver): Promise<Taken | undefined> {\n    const now = await clock.estimate()',
      ],
    ],
    shownBy: 4616,
    isRare: true,
  },
  {
    name: 'Prisma: steps are read before the takeover',
    file: PRISMA,
    edits: [
      [
        '    const { count } = await records.updateMany({\n      where: {\n        tenantId: ask.tenantId,',
        '    const row = await records.findUnique({ where: { tenantId_key: { tenantId: ask.tenantId, key: ask.key } } })\n    const { count } = await records.updateMany({\n      where: {\n        tenantId: ask.tenantId,',
      ],
      [
        '    const row: { fence: number; steps: StepResults | null } | null = await records.findUnique({',
        '    await records.findUnique({',
      ],
      [
        'return row?.fence === ask.fence + 1 ? { steps: row.steps ?? {} } : undefined',
        'return { steps: row?.steps ?? {} }',
      ],
    ],
    shownBy: 1744,
    isRare: true,
  },
  {
    name: 'Prisma: the fence is not looked at again after a takeover',
    file: PRISMA,
    edits: [
      [
        'return row?.fence === ask.fence + 1 ? { steps: row.steps ?? {} } : undefined',
        'return { steps: row?.steps ?? {} }',
      ],
    ],
    shownBy:
      'a grant that took so long that somebody else could follow is renewed before it is used, by its fence',
  },
  {
    name: 'Prisma: whoever had the claim finishes',
    file: PRISMA,
    edits: [
      [
        "where: { tenantId, key, fence, status: { in: ['in_progress', status] } },",
        "where: { tenantId, key, status: { in: ['in_progress', status] } },",
      ],
    ],
    shownBy: 3551,
  },
  {
    name: 'Prisma: a claim that has ended is finished in another way',
    file: PRISMA,
    edits: [
      [
        "where: { tenantId, key, fence, status: { in: ['in_progress', status] } },",
        'where: { tenantId, key, fence },',
      ],
    ],
    shownBy:
      'a claim says once how it ended, and remembers that: the guard is for a program that says both',
  },
  {
    name: 'Prisma: what was finished before its reply got lost is not recognized',
    file: PRISMA,
    edits: [["status: { in: ['in_progress', status] } },", "status: 'in_progress' },"]],
    shownBy: 195,
  },
  {
    name: 'Prisma: whoever had the claim renews and forgets',
    file: PRISMA,
    edits: [
      [
        "return { tenantId, key, fence, status: 'in_progress' }",
        "return { tenantId, key, status: 'in_progress' }",
      ],
    ],
    shownBy: 563,
  },
  {
    name: 'Prisma: a claim that has ended is renewed and forgotten',
    file: PRISMA,
    edits: [
      ["return { tenantId, key, fence, status: 'in_progress' }", 'return { tenantId, key, fence }'],
    ],
    shownBy: 7,
  },
  {
    name: 'Prisma: a late renewal takes back what a later one gave',
    file: PRISMA,
    edits: [
      ['where: { ...heldBy(hold), leaseUntil: { lt: leaseUntil } },', 'where: heldBy(hold),'],
    ],
    shownBy: 22_435,
    isRare: true,
  },
  // The model of the statements for PostgreSQL: the same guards.
  {
    name: 'statements: a key that is there is inserted again',
    file: 'test/simulation/model-database.ts',
    edits: [['if (database.see(nameOf(row), transaction) !== undefined) return false\n', '']],
    shownBy: 1,
  },
  {
    name: 'statements: whoever comes takes over, whatever fence he has seen',
    file: MODEL,
    edits: [['row.fence === ask.fence && isFree(row, database)', 'isFree(row, database)']],
    shownBy: 67,
  },
  {
    name: 'statements: a late takeover resumes whatever has that fence',
    file: MODEL,
    edits: [
      [
        'return resumed ? row.fingerprint === fingerprint :',
        'return resumed ? fingerprint !== undefined :',
      ],
    ],
    shownBy: 198466,
    isRare: true,
  },
  {
    name: 'statements: a late takeover forgets whatever has that fence',
    file: MODEL,
    edits: [[': row.expiresAt <= database.now()\n}', ': true\n}']],
    shownBy:
      'the contract of stores asks for it; here no statement is on its way for as long as a key is remembered',
  },
  {
    name: 'statements: what is held or kept is taken over',
    file: MODEL,
    edits: [['row.fence === ask.fence && isFree(row, database)', 'row.fence === ask.fence']],
    shownBy: 33,
  },
  {
    name: 'statements: whoever had the claim finishes',
    file: MODEL,
    edits: [
      [
        "row.fence === hold.fence && (row.status === 'in_progress' || row.status === status)",
        "(row.status === 'in_progress' || row.status === status)",
      ],
    ],
    shownBy: 2259,
  },
  {
    name: 'statements: a claim that has ended is finished in another way',
    file: MODEL,
    edits: [
      [
        "row.fence === hold.fence && (row.status === 'in_progress' || row.status === status)",
        'row.fence === hold.fence',
      ],
    ],
    shownBy:
      'a claim says once how it ended, and remembers that: the guard is for a program that says both',
  },
  {
    name: 'statements: whoever had the claim renews and forgets',
    file: MODEL,
    edits: [
      [
        "return (row) => row.fence === fence && row.status === 'in_progress'",
        "return (row) => fence > 0 && row.status === 'in_progress'",
      ],
    ],
    shownBy: 272,
  },
  {
    name: 'statements: steps are read before the row is locked',
    file: MODEL,
    edits: [
      [
        '          const row = yield* lockedIf(database, transaction, nameOf(ask), mayTake)',
        '          const early = database.see(nameOf(ask), transaction)?.steps\n          const row = yield* lockedIf(database, transaction, nameOf(ask), mayTake)',
      ],
      [
        'result[place] = { steps: steps ?? {} }',
        'result[place] = { steps: (ask.resumed ? early : null) ?? {} }',
      ],
    ],
    shownBy: 489,
  },
  // What carries it.
  {
    name: 'combined calls give everybody the first result',
    file: 'src/store/combine.ts',
    edits: [['waiting.resolve(results[i] as O)', 'waiting.resolve(results[i * 0] as O)']],
    shownBy: 354,
  },
  {
    name: 'a handler begins though its claim was lost when it was noted',
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
