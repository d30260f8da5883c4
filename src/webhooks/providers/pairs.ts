import { fromHex, headerOf, type Incoming, type Read, wholeNumber } from '../signature.js'

/** A header such as `t=<seconds>,v1=<hex>,v1=<hex>`, over the time and the body. */
export interface PairsForm {
  readonly header: string
  /** Between two pairs. */
  readonly separator: string
  readonly time: string
  readonly signature: string
  /** Between the time and the body, where they are signed. */
  readonly joint: string
}

export function readPairs(form: PairsForm): (incoming: Incoming) => Read {
  return (incoming) => {
    const header = headerOf(incoming, form.header)
    if (header === undefined) return 'missing_header'
    const pairs = header.split(form.separator).map((pair) => pair.trim().split('='))
    const times = pairs.flatMap(([name, value]) => (name === form.time ? (value ?? '') : []))
    const signatures = pairs.flatMap(([name, value]) =>
      name === form.signature ? (fromHex(value ?? '') ?? []) : [],
    )
    const [timestamp = ''] = times
    const seconds = wholeNumber(timestamp)
    // Two times: which of them was signed would be a guess.
    if (seconds === undefined || times.length > 1 || signatures.length === 0) return 'malformed'
    return {
      content: [timestamp, form.joint, incoming.body],
      signatures,
      signedAtMs: seconds * 1_000,
    }
  }
}
