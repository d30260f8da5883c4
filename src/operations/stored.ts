import { parse } from 'devalue'
import { encode } from '../claims/steps.js'
import type { RecordKey, StoredResponse } from '../core/record.js'

// How an operation outside a request stands in the table of those inside one.

// No header can carry a tab, so no client can name, or guess, an operation of the application's own.
const RUN = 'run\t'

export const storedKey = (key: string): string => RUN + key

export const isOfRun = ({ key }: RecordKey): boolean => key.startsWith(RUN)

/** The key as `run()`, or the client, gave it. */
export const givenKey = ({ key }: RecordKey): string =>
  key.startsWith(RUN) ? key.slice(RUN.length) : key

/** @throws StepNotStorable */
export function storedResult(key: string, value: unknown): StoredResponse {
  return { statusCode: 200, headers: {}, body: Buffer.from(encode(key, value)) }
}

export function resultOf({ body }: StoredResponse): unknown {
  return parse(Buffer.from(body ?? new Uint8Array()).toString())
}

/** Plain data as something that JSON can tell from another: to JSON, each map and each set is `{}`. */
export function comparable(value: unknown): unknown {
  if (value instanceof Map) return { map: [...value].map((pair) => pair.map(comparable)) }
  if (value instanceof Set) return { set: [...value].map(comparable) }
  if (typeof value === 'bigint') return { bigint: String(value) }
  if (Array.isArray(value)) return value.map(comparable)
  if (typeof value !== 'object' || value === null || value instanceof Date) return value
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, comparable(one)]))
}
