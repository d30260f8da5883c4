export type { BlockedReason, Flow, Move } from './core/flow.js'
export {
  type AdvanceResult,
  createStatuses,
  type Statuses,
  WriteConflict,
} from './status/advance.js'
export { defineFlow, type FlowOptions } from './status/define-flow.js'
export type {
  AdvanceOptions,
  Override,
  StatusDelegate,
  StatusFields,
} from './status/options.js'
