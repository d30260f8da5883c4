import t from 'tap'
import { providerContract } from '../../contracts/provider.js'
import { cases } from './cases.js'

for (const of of cases) t.test(of.name, (t) => providerContract(t, of))
