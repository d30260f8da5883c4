import type { Hash } from 'node:crypto'

/** Native code is entered once for so many bytes. */
const CHUNK_SIZE = 64 * 1024

/** So many UTF-16 code units fit into a chunk, however they are encoded. */
const CHUNK_UNITS = Math.floor(CHUNK_SIZE / 3)

const LOW_SURROGATE = 0xdc00

/** Up to this length a loop writes text faster than a call of native code does. */
const SHORT_TEXT = 48

// The first byte of a text. Up to 3 * SHORT_TEXT it is the length in bytes of a short one.
const LONG_TEXT = 255
const LONG_ILL_FORMED_TEXT = 254

// The first byte of a size, where the size itself is not written as one byte.
const LARGE_SIZE = 255

// The first byte of a number.
const BYTE = 1
const INTEGER = 2
const DOUBLE = 3
const NOT_A_NUMBER = 4

/** Kept for the next writer: most of them need it for a few microseconds. */
let spareChunk: Buffer | undefined

/**
 * Writes sizes, numbers, text and bytes into a hash, so that each can be told from what follows it:
 * what two sequences of calls write is equal exactly when the calls are.
 */
export class ByteWriter {
  readonly #hash: Hash
  readonly #chunk: Buffer
  readonly #view: DataView
  #at = 0

  constructor(hash: Hash) {
    this.#hash = hash
    this.#chunk = spareChunk ?? Buffer.allocUnsafeSlow(CHUNK_SIZE)
    spareChunk = undefined
    this.#view = new DataView(this.#chunk.buffer)
  }

  /** Hands on what is written; nothing can be written after it. */
  end(): void {
    this.#flush()
    spareChunk = this.#chunk
  }

  /** One of 256 marks. */
  tag(tag: number): void {
    this.#makeRoom(1)
    this.#chunk[this.#at++] = tag
  }

  /** A length: an integer from 0 to 2^32 - 1. */
  size(size: number): void {
    this.#makeRoom(5)
    if (size < LARGE_SIZE) {
      this.#chunk[this.#at++] = size
    } else {
      this.#chunk[this.#at++] = LARGE_SIZE
      this.#view.setUint32(this.#at, size)
      this.#at += 4
    }
  }

  number(value: number): void {
    this.#makeRoom(9)
    if ((value | 0) === value && !Object.is(value, -0)) {
      if (value >= 0 && value < 256) {
        this.#chunk[this.#at++] = BYTE
        this.#chunk[this.#at++] = value
      } else {
        this.#chunk[this.#at++] = INTEGER
        this.#view.setInt32(this.#at, value)
        this.#at += 4
      }
    } else if (Number.isNaN(value)) {
      // NaN has many forms in memory.
      this.#chunk[this.#at++] = NOT_A_NUMBER
    } else {
      this.#chunk[this.#at++] = DOUBLE
      this.#view.setFloat64(this.#at, value)
      this.#at += 8
    }
  }

  text(text: string): void {
    if (text.length <= SHORT_TEXT) this.#shortText(text)
    else this.#longText(text)
  }

  #longText(text: string): void {
    // UTF-8 makes the same three bytes of every lone surrogate.
    const isWellFormed = text.isWellFormed()
    this.tag(isWellFormed ? LONG_TEXT : LONG_ILL_FORMED_TEXT)
    this.size(text.length)
    const encoding = isWellFormed ? 'utf8' : 'utf16le'
    let end: number
    for (let start = 0; start < text.length; start = end) {
      end = Math.min(start + CHUNK_UNITS, text.length)
      // A pair of surrogates is encoded as a whole.
      if (end < text.length && (text.charCodeAt(end) & 0xfc00) === LOW_SURROGATE) end -= 1
      this.#makeRoom(3 * (end - start))
      this.#at += this.#chunk.write(text.slice(start, end), this.#at, encoding)
    }
  }

  bytes(bytes: Uint8Array): void {
    this.number(bytes.byteLength)
    if (bytes.byteLength <= CHUNK_SIZE) {
      this.#makeRoom(bytes.byteLength)
      this.#chunk.set(bytes, this.#at)
      this.#at += bytes.byteLength
    } else {
      this.#flush()
      this.#hash.update(bytes)
    }
  }

  /** Each UTF-16 code unit by itself in the form of UTF-8, so that lone surrogates stay apart. */
  #shortText(text: string): void {
    this.#makeRoom(1 + 3 * SHORT_TEXT)
    const chunk = this.#chunk
    const start = this.#at + 1
    let at = start
    for (let n = 0; n < text.length; n += 1) {
      const unit = text.charCodeAt(n)
      if (unit < 0x80) {
        chunk[at++] = unit
      } else if (unit < 0x800) {
        chunk[at++] = 0xc0 | (unit >> 6)
        chunk[at++] = 0x80 | (unit & 0x3f)
      } else {
        chunk[at++] = 0xe0 | (unit >> 12)
        chunk[at++] = 0x80 | ((unit >> 6) & 0x3f)
        chunk[at++] = 0x80 | (unit & 0x3f)
      }
    }
    chunk[this.#at] = at - start
    this.#at = at
  }

  #makeRoom(length: number): void {
    if (this.#at + length > CHUNK_SIZE) this.#flush()
  }

  #flush(): void {
    if (this.#at > 0) this.#hash.update(this.#chunk.subarray(0, this.#at))
    this.#at = 0
  }
}
