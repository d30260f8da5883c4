import type { PrismaClientLike } from './client.js'
import type { Hold } from './store.js'

/**
 * A write to a claim's record by whoever still has the claim, with the application's client or in its
 * transaction. `false`: somebody else has it, or it has ended.
 */
export async function writeHeld(
  client: Pick<PrismaClientLike, 'idempotencyRecord'>,
  { tenantId, key, operationId, attempt }: Hold,
  data: object,
): Promise<boolean> {
  const { count } = await client.idempotencyRecord.updateMany({
    where: { tenantId, key, operationId, attempt, status: 'in_progress' },
    data,
  })
  return count === 1
}
