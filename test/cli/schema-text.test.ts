import { test } from 'tap'
import { readBlocks } from '../../src/cli/schema-text.js'

function namesIn(text: string): string[] {
  const reading = readBlocks(text)
  if (reading.kind !== 'read') throw new Error(`unclosed: ${reading.what}`)
  return reading.blocks.map(({ kind, name }) => `${kind} ${name}`)
}

test('finds blocks of every kind', async (t) => {
  const text =
    'datasource db {\n}\nmodel A {\n id Int @id\n}\nenum B {\n X\n}\n\ttype C {\n}\nview D{\n}'
  t.same(namesIn(text), ['datasource db', 'model A', 'enum B', 'type C', 'view D'])
})

test('finds no block in a comment or a string', async (t) => {
  t.same(namesIn('// model A {\n/// model B {\n/* model C {\n} */\nmodel D {\n}'), ['model D'])
  t.same(namesIn('model D {\n  a String @default("model E {")\n  b String @default("}")\n}'), [
    'model D',
  ])
  t.same(namesIn('model D {\n  a String @default("\\"} model E {")\n} // model F {'), ['model D'])
})

test('takes no comment for a string and no string for a comment', async (t) => {
  t.same(namesIn('// it"s\nmodel A {\n}\n// "\nmodel B {\n}'), ['model A', 'model B'])
  t.same(namesIn('model A {\n  a String @default("/*")\n}\nmodel B {\n}'), ['model A', 'model B'])
  t.same(namesIn('model A {\n  a String @default("//") // }\n}\n'), ['model A'])
})

test('keeps the lines of a block without its comments', async (t) => {
  const reading = readBlocks(
    'model A {\r\n  a Int // one\r\n  /* b Int\r\n  */\r\n  c String @default("//")\r\n}',
  )
  t.equal(reading.kind, 'read')
  if (reading.kind !== 'read') return
  const lines = reading.blocks[0]?.lines.map((line) => line.trim()).filter((line) => line !== '')
  t.same(lines, ['a Int', 'c String @default("//")'])
})

test('says where a block or a comment starts that never ends', async (t) => {
  t.match(readBlocks('model A {\n}\nmodel B {\n'), { kind: 'unclosed', what: 'a block', line: 3 })
  t.match(readBlocks('\n/* model A {\n}\n'), { kind: 'unclosed', what: 'a comment', line: 2 })
  t.match(readBlocks('/*/'), { kind: 'unclosed', what: 'a comment', line: 1 })
})
