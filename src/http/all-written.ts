import type { ServerResponse } from 'node:http'

/** Whether all bytes of a closed response were handed on. */
export function isAllWritten(raw: ServerResponse): boolean {
  // HTTP/2 ends and finishes the stream of a client that has left.
  const isAborted = Reflect.get(Object(Reflect.get(raw, 'stream')), 'aborted') === true
  if (!raw.writableEnded || isAborted) return false
  // `app.inject` closes it before its socket says so.
  return raw.writableFinished || Reflect.has(raw, 'isLightMyRequest')
}
