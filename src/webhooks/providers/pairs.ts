import type { Incoming, Read } from '../signature.js'
import { hmacReader } from './hmac.js'

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
  const { header, separator, time, signature, joint } = form
  return hmacReader({
    header,
    separator,
    prefix: `${signature}=`,
    timestampPrefix: `${time}=`,
    signed: ({ timestamp, body }) => [timestamp, joint, body],
  })
}
