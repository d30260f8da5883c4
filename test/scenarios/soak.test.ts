// `npm run soak` for some seconds, and proof that its audit would find a fault.
import t from 'tap'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'
import { audit } from '../soak/audit.js'
import type { Asked } from '../soak/clients.js'
import { soak } from '../soak/soak.js'
import { WAYS } from '../soak/transfers.js'

t.setTimeout(300_000)
const skip = await missing('postgres')

t.test(
  'servers are killed and paused; every operation is in the ledger once',
  { skip },
  async (t) => {
    const seconds = size({ full: 120, quick: 6 })
    const { counts, audit, ways } = await soak(t, { seconds, seed: 20301122 })
    t.strictSame(audit.faults, [])
    t.equal(audit.entries, counts.operations * 2)
    t.ok(counts.kills + counts.pauses > 0, 'somebody was disturbed')
    t.ok(counts.replayed > 0 && counts.broken > 0)
    t.ok(
      Object.values(ways).every((count) => count > 0),
      'each way was taken',
    )
    t.comment(JSON.stringify({ ...counts, takenOver: audit.takenOver }))
  },
)

t.test('the audit finds what must not be', { skip }, async (t) => {
  const { prisma } = await postgresDatabase(t)
  const [way] = WAYS
  const answer = (text: string) => ({ status: 201, headers: {}, body: Buffer.from(text) })
  const operation = (name: string): Asked => ({
    way,
    transfer: { operation: name, from: 'cash', to: 'bank', amount: 5 },
    answers: [answer('a'), answer('a')],
  })
  const entries = (tenantId: string) =>
    prisma.payment.createMany({
      data: [
        { tenantId, currency: 'cash', amount: -5 },
        { tenantId, currency: 'bank', amount: 5 },
      ],
    })
  const asked = ['right', 'twice', 'half', 'lost', 'differs'].map(operation)
  for (const name of ['right', 'twice', 'twice', 'half', 'differs', 'unasked']) await entries(name)
  const half = { where: { tenantId: 'half', currency: 'cash' } }
  await prisma.payment.deleteMany(half)
  asked.find(({ transfer }) => transfer.operation === 'differs')?.answers.push(answer('b'))
  const { faults } = await audit(prisma, asked)
  t.strictSame(faults, [
    '/transaction twice: 4 entries instead of 2',
    '/transaction half: 1 entries instead of 2',
    '/transaction lost: 0 entries instead of 2',
    '/transaction differs: 3 answers that differ',
    'unasked: nobody asked for it',
    'bank: 30 instead of 25',
  ])
  await prisma.idempotencyRecord.create({
    data: {
      ...{ tenantId: '', key: 'k', operationId: 'o', fingerprint: 'f', status: 'in_progress' },
      ...{ leaseUntil: new Date(), expiresAt: new Date() },
    },
  })
  t.match((await audit(prisma, asked)).faults.at(-1), '1 keys are not completed')
})
