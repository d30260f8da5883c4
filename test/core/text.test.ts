import t from 'tap'
import { isStorable, isStorableText } from '../../src/core/text.js'

t.test('a storable name is non-empty, well-formed text of at most 255 characters', async (t) => {
  for (const name of ['a', 'é', '😀', 'order 7', '__proto__', 'x'.repeat(255)]) {
    t.ok(isStorableText(name), `${name.slice(0, 12)} is accepted`)
  }
  for (const name of ['', 'a\0b', '\ud800', 'a\udc00b', 'x'.repeat(256)]) {
    t.notOk(isStorableText(name), `${JSON.stringify(name).slice(0, 12)} is refused`)
  }
  for (const value of [undefined, null, 7, {}, ['a'], Symbol('a')]) {
    t.notOk(isStorableText(value), `${typeof value} is refused`)
  }
})

t.test('the limit can be another one, and text of any length can be checked', async (t) => {
  t.ok(isStorableText('x'.repeat(300), 300))
  t.notOk(isStorableText('x'.repeat(301), 300))
  t.ok(isStorable(''))
  t.ok(isStorable('x'.repeat(10_000)))
  t.notOk(isStorable('\0'))
  t.notOk(isStorable('\udfff'))
})
