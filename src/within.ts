/** The store was asked and did not answer in time. What was asked may still happen. */
export class StoreTimeout extends Error {
  readonly code = 'ETIMEDOUT'
  override readonly name = 'StoreTimeout'
}

/** Rejects when the promise takes longer than `ms`; the promise itself goes on. */
export async function within<T>(promise: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new StoreTimeout(`no answer within ${ms} ms`)), ms)
  })
  try {
    return await Promise.race([promise, timeout])
  } finally {
    clearTimeout(timer)
  }
}
