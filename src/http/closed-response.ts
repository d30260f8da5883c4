import type { ServerResponse } from 'node:http'

/** Whether the connection of a response is closed: its client has all of it, or has left. */
export function isClosed(raw: ServerResponse): boolean {
  const stream = http2StreamOf(raw)
  return stream === undefined ? raw.destroyed : stream.destroyed || stream.closed
}

/** Calls back once the connection is closed, at once if it is by now. */
export function onClosed(raw: ServerResponse, then: () => void): void {
  if (isClosed(raw)) then()
  else raw.once('close', then)
}

/** Whether all bytes of a closed response were handed on. */
export function isAllWritten(raw: ServerResponse): boolean {
  // HTTP/2 ends and finishes the stream of a client that has left.
  if (!raw.writableEnded || http2StreamOf(raw)?.aborted === true) return false
  // `app.inject` closes it before its socket says so.
  return raw.writableFinished || Reflect.has(raw, 'isLightMyRequest')
}

/**
 * What a handler does to a response whose connection is closed. Node emits nothing for that, and HTTP/2
 * ignores it: the status and the end are noted here.
 */
export class ClosedResponse {
  readonly #raw: ServerResponse
  #isEnded = false
  #statusCode: number | undefined

  /** `onEnd` is called when the handler ends the response from now on. */
  constructor(raw: ServerResponse, onEnd: () => void = () => {}) {
    this.#raw = raw
    const { writeHead, end, headersSent } = raw
    Object.assign(raw, {
      writeHead: (...args: unknown[]) => {
        if (!headersSent) this.#statusCode = Number(args[0])
        return Reflect.apply(writeHead, raw, args)
      },
      end: (...args: unknown[]) => {
        this.#isEnded = true
        const returned: unknown = Reflect.apply(end, raw, args)
        onEnd()
        return returned
      },
    })
  }

  /** Whether the handler has ended it, before its connection was closed or after that. */
  get isEnded(): boolean {
    return this.#isEnded || this.#raw.writableEnded
  }

  get statusCode(): number {
    return this.#statusCode ?? this.#raw.statusCode
  }
}

/** `INTERNAL_ERROR`, as RFC 9113 numbers it. */
const HTTP2_INTERNAL_ERROR = 2

/** Ends a response that has begun and will not be whole. HTTP/2 would end it like a whole one. */
export function breakOff(raw: ServerResponse): void {
  if (raw.headersSent) http2StreamOf(raw)?.close(HTTP2_INTERNAL_ERROR)
}

interface Http2Stream {
  close(code: number): void
  readonly destroyed: boolean
  readonly closed: boolean
  readonly aborted: boolean
}

function http2StreamOf(raw: ServerResponse): Http2Stream | undefined {
  return Reflect.get(raw, 'stream')
}
