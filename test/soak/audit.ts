// What the ledger must look like when everybody has been answered.
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import type { Asked } from './clients.js'
import { ACCOUNTS } from './transfers.js'

export interface Audit {
  readonly entries: number
  /** Each line names something that must not be; none is a ledger without a fault. */
  readonly faults: readonly string[]
  readonly balances: Readonly<Record<string, { ledger: number; expected: number }>>
  readonly takenOver: number
}

export async function audit(prisma: PrismaClient, asked: readonly Asked[]): Promise<Audit> {
  const faults: string[] = []
  const rows = await prisma.payment.findMany()
  const byOperation = new Map<string, typeof rows>()
  for (const row of rows) {
    byOperation.set(row.tenantId, [...(byOperation.get(row.tenantId) ?? []), row])
  }

  for (const { way, transfer, answers } of asked) {
    const { operation, from, to, amount } = transfer
    const found = (byOperation.get(operation) ?? [])
      .map((row) => `${row.currency} ${row.amount}`)
      .sort()
    const expected = [`${from} ${-amount}`, `${to} ${amount}`].sort()
    if (found.join() !== expected.join()) {
      faults.push(`${way.path} ${operation}: ${found.length} entries instead of 2`)
    }
    byOperation.delete(operation)
    // A webhook's answer tells what became of the delivery, and that may differ.
    const isCompared = !way.path.startsWith('/webhooks')
    if (isCompared && new Set(answers.map(({ body }) => body.toString())).size !== 1) {
      faults.push(`${way.path} ${operation}: ${answers.length} answers that differ`)
    }
  }
  for (const operation of byOperation.keys()) faults.push(`${operation}: nobody asked for it`)

  const balances: Record<string, { ledger: number; expected: number }> = {}
  for (const account of ACCOUNTS) {
    const ledger = rows.reduce((sum, row) => sum + (row.currency === account ? row.amount : 0), 0)
    const expected = asked.reduce((sum, { transfer: { from, to, amount } }) => {
      return sum + (to === account ? amount : 0) - (from === account ? amount : 0)
    }, 0)
    balances[account] = { ledger, expected }
    if (ledger !== expected) faults.push(`${account}: ${ledger} instead of ${expected}`)
  }
  const [held, waiting, records, events] = await Promise.all([
    prisma.idempotencyRecord.count({ where: { status: { not: 'completed' } } }),
    prisma.webhookEvent.count({ where: { status: { not: 'processed' } } }),
    prisma.idempotencyRecord.count({ where: { attempt: { gt: 1 } } }),
    prisma.webhookEvent.count({ where: { fence: { gt: 1 } } }),
  ])
  if (held > 0) faults.push(`${held} keys are not completed`)
  if (waiting > 0) faults.push(`${waiting} events are not processed`)
  return { entries: rows.length, faults, balances, takenOver: records + events }
}
