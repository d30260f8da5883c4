// Prisma's conditions, changes and orders, as far as the library uses them. What is not known here is an
// error, and never a match.

export type Where = Readonly<Record<string, unknown>>
export type Data = Readonly<Record<string, unknown>>
type Order = Readonly<Record<string, 'asc' | 'desc'>>
export type OrderBy = Order | readonly Order[]

export function matches(row: object, where: Where): boolean {
  return Object.entries(where).every(([field, condition]) => {
    // As Prisma has it: what is undefined was not said.
    if (condition === undefined) return true
    if (field === 'OR') return (condition as Where[]).some((one) => matches(row, one))
    if (field === 'AND') return (condition as Where[]).every((one) => matches(row, one))
    if (!(field in row)) throw new TypeError(`no field ${field}`)
    const value: unknown = Reflect.get(row, field)
    if (condition instanceof Date) return Number(value) === Number(condition)
    if (typeof condition !== 'object' || condition === null) return value === condition
    return Object.entries(condition).every(([name, other]) => compares(value, name, other))
  })
}

function compares(value: unknown, name: string, other: unknown): boolean {
  // Nothing compares with NULL, but that it is one.
  if (value === null) return false
  switch (name) {
    case 'lte':
      return (value as never) <= (other as never)
    case 'lt':
      return (value as never) < (other as never)
    case 'gt':
      return (value as never) > (other as never)
    case 'in':
      return (other as unknown[]).includes(value)
    case 'notIn':
      return !(other as unknown[]).includes(value)
    case 'not':
      return value !== other
    default:
      throw new TypeError(`no condition ${name}`)
  }
}

export function written<R extends object>(row: R, data: Data): R {
  const changes = Object.entries(data).map(([field, value]) => {
    if (!(field in row)) throw new TypeError(`no field ${field}`)
    const { increment, decrement } = Object(value) as { increment?: number; decrement?: number }
    const by = increment ?? (decrement === undefined ? undefined : -decrement)
    return [field, by === undefined ? value : (Reflect.get(row, field) as number) + by]
  })
  return { ...row, ...Object.fromEntries(changes) }
}

export function inOrder<R extends object>(rows: R[], orderBy: OrderBy = []): R[] {
  const orders = (Array.isArray(orderBy) ? orderBy : [orderBy]) as readonly Order[]
  const fields = orders.flatMap((order) => Object.entries(order))
  if (fields.length === 0) return rows
  return rows.sort((a, b) => {
    for (const [field, direction] of fields) {
      const [x, y] = [Reflect.get(a, field), Reflect.get(b, field)] as [never, never]
      // Dates compare by their times, and are never the same object.
      if (x < y || x > y) return x < y === (direction === 'asc') ? -1 : 1
    }
    return 0
  })
}
