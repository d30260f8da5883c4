import type { Mutation } from './mutation.js'

const PRISMA = 'src/store/prisma.ts'
const SEEN =
  '        operationId: ask.seen.operationId,\n        attempt: ask.seen.attempt,\n        ...(ask.resumed'
const TAKEN = 'const isTaken = row?.operationId === operationId && row.attempt === attempt + 1'
const COMPLETED = "...(ask.resumed ? [] : [{ status: 'completed', expiresAt: { lte: now } }]),"
const ATTEMPT = 'return { tenantId, key, operationId, attempt }'
const FINISH = 'where: heldBy(hold),\n      data: {\n        status,'

/** The store that needs Prisma's calls alone. */
export const OF_THE_PORTABLE_STORE: readonly Mutation[] = [
  {
    name: 'Prisma: any attempt is taken over, whatever was seen',
    file: PRISMA,
    edits: [[SEEN, '        ...(ask.resumed']],
    shownBy: 555,
  },
  {
    name: 'Prisma: any operation is taken over, whatever was seen',
    file: PRISMA,
    edits: [[SEEN, '        attempt: ask.seen.attempt,\n        ...(ask.resumed']],
    shownBy: 10_497,
  },
  {
    name: 'Prisma: any attempt is taken over, and not read again',
    file: PRISMA,
    edits: [
      [SEEN, '        ...(ask.resumed'],
      [TAKEN, 'const isTaken = row !== null && operationId !== undefined && attempt > 0'],
    ],
    shownBy: 555,
  },
  {
    name: 'Prisma: a late takeover resumes whatever has that token',
    file: PRISMA,
    edits: [['ask.resumed ? { fingerprint: ask.fingerprint } : {', 'ask.resumed ? {} : {']],
    shownBy: 'a token names one operation, and an operation has one fingerprint',
  },
  {
    name: 'Prisma: a late takeover forgets whatever has that token',
    file: PRISMA,
    edits: [
      [
        '{ fingerprint: ask.fingerprint } : { expiresAt: { lte: now } }',
        '{ fingerprint: ask.fingerprint } : {}',
      ],
    ],
    shownBy: 'a key that was seen to have expired does not come back with the same token',
  },
  {
    name: 'Prisma: a lease that runs is taken over',
    file: PRISMA,
    edits: [['...(!ask.forced && { leaseUntil: { lte: now } })', '']],
    shownBy: 358,
  },
  {
    name: 'Prisma: a response that is kept is taken over',
    file: PRISMA,
    edits: [[COMPLETED, "{ status: 'completed' },"]],
    shownBy: 558,
  },
  {
    name: 'Prisma: a response is resumed once it has expired',
    file: PRISMA,
    edits: [[COMPLETED, "{ status: 'completed', expiresAt: { lte: now } },"]],
    shownBy: 4052,
  },
  {
    name: 'Prisma: the clock of a takeover is estimated',
    file: PRISMA,
    edits: [
      [
        'Promise<Taken | undefined> {\n    const now = await clock.ask()',
        'Promise<Taken | undefined> {\n    const now = await clock.estimate()',
      ],
    ],
    shownBy: 11_270,
    isRare: true,
  },
  {
    name: 'Prisma: steps are read before the takeover',
    file: PRISMA,
    edits: [
      [
        '    const { count } = await records.updateMany({\n      where: {\n        tenantId: ask.tenantId,',
        '    const early = await records.findUnique({ where: { tenantId_key: { tenantId: ask.tenantId, key: ask.key } } })\n    const { count } = await records.updateMany({\n      where: {\n        tenantId: ask.tenantId,',
      ],
      [
        'return isTaken ? { steps: row.steps ?? {} }',
        'return isTaken ? { steps: early?.steps ?? {} }',
      ],
    ],
    shownBy: 274,
  },
  {
    name: 'Prisma: the token is not read again after a takeover',
    file: PRISMA,
    edits: [[TAKEN, 'const isTaken = row !== null && operationId !== undefined && attempt > 0']],
    shownBy:
      'a grant that took so long that another attempt could follow is renewed before it is used, by its token',
  },
  {
    name: 'Prisma: a forced takeover has the number of the attempt that it ends',
    file: PRISMA,
    edits: [
      ['{ attempt: { increment: 1 } }', '{ attempt: { increment: ask.forced ? 0 : 1 } }'],
      [TAKEN, 'const isTaken = row?.operationId === operationId && row.attempt >= attempt'],
    ],
    shownBy: 1369,
  },
  {
    name: 'Prisma: an earlier attempt finishes, renews and forgets',
    file: PRISMA,
    edits: [[ATTEMPT, 'return { tenantId, key, ...(attempt === 0 && { operationId }) }']],
    shownBy: 26,
  },
  {
    name: 'Prisma: the same attempt at another operation finishes, renews and forgets',
    file: PRISMA,
    edits: [[ATTEMPT, 'return { tenantId, key, attempt, ...(attempt === 0 && { operationId }) }']],
    shownBy: 26,
  },
  {
    name: 'Prisma: another attempt at the same operation finishes, renews and forgets',
    file: PRISMA,
    edits: [[ATTEMPT, 'return { tenantId, key, operationId, ...(attempt === 0 && { attempt }) }']],
    shownBy: 409,
  },
  {
    name: 'Prisma: a claim that has ended is finished in another way, renewed and forgotten',
    file: PRISMA,
    edits: [["return { ...attemptOf(hold), status: 'in_progress' }", 'return attemptOf(hold)']],
    shownBy: 8,
  },
  {
    name: 'Prisma: of two responses of one attempt the second is kept',
    file: PRISMA,
    edits: [
      [
        FINISH,
        "where: { ...attemptOf(hold), status: { in: ['in_progress', status] } },\n      data: {\n        status,",
      ],
    ],
    shownBy: 4879,
  },
  {
    name: 'Prisma: what was finished before its reply got lost is not recognized',
    file: PRISMA,
    edits: [['const where = { ...attemptOf(hold), status }', 'const where = { ...heldBy(hold) }']],
    shownBy: 235,
  },
  {
    name: 'Prisma: a late renewal takes back what a later one gave',
    file: PRISMA,
    edits: [
      ['where: { ...heldBy(hold), leaseUntil: { lt: leaseUntil } },', 'where: heldBy(hold),'],
    ],
    shownBy: 7_649,
    isRare: true,
  },
]
