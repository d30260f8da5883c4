/** What a Prisma configuration file says about the place of the schema. */
export type ConfiguredSchema =
  | { readonly kind: 'path'; readonly path: string }
  | { readonly kind: 'unset' }
  /** It is computed, and the file would have to be run. */
  | { readonly kind: 'unreadable' }

const STRINGS = /'([^'\n]*)'|"([^"\n]*)"|`([^`$]*)`/g
const LITERAL = String.raw`(?:'[^'\n]*'|"[^"\n]*"|\x60[^\x60$]*\x60)`
// schema: 'prisma/schema.prisma', and schema: path.join('prisma', 'schema.prisma').
const SCHEMA = new RegExp(
  String.raw`\bschema['"]?\s*:\s*(?:(${LITERAL})|(?:\w+\.)?(?:join|resolve)\(\s*((?:${LITERAL}\s*,?\s*)+)\))\s*[,}\n\r;]`,
)

/** Reads `schema` from the source of a `prisma.config.ts` or `.js`, which is not run. */
export function schemaInConfig(source: string): ConfiguredSchema {
  const code = source.replace(
    /('[^'\n]*'|"[^"\n]*"|`[^`]*`)|\/\/[^\n\r]*|\/\*[\s\S]*?\*\//g,
    (_, string?: string) => string ?? ' ',
  )
  const [, literal, parts] = SCHEMA.exec(code) ?? []
  const value = literal ?? parts
  if (value !== undefined) {
    const segments = [...value.matchAll(STRINGS)].map(([, a, b, c]) => a ?? b ?? c ?? '')
    return { kind: 'path', path: segments.join('/') }
  }
  return /\bschema['"]?\s*[:,}]/.test(code) ? { kind: 'unreadable' } : { kind: 'unset' }
}
