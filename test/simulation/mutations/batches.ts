import type { Mutation } from './mutation.js'

const BATCHER = 'src/store/batcher.ts'

/** What travels together. */
export const OF_BATCHES: readonly Mutation[] = [
  {
    name: 'a list gives everybody the first result',
    file: BATCHER,
    edits: [['settle(entry, results[i] as O)', 'settle(entry, results[i * 0] as O)']],
    shownBy: 7,
  },
  {
    name: 'an item that the database refuses fails the others of its list',
    file: BATCHER,
    edits: [['if (batch.length > 1 && isOfItsData(error)) {', 'if (false) {']],
    shownBy: 941,
  },
  {
    name: 'an item that was refused in a list travels with others again',
    file: BATCHER,
    edits: [['for (const entry of batch) entry.isAlone = true', '']],
    shownBy: 308,
  },
  {
    name: 'an error of the data is taken for one of the connection',
    file: 'src/store/failures.ts',
    edits: [['^(09|21|22|23|38|39|42|44|54|P0)...$|', '^(09|21|23|38|39|42|44|54|P0)...$|']],
    shownBy: 4,
  },
  {
    name: 'a list whose lock timed out fails for all of its items',
    file: 'src/store/failures.ts',
    edits: [['|^55P03$', '']],
    shownBy:
      'the others are told that their keys are held: only a retry of their clients is wasted',
  },
  {
    name: 'a list waits for a locked row as long as a single item',
    file: 'src/store/statements.ts',
    edits: [['LIST_LOCK_TIMEOUT_MS = 200', 'LIST_LOCK_TIMEOUT_MS = 1_000']],
    shownBy: 308,
  },
  {
    name: 'a list waits for one that the database does not answer',
    file: BATCHER,
    edits: [['}, slowMs)', '}, slowMs * 1_000)']],
    shownBy: 18_017,
  },
  {
    name: 'a statement that takes too long is not canceled',
    file: 'src/store/pool.ts',
    edits: [['canceling = cancelStatement(client)', 'canceling = Promise.resolve()']],
    shownBy:
      'it waits for its row and keeps its connection: only that is wasted, and test/scenarios/stalls shows it',
  },
  {
    name: 'statements may take every connection of the pool',
    file: 'src/store/statement-limit.ts',
    edits: [['if (taken < maxConcurrent) waiting', 'if (taken < 1_000) waiting']],
    shownBy:
      'others only wait: which of them go on while a table is locked is shown by test/scenarios/stalls',
  },
]
