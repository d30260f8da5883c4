import type { Provider } from '../store/client.js'
import type { Block } from './schema-text.js'

export type Datasource =
  | {
      readonly kind: 'supported'
      readonly provider: Provider
      /** The database schemas that models must choose from; empty when they need not choose. */
      readonly schemas: readonly string[]
    }
  | { readonly kind: 'unsupported'; readonly provider: string | undefined }

const PROVIDERS: ReadonlyMap<string, Provider> = new Map([
  ['postgresql', 'postgresql'],
  ['postgres', 'postgresql'],
  ['mysql', 'mysql'],
  ['sqlite', 'sqlite'],
])

export function readDatasource({ lines }: Block): Datasource {
  const named = settingOf(lines, 'provider')?.match(/^"([^"]*)"/)?.[1]
  const provider = named === undefined ? undefined : PROVIDERS.get(named)
  if (provider === undefined) return { kind: 'unsupported', provider: named }
  const schemas = settingOf(lines, 'schemas')?.match(/"[^"]*"/g) ?? []
  return { kind: 'supported', provider, schemas: schemas.map((quoted) => quoted.slice(1, -1)) }
}

function settingOf(lines: readonly string[], name: string): string | undefined {
  for (const line of lines) {
    const [, key, value] = /^\s*(\w+)\s*=\s*(.*)/.exec(line) ?? []
    if (key === name) return value
  }
  return undefined
}
