import type { ServerResponse } from 'node:http'

/** Whether all bytes of a closed response were handed on. `app.inject` closes it before its socket says so. */
export function isAllWritten(raw: ServerResponse): boolean {
  return raw.writableFinished || (raw.writableEnded && Reflect.has(raw, 'isLightMyRequest'))
}
