import type { ServerResponse } from 'node:http'

/** Whether all bytes of a closed response were handed on. */
export function isAllWritten(raw: ServerResponse): boolean {
  // HTTP/2 ends and finishes the stream of a client that has left.
  const isAborted = Reflect.get(Object(Reflect.get(raw, 'stream')), 'aborted') === true
  if (!raw.writableEnded || isAborted) return false
  // `app.inject` closes it before its socket says so.
  return raw.writableFinished || Reflect.has(raw, 'isLightMyRequest')
}

/**
 * Whether a response whose client has left was ended. HTTP/2 ignores what is written after that, the end as
 * well: there, a handler that has ended is believed.
 */
export function isEnded(raw: ServerResponse, hasHandlerEnded: boolean): boolean {
  return raw.writableEnded || (hasHandlerEnded && Reflect.has(raw, 'stream'))
}
