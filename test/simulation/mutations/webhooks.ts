import type { Mutation } from './mutation.js'

const RUNNER = 'src/webhooks/runner.ts'
const RUN = 'src/webhooks/run.ts'
const INBOX = 'src/webhooks/inbox.ts'
const PRISMA = 'src/store/prisma-events.ts'
const MODEL = 'test/simulation/model-event-statements.ts'

const KEPT =
  "(row, { fence }) => row.fence === fence && row.status === 'processing',\n        (row, { steps })"

/** Events that are run once, however often they are delivered. */
export const OF_WEBHOOKS: readonly Mutation[] = [
  {
    name: 'webhooks: a claim that arrived late is not renewed',
    file: RUNNER,
    edits: [['performance.now() - askedAt > leaseMs / 2', 'false']],
    shownBy: 1267,
  },
  {
    name: 'webhooks: a late claim whose renewal is as late is run',
    file: RUNNER,
    edits: [
      [
        'performance.now() - askedAt > leaseMs / 2',
        'renewals === 0 && performance.now() - askedAt > leaseMs / 2',
      ],
    ],
    shownBy: 37608,
    isRare: true,
  },
  {
    name: 'webhooks: a late claim is run though its renewal failed',
    file: RUNNER,
    edits: [['.catch(() => false))) return undefined', '.catch(() => true))) return undefined']],
    shownBy: 28,
  },
  {
    name: 'webhooks: a late claim is run though its renewal did not match',
    file: RUNNER,
    edits: [
      [
        'if (!(await within(renewing, storeTimeoutMs).catch(() => false))) return undefined',
        'if (!(await within(renewing.then(() => true), storeTimeoutMs).catch(() => false))) return undefined',
      ],
    ],
    shownBy: 1140,
  },
  {
    name: 'webhooks: a list renews one lease twice',
    file: RUNNER,
    edits: [
      [
        'batched(store, store.extend, { identify }, hold)',
        'batched(store, store.extend, { identify: (item) => item as never }, hold)',
      ],
    ],
    shownBy: 23_238,
    isRare: true,
  },
  {
    name: 'webhooks: a list ends one run twice',
    file: RUNNER,
    edits: [
      [
        'batched(store, store.end, { identify }, hold)',
        'batched(store, store.end, { identify: (item) => item as never }, hold)',
      ],
    ],
    shownBy:
      'no schedule among 24,000: a run says once how it ends, and again only when that has failed',
  },
  {
    name: 'webhooks: a list stores the steps of one run twice',
    file: RUNNER,
    edits: [
      [
        'batched(store, store.keepSteps, { identify, sizeOf }, hold)',
        'batched(store, store.keepSteps, { identify: (item) => item as never, sizeOf }, hold)',
      ],
    ],
    shownBy: 'no schedule among 24,000: a run writes one result at a time',
  },
  {
    name: 'webhooks: a claim that was granted too late is not given back',
    file: RUNNER,
    edits: [['for (const stored of claimed) this.giveBack(stored)', '']],
    shownBy: 'it costs time alone: a worker takes it over once its lease has run out',
  },
  {
    name: 'webhooks: an event that was recorded too late is not given back',
    file: INBOX,
    edits: [["if (arrival.status !== 'processing' || isOfItsData(failure)) return", 'return']],
    shownBy: 'it costs time alone: a worker takes it over once its lease has run out',
  },
  {
    name: 'webhooks: results are stored without checking who has the run',
    file: RUN,
    edits: [
      ["where: { id, fence, status: 'processing' },", "where: { id, status: 'processing' },"],
    ],
    shownBy: 269,
  },
  {
    name: 'webhooks: results are stored when the run has ended',
    file: RUN,
    edits: [["where: { id, fence, status: 'processing' },", 'where: { id, fence },']],
    shownBy:
      'only the transaction of a run that a closing server has handed back writes so late, and the next run reads it',
  },
  {
    name: 'webhooks: a handler that fails after its last transaction is run again',
    file: RUN,
    edits: [['if (steps.isFinal) return this.#failedAfterEnd(error)', '']],
    shownBy:
      'the end of a run that is processed matches nothing: only its delivery is answered differently',
  },
  {
    name: 'webhooks: an event is processed before its work has ended',
    file: RUN,
    edits: [
      [
        '      await over\n      if (!isAwaited) throw new StepNotAwaited()',
        '      void [isAwaited, over]',
      ],
    ],
    shownBy: 17,
  },
  {
    name: 'webhooks: a run that was handed back stores its result',
    file: RUN,
    edits: [["if (this.#lease.isSettled) return 'lost'\n    const verdict", 'const verdict']],
    shownBy: 'its lease has ended in this process, and stores nothing more',
  },
  {
    name: 'webhooks, Prisma: an earlier run ends the event',
    file: PRISMA,
    edits: [
      [
        "const where = { id, fence, status: { in: ['processing', status] } }",
        "const where = { id, status: { in: ['processing', status] } }",
      ],
    ],
    shownBy: 518,
  },
  {
    name: 'webhooks, Prisma: an event that runs is claimed',
    file: PRISMA,
    edits: [
      [
        "{ status: 'processing', dueAt: { lte: await clock.ask() } },\n        ],\n      })",
        "{ status: 'processing' },\n        ],\n      })",
      ],
    ],
    shownBy: 427,
  },
  {
    name: 'webhooks, statements: an earlier run ends the event',
    file: MODEL,
    edits: [
      [
        "row.fence === fence && (row.status === 'processing' || row.status === status)",
        "fence > 0 && (row.status === 'processing' || row.status === status)",
      ],
    ],
    shownBy: 504,
  },
  {
    name: 'webhooks, statements: what was ended before its reply got lost is not recognized',
    file: MODEL,
    edits: [
      [
        "row.fence === fence && (row.status === 'processing' || row.status === status)",
        "row.fence === fence && row.status === 'processing'",
      ],
    ],
    shownBy: 'the run is over either way, and the next delivery is told so by the inbox',
  },
  {
    name: 'webhooks, statements: an earlier run renews the lease',
    file: MODEL,
    edits: [
      [
        "(row, { fence }) => row.fence === fence && row.status === 'processing',\n        (row, { lease_ms })",
        "(row, { fence }) => fence > 0 && row.status === 'processing',\n        (row, { lease_ms })",
      ],
    ],
    shownBy: 1140,
    isRare: true,
  },
  {
    name: 'webhooks, statements: results are stored without checking who has the run',
    file: MODEL,
    edits: [[KEPT, KEPT.replace('row.fence === fence && ', 'fence > 0 && ')]],
    shownBy: 3_976,
  },
  {
    name: 'webhooks, statements: an event that runs is claimed',
    file: MODEL,
    edits: [
      [
        "WAITING.includes(row.status) || (row.status === 'processing' && hasCome(row, database))\n      const row",
        'OPEN.includes(row.status)\n      const row',
      ],
    ],
    shownBy: 28,
  },
  {
    name: 'webhooks, statements: a lane runs two events at once',
    file: MODEL,
    edits: [
      [
        '(row) => canRun(row) && !isLaneRunBy(seen, row),',
        '(row) => canRun(row) && seen.length > 0,',
      ],
    ],
    shownBy: 'the constraint of the lane refuses the second: only an error is saved',
  },
  {
    name: 'webhooks, left to the provider: a worker runs the event',
    file: RUN,
    edits: [["if (from === 'worker' && this.#stored.awaitsDelivery) return this.#leave()", '']],
    shownBy: 15,
  },
  {
    name: 'webhooks, left to the provider: the event is retried as any other',
    file: INBOX,
    edits: [["(from !== 'elsewhere' && isNamedAnew(endpoint, event))", 'false']],
    shownBy: 15,
  },
  {
    name: 'webhooks, left to the provider: the acknowledgement of a handler is not stored',
    file: RUN,
    edits: [['      isAcknowledged,\n      dueInMs,', '      dueInMs,']],
    shownBy: 15,
  },
  {
    name: 'webhooks, left to the provider, statements: a failed run makes the event due',
    file: MODEL,
    edits: [["const isParked = status === 'retrying' && awaitsDelivery", 'const isParked = false']],
    shownBy: 15,
  },
  {
    name: 'webhooks, left to the provider, statements: a replayed event is left again',
    file: MODEL,
    edits: [['?? row.lane, awaitsDelivery: false }', '?? row.lane }']],
    shownBy: 734,
  },
  {
    name: 'webhooks, left to the provider, Prisma: a failed run makes the event due',
    file: PRISMA,
    edits: [
      ["const isFinal = run.isAcknowledged || status !== 'retrying'", 'const isFinal = true'],
    ],
    shownBy: 27,
  },
  {
    name: 'webhooks, left to the provider, Prisma: an acknowledged event is left again',
    file: PRISMA,
    edits: [['run.isAcknowledged && { awaitsDelivery: false }', '{}']],
    shownBy: 76,
  },
  {
    name: 'webhooks, left to the provider, Prisma: a replayed event is left again',
    file: PRISMA,
    edits: [['        awaitsDelivery: false,\n', '']],
    shownBy: 819,
  },
  {
    name: 'webhooks, left to the provider, Prisma: a row that is inserted late is made due',
    file: PRISMA,
    edits: [['...(!isFinal && { awaitsDelivery: false })', '']],
    shownBy: 6_832,
    isRare: true,
  },
  {
    name: 'webhooks, left to the provider, Prisma: a delivery undoes an acknowledgement',
    file: PRISMA,
    edits: [
      [
        '!arrival.awaitsDelivery && { awaitsDelivery: false }',
        '{ awaitsDelivery: row.awaitsDelivery && arrival.awaitsDelivery }',
      ],
    ],
    shownBy: 18_354,
    isRare: true,
  },
]
