import { Readable } from 'node:stream'
import { isThrown } from '../core/thrown.js'

/** How a stream is recorded while it passes. */
export interface StreamRecording {
  /** The largest body that is kept, in bytes. */
  readonly limit: number
  /** How many bytes the source has, where that is known: with more or fewer it has failed. */
  readonly announced?: number | undefined
  /**
   * How many bytes the client may have before the response is recorded: fewer than complete it for
   * the client. Read whenever bytes pass, because later hooks may change how the body is framed.
   */
  readonly passableBytes: () => number
  /**
   * Records the response; `null` when its body is too large to be kept. Called once. What it throws
   * breaks the client's stream off.
   */
  readonly record: (body: Uint8Array | null) => Promise<void>
  /** The source failed before the response was recorded. Awaited before the client's stream breaks. */
  readonly onError: (error: unknown) => Promise<void>
}

/** A source that has more or fewer bytes than it was to have. */
export class LengthMismatch extends Error {
  constructor(relation: 'shorter' | 'longer') {
    super(`the stream of its response was ${relation} than its content-length`)
  }
}

/** How many bytes wait in the client's stream, and pass at once. */
const PASS_BYTES = 64 * 1024

/**
 * Passes a stream on to the client and records it.
 *
 * The source is read at its own speed and kept in memory, up to `limit` bytes: a client that reads
 * slowly, stops reading or leaves does not decide whether the response is recorded, nor when. Only then
 * does the client get the last bytes. A body past the limit is never replayed, so that is recorded at
 * once; from then on the source is read at the client's speed.
 */
export function recordStream(source: Readable, recording: StreamRecording): Readable {
  const { limit, announced, passableBytes, record, onError } = recording
  const kept = new GrowingBuffer()
  /** Where `kept` begins in the body, and how much of the body the client's stream was given. */
  let keptFrom = 0
  let passed = 0
  let latestPieceFrom = 0
  let isRecorded = false
  let isEndDue = false
  /** Whether the client's stream takes more. */
  let isWanted = false
  let wake: () => void = () => {}

  const out = new Readable({
    highWaterMark: PASS_BYTES,
    read() {
      isWanted = true
      passOn()
    },
    destroy(error, done) {
      wake()
      done(error)
    },
  })
  // The loop below notices what happens to it; nothing else listens once the client has gone.
  out.on('error', () => {})
  void pass()
  return out

  function bytesToPass(): number {
    const size = keptFrom + kept.size
    if (isRecorded) return size
    const passable = passableBytes()
    // Where the length is known, the latest piece waits as well: a later hook may have added bytes.
    return passable === Number.POSITIVE_INFINITY ? size : Math.min(size, passable, latestPieceFrom)
  }

  function passOn(): void {
    const end = bytesToPass()
    while (passed < end && isWanted) {
      const next = Math.min(end, passed + PASS_BYTES)
      // A copy: what a later hook changes in place must not be what is stored.
      const piece = Buffer.from(kept.view(passed - keptFrom, next - keptFrom))
      passed = next
      // It may be read on within this call.
      isWanted = false
      if (out.push(piece)) isWanted = true
    }
    if (isEndDue && passed === end) {
      isEndDue = false
      out.push(null)
    }
    wake()
  }

  async function pass(): Promise<void> {
    let size = 0
    try {
      for await (const chunk of source) {
        const piece = bytesOf(chunk)
        if (piece.byteLength === 0) continue
        size += piece.byteLength
        if (announced !== undefined && !(size <= announced)) throw new LengthMismatch('longer')
        if (!isRecorded && kept.size + piece.byteLength > limit) {
          await record(null)
          isRecorded = true
        }
        if (isRecorded) {
          await untilPassed()
          // Nobody to send it to: the rest is of no use.
          if (out.destroyed) break
          keptFrom += kept.size
          kept.clear()
        }
        latestPieceFrom = keptFrom + kept.size
        kept.append(piece, limit)
        passOn()
      }
      if (announced !== undefined && size < announced) throw new LengthMismatch('shorter')
      if (!isRecorded) await record(kept.view(0, kept.size))
      isRecorded = true
      isEndDue = true
      passOn()
    } catch (error) {
      if (!isRecorded) await onError(error)
      out.destroy(isThrown(error, Error) ? error : new Error(`its source threw ${typeof error}`))
    }
  }

  /** Until the client's stream has all that there is, or is closed. */
  async function untilPassed(): Promise<void> {
    passOn()
    while (!out.destroyed && passed < keptFrom + kept.size) {
      await new Promise<void>((resolve) => {
        wake = resolve
      })
    }
  }
}

/**
 * Bytes in one piece of memory. They are copied into it: a source may use its buffer again, and a small
 * piece of a large buffer would keep all of that.
 */
class GrowingBuffer {
  #bytes: Buffer = Buffer.alloc(0)
  size = 0

  append(piece: Uint8Array, maxBytes: number): void {
    const size = this.size + piece.byteLength
    if (size > this.#bytes.byteLength) {
      const grown = Buffer.allocUnsafeSlow(Math.max(size, Math.min(2 * this.size, maxBytes)))
      grown.set(this.#bytes.subarray(0, this.size))
      this.#bytes = grown
    }
    this.#bytes.set(piece, this.size)
    this.size = size
  }

  view(from: number, to: number): Buffer {
    return this.#bytes.subarray(from, to)
  }

  /** Begins with new memory: what was handed out stays as it is. */
  clear(): void {
    this.#bytes = Buffer.alloc(0)
    this.size = 0
  }
}

function bytesOf(chunk: unknown): Uint8Array {
  if (typeof chunk === 'string') return Buffer.from(chunk)
  if (chunk instanceof Uint8Array) return chunk
  throw new TypeError('a stream that was sent gave something that is neither text nor bytes')
}
