import type { Mutation } from './mutation.js'

const STEPS = 'src/claims/steps.ts'
const HELD = 'src/store/held-record.ts'
const HELD_WHERE = "where: { tenantId, key, operationId, attempt, status: 'in_progress' },"

/** What is done once over all attempts. */
export const OF_STEPS: readonly Mutation[] = [
  {
    name: 'results are stored without checking who has the claim',
    file: HELD,
    edits: [[HELD_WHERE, "where: { tenantId, key, status: 'in_progress' },"]],
    shownBy: 330,
  },
  {
    name: 'results are stored by the same attempt at another operation',
    file: HELD,
    edits: [[HELD_WHERE, "where: { tenantId, key, attempt, status: 'in_progress' },"]],
    shownBy: 330,
  },
  {
    name: 'results are stored by another attempt at the same operation',
    file: HELD,
    edits: [[HELD_WHERE, "where: { tenantId, key, operationId, status: 'in_progress' },"]],
    shownBy: 417,
  },
  {
    name: 'results are stored when the claim has ended',
    file: HELD,
    edits: [[HELD_WHERE, 'where: { tenantId, key, operationId, attempt },']],
    shownBy: 1149,
  },
  {
    name: 'a step that was not stored is given to the handler',
    file: STEPS,
    edits: [['if (!isKept) throw new LeaseLost()', 'void isKept']],
    shownBy: 143,
  },
  {
    name: 'a transaction commits without its guard',
    file: STEPS,
    edits: [['if (!(await keep(tx, results))) throw new LeaseLost()', 'await keep(tx, results)']],
    shownBy: 269,
  },
  {
    name: 'a transaction commits without its result',
    file: STEPS,
    edits: [['if (!(await keep(tx, results))) throw new LeaseLost()', '']],
    shownBy: 1,
  },
  {
    name: 'a step that is done is run again',
    file: STEPS,
    edits: [['if (Object.hasOwn(this.#results, path)) return', 'if (path === undefined) return']],
    shownBy: 4,
  },
  {
    name: 'a result is stored without the earlier ones',
    file: STEPS,
    edits: [['const results = { ...this.#results, [', 'const results = { [']],
    shownBy: 1,
  },
  {
    name: 'results side by side are written side by side',
    file: STEPS,
    edits: [
      ['const turn = this.#writing.then(() => {', 'const turn = Promise.resolve().then(() => {'],
    ],
    shownBy: 16,
  },
  {
    name: 'after a write whose outcome is unknown, what waited is written',
    file: STEPS,
    edits: [
      [
        'if (this.#unknownWrite) throw this.#unknownWrite.error\n      return write()',
        'return write()',
      ],
    ],
    shownBy: 1015,
  },
  {
    name: 'after a write whose outcome is unknown, something else is begun',
    file: STEPS,
    edits: [
      [
        'if (this.#unknownWrite) throw this.#unknownWrite.error\n    // The record',
        '// The record',
      ],
    ],
    shownBy:
      'what it would write is refused when its turn comes, by the guard above: only work is saved',
  },
  {
    name: 'a step whose write failed was not stored',
    file: STEPS,
    edits: [['this.#isSent = true\n          return this.#keep(', 'return this.#keep(']],
    shownBy: 174,
  },
  {
    name: 'a transaction whose commit failed was rolled back',
    file: STEPS,
    edits: [['this.#isSent = true\n        return value', 'return value']],
    shownBy: 3863,
  },
  {
    name: 'a response is stored before its work has ended',
    file: STEPS,
    edits: [['if (this.#underWay.size > 0) return', 'if (this.#underWay.size < 0) return']],
    shownBy: 34,
  },
  {
    name: 'work begins after the response',
    file: STEPS,
    edits: [
      [
        '    if (this.#Refusal !== undefined) throw new this.#Refusal()\n    // Run again',
        '    // Run again',
      ],
      ['    if (this.#Refusal !== undefined) throw new this.#Refusal()\n  }', '  }'],
    ],
    shownBy: 'its write matches nothing once the claim has ended: the mistake is only told sooner',
  },
  {
    name: 'work begins though its lease has run out',
    file: STEPS,
    edits: [
      [
        'if (isHeld !== true) await this.#demandHeld(isHeld)',
        'if (isHeld !== true) Promise.resolve(isHeld).catch(() => {})',
      ],
    ],
    shownBy:
      'its write matches nothing once another attempt has begun; what it does elsewhere carries its key',
  },
]
