/** How often handlers ran for a tenant in this process: what the plugin is there to keep low. */
export interface Runs {
  count: (kind: RunKind, tenantId: string) => void
  of: (kind: RunKind, tenantId: string) => number
}

type RunKind = 'payment' | 'event'

export function countRuns(): Runs {
  const counts = new Map<string, number>()
  const of: Runs['of'] = (kind, tenantId) => counts.get(`${kind} ${tenantId}`) ?? 0
  return {
    of,
    count: (kind, tenantId) => counts.set(`${kind} ${tenantId}`, of(kind, tenantId) + 1),
  }
}
