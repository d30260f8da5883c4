import type { Mutation } from './mutation.js'

const LEASE = 'src/lease.ts'

/** How long an attempt is the only one. */
export const OF_LEASES: readonly Mutation[] = [
  {
    name: 'a response that could not be stored is given out as stored',
    file: LEASE,
    edits: [["return { kind: isStored ? 'stored' : 'lost' }", "return { kind: 'stored' }"]],
    shownBy: 218,
  },
  {
    name: 'a lease is renewed for ever',
    file: LEASE,
    edits: [
      ['    if (this.#isRunTooLong()) {\n      this.lose(', '    if (false) {\n      this.lose('],
    ],
    shownBy: 132,
  },
  {
    name: 'the heartbeat does not stop',
    file: LEASE,
    edits: [['    clearTimeout(this.#heartbeat)\n', '']],
    shownBy: 'a renewal matches nothing once the claim has ended: only statements are wasted',
  },
  {
    name: 'a renewal that did not match is taken for one that did',
    file: LEASE,
    edits: [['if (!isRenewed) {', 'if (false) {']],
    shownBy:
      'its own clock has told the handler before: a lease ends for its holder no later than for others',
  },
  {
    name: 'a lease that could not be renewed is not told of',
    file: LEASE,
    edits: [
      ["if (leftMs <= 0) this.lose('its lease could not be renewed in time')", ''],
      ["if (stillMs <= 0) this.lose('its lease could not be renewed in time')", ''],
      ["if (untilEndMs <= 0) this.lose('its lease could not be renewed in time')", ''],
    ],
    shownBy: 29,
  },
  {
    name: 'a lease that is over when its renewal is answered is not told of',
    file: LEASE,
    edits: [["if (stillMs <= 0) this.lose('its lease could not be renewed in time')", '']],
    shownBy: 'the next renewal is due at once then, and tells it',
  },
  {
    name: 'a renewal that the end of the claim overtook is taken for a takeover',
    file: LEASE,
    edits: [['if (!this.#isSettled) this.#loseToAnother()', 'this.#loseToAnother()']],
    shownBy: 33,
  },
]
