// What every dispatch promises, run against each of them.
import type { Test } from 'tap'
import type { Dispatch, JobName, Work } from '../../src/dispatch/dispatch.js'
import type { Happening } from '../../src/events.js'
import { latch } from '../fixtures/app.js'

export interface DispatchOptions {
  concurrency: number
  /** How often it looks at what is due, in milliseconds. */
  lookEvery: number
  /** Those with the same name share their events. */
  name: string
}

/** Makes the dispatch of one more process that shares the events of this test. */
export type CreateDispatch = (options: DispatchOptions) => Dispatch

/** Looks at what is due once, and then no more while a test runs. */
const NEVER = 3_600_000
const TIMEOUT_MS = 60_000

interface ShelfEvent {
  fence: number
  state: 'waiting' | 'running' | 'done'
  /** By `performance.now()`. */
  dueAt: number
}

interface RunOfEvent {
  readonly id: string
  readonly process: string
  readonly at: number
}

/** An inbox without a database: claims as the real one does, for any number of processes. */
export class Shelf {
  readonly events = new Map<string, ShelfEvent>()
  readonly runs: RunOfEvent[] = []
  readonly reported: Happening[] = []
  /** How often it was asked what is due. */
  looks = 0
  /** What an event does while it runs. */
  handler: (id: string) => Promise<void> | void = () => {}
  /** So many of the next questions fail. */
  failures = 0
  /** What may not run now, though nobody runs it. */
  readonly held = new Set<string>()
  readonly #waiting = new Set<() => void>()

  put(id: string, inMs = 0): void {
    this.events.set(id, { fence: 0, state: 'waiting', dueAt: performance.now() + inMs })
  }

  get running(): number {
    return [...this.events.values()].filter(({ state }) => state === 'running').length
  }

  get done(): number {
    return [...this.events.values()].filter(({ state }) => state === 'done').length
  }

  runsOf(id: string): RunOfEvent[] {
    return this.runs.filter((run) => run.id === id)
  }

  report = (happening: Happening): void => {
    this.reported.push(happening)
    this.#changed()
  }

  /** Until this is so; it is looked at whenever something has changed. */
  until(isSo: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(look)
        reject(new Error(`not in time: ${isSo}; ${this.runs.length} runs, ${this.done} done`))
      }, TIMEOUT_MS)
      const look = () => {
        if (!isSo()) return
        clearTimeout(timer)
        this.#waiting.delete(look)
        resolve()
      }
      this.#waiting.add(look)
      look()
    })
  }

  work(process: string): Work {
    return {
      report: this.report,
      startDue: async (limit) => {
        await this.#ask()
        return this.#due(limit).map(({ id }) => this.#run(id, process))
      },
      listDue: async (limit) => {
        await this.#ask()
        return this.#due(limit)
      },
      run: async ({ id, fence }) => {
        await this.#answer()
        const event = this.events.get(id)
        if (event?.fence !== fence || event.state === 'done') return 'over'
        if (event.state === 'running' || this.held.has(id)) return 'held'
        await this.#run(id, process)
        return 'ran'
      },
    }
  }

  #due(limit: number): JobName[] {
    const now = performance.now()
    return [...this.events]
      .filter(([id, { state, dueAt }]) => state === 'waiting' && dueAt <= now && !this.held.has(id))
      .slice(0, limit)
      .map(([id, { fence }]) => ({ id, fence }))
  }

  async #ask(): Promise<void> {
    this.looks += 1
    this.#changed()
    await this.#answer()
  }

  /** An answer takes its time, and may not come. */
  async #answer(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve))
    if (this.failures === 0) return
    this.failures -= 1
    throw Object.assign(new Error('the store is down'), { code: 'ECONNRESET' })
  }

  async #run(id: string, process: string): Promise<void> {
    const event = this.events.get(id) as ShelfEvent
    event.fence += 1
    event.state = 'running'
    this.runs.push({ id, process, at: performance.now() })
    this.#changed()
    await this.handler(id)
    event.state = 'done'
    this.#changed()
  }

  #changed(): void {
    for (const look of [...this.#waiting]) look()
  }
}

export async function dispatchContract(t: Test, create: CreateDispatch): Promise<void> {
  /** The dispatch of a process; ended with the test. */
  function process(t: Test, options: Partial<DispatchOptions> = {}): Dispatch {
    const name = t.name.replaceAll(/\W+/g, '-')
    const dispatch = create({ concurrency: 10, lookEvery: NEVER, name, ...options })
    t.teardown(async () => {
      await dispatch.stop()
      await dispatch.close()
    })
    return dispatch
  }

  /** One that has looked, and found nothing. */
  async function idle(t: Test, shelf: Shelf, options?: Partial<DispatchOptions>, name = 'a') {
    const dispatch = process(t, options)
    const before = shelf.looks
    dispatch.start(shelf.work(name))
    await shelf.until(() => shelf.looks > before)
    return dispatch
  }

  await t.test('an event that is enqueued is run, once', async (t) => {
    const shelf = new Shelf()
    const dispatch = await idle(t, shelf)
    shelf.put('e')
    for (let n = 0; n < 3; n += 1) dispatch.enqueue({ id: 'e', fence: 0, inMs: 0 }, shelf.report)
    await shelf.until(() => shelf.done === 1)
    shelf.put('after')
    dispatch.enqueue({ id: 'after', fence: 0, inMs: 0 }, shelf.report)
    await shelf.until(() => shelf.done === 2)
    t.equal(shelf.runsOf('e').length, 1)
    t.strictSame(shelf.reported, [])
  })

  await t.test('an event that is to wait runs in its time, and not before', async (t) => {
    const shelf = new Shelf()
    const dispatch = await idle(t, shelf)
    // The second is not lost behind the first, nor an earlier one behind a later one.
    for (const inMs of [300, 600, 450]) {
      shelf.put(`${inMs}`, inMs)
      dispatch.enqueue({ id: `${inMs}`, fence: 0, inMs }, shelf.report)
    }
    await shelf.until(() => shelf.done === 3)
    for (const { id, at } of shelf.runs) {
      const late = at - (shelf.events.get(id) as ShelfEvent).dueAt
      // BullMQ reads another clock, which may be ahead by parts of a millisecond.
      t.ok(late > -5, `${id} ran ${late} ms after its time`)
      t.ok(late < 1_000, `${id} ran ${late} ms after its time`)
    }
  })

  await t.test(
    'an event that became due early is run, and not again in its first time',
    async (t) => {
      const shelf = new Shelf()
      const dispatch = await idle(t, shelf)
      shelf.put('e', 400)
      dispatch.enqueue({ id: 'e', fence: 0, inMs: 400 }, shelf.report)
      ;(shelf.events.get('e') as ShelfEvent).dueAt = 0
      const calledAt = performance.now()
      dispatch.lookAgain()
      await shelf.until(() => shelf.done === 1)
      t.ok((shelf.runs[0] as RunOfEvent).at - calledAt < 390, 'at once')
      // It is put back: its run of then must leave it alone.
      Object.assign(shelf.events.get('e') as ShelfEvent, { state: 'waiting', dueAt: Infinity })
      shelf.put('later', 450)
      dispatch.enqueue({ id: 'later', fence: 0, inMs: 450 }, shelf.report)
      await shelf.until(() => shelf.runsOf('later').length === 1)
      t.equal(shelf.runsOf('e').length, 1)
    },
  )

  await t.test('what was left behind is found when a process starts', async (t) => {
    const shelf = new Shelf()
    shelf.put('e')
    process(t).start(shelf.work('a'))
    await shelf.until(() => shelf.done === 1)
  })

  await t.test('what nobody enqueued is found by looking regularly', async (t) => {
    const shelf = new Shelf()
    await idle(t, shelf, { lookEvery: 50 })
    shelf.put('e')
    await shelf.until(() => shelf.done === 1)
    shelf.put('f')
    await shelf.until(() => shelf.done === 2)
  })

  await t.test('many that were left behind are all run', async (t) => {
    const shelf = new Shelf()
    for (let n = 0; n < 1_000; n += 1) shelf.put(`${n}`)
    process(t).start(shelf.work('a'))
    await shelf.until(() => shelf.done === 1_000)
    t.equal(shelf.runs.length, 1_000)
  })

  await t.test('lookAgain: what became due is found at once', async (t) => {
    const shelf = new Shelf()
    const dispatch = await idle(t, shelf)
    shelf.put('e')
    dispatch.lookAgain()
    await shelf.until(() => shelf.done === 1)
  })

  await t.test('what was held when its turn came is run once it may', async (t) => {
    const shelf = new Shelf()
    const dispatch = await idle(t, shelf)
    shelf.put('e')
    shelf.held.add('e')
    dispatch.enqueue({ id: 'e', fence: 0, inMs: 0 }, shelf.report)
    shelf.put('other')
    dispatch.enqueue({ id: 'other', fence: 0, inMs: 0 }, shelf.report)
    await shelf.until(() => shelf.done === 1)
    shelf.held.delete('e')
    dispatch.lookAgain()
    await shelf.until(() => shelf.done === 2)
  })

  await t.test('several processes share what there is, and run nothing twice', async (t) => {
    const shelf = new Shelf()
    const names = ['a', 'b', 'c']
    const dispatches = await Promise.all(
      names.map((name) => idle(t, shelf, { lookEvery: 20 }, name)),
    )
    shelf.handler = () => new Promise((resolve) => setTimeout(resolve, 1))
    for (let n = 0; n < 300; n += 1) {
      shelf.put(`${n}`)
      dispatches[n % 3]?.enqueue({ id: `${n}`, fence: 0, inMs: 0 }, shelf.report)
    }
    await shelf.until(() => shelf.done === 300)
    t.equal(shelf.runs.length, 300)
    t.equal(new Set(shelf.runs.map(({ id }) => id)).size, 300)
    t.ok(new Set(shelf.runs.map(({ process }) => process)).size > 1)
  })

  await t.test(
    'no more events run at once than was said, and long ones fill all places',
    async (t) => {
      const shelf = new Shelf()
      const go = latch()
      let most = 0
      shelf.handler = async (id) => {
        most = Math.max(most, shelf.running)
        if (id.startsWith('long')) await go.opened
      }
      const dispatch = await idle(t, shelf, { concurrency: 4 })
      const enqueue = (id: string) => {
        shelf.put(id)
        dispatch.enqueue({ id, fence: 0, inMs: 0 }, shelf.report)
      }
      for (const id of ['long 1', 'long 2', 'long 3']) enqueue(id)
      await shelf.until(() => shelf.running === 3)
      // Through the one place that is left.
      for (let n = 0; n < 20; n += 1) enqueue(`short ${n}`)
      await shelf.until(() => shelf.done === 20)
      enqueue('long 4')
      await shelf.until(() => shelf.running === 4)
      for (let n = 0; n < 10; n += 1) enqueue(`long, too ${n}`)
      dispatch.lookAgain()
      go.open()
      await shelf.until(() => shelf.done === 34)
      t.equal(most, 4)
    },
  )

  await t.test('what is enqueued before the start is run after it', async (t) => {
    const shelf = new Shelf()
    const dispatch = process(t)
    shelf.put('e')
    dispatch.enqueue({ id: 'e', fence: 0, inMs: 0 }, shelf.report)
    dispatch.lookAgain()
    dispatch.start(shelf.work('a'))
    dispatch.start(shelf.work('b'))
    await shelf.until(() => shelf.done === 1)
    t.strictSame(
      shelf.runs.map(({ process }) => process),
      ['a'],
      'started once',
    )
  })

  await t.test('a stopped dispatch begins nothing more; another process does', async (t) => {
    const shelf = new Shelf()
    const go = latch()
    shelf.handler = (id) => (id === 'running' ? go.opened : undefined)
    const dispatch = await idle(t, shelf, { lookEvery: 20 })
    shelf.put('running')
    dispatch.enqueue({ id: 'running', fence: 0, inMs: 0 }, shelf.report)
    await shelf.until(() => shelf.running === 1)
    await dispatch.stop()
    await dispatch.stop()
    const looks = shelf.looks
    // Handed back by a closing inbox, for example.
    shelf.put('e')
    dispatch.enqueue({ id: 'e', fence: 0, inMs: 0 }, shelf.report)
    dispatch.lookAgain()
    await idle(t, shelf, { lookEvery: 20 }, 'b')
    await shelf.until(() => shelf.done === 1)
    t.match(shelf.runsOf('e'), [{ process: 'b' }])
    t.ok(shelf.looks > looks)
    t.equal(shelf.running, 1, 'what ran goes on')
    go.open()
    await shelf.until(() => shelf.done === 2)
    await dispatch.close()
    await dispatch.close()
  })

  await t.test('a run that goes on keeps nobody from closing', async (t) => {
    const shelf = new Shelf()
    const go = latch()
    shelf.handler = () => go.opened
    const dispatch = await idle(t, shelf)
    shelf.put('e')
    dispatch.enqueue({ id: 'e', fence: 0, inMs: 0 }, shelf.report)
    await shelf.until(() => shelf.running === 1)
    await dispatch.stop()
    await dispatch.close()
    t.equal(shelf.running, 1)
    go.open()
  })

  await t.test('one that never started is closed, too', async (t) => {
    const dispatch = process(t)
    await dispatch.stop()
    await dispatch.close()
    t.pass()
  })

  await t.test('a store that fails is told of, and asked again', async (t) => {
    const shelf = new Shelf()
    const dispatch = await idle(t, shelf, { lookEvery: 30 })
    shelf.failures = 3
    shelf.put('e')
    dispatch.enqueue({ id: 'e', fence: 0, inMs: 0 }, shelf.report)
    await shelf.until(() => shelf.done === 1)
    t.match(shelf.reported[0], { kind: 'dispatch_failed', failure: { code: 'ECONNRESET' } })
    t.equal(shelf.reported.length, 3)
    t.equal(shelf.runs.length, 1)
  })
}
