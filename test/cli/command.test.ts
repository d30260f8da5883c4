import { test } from 'tap'
import { HELP, readCommand } from '../../src/cli/command.js'

test('reads init, its path and its mode', async (t) => {
  t.same(readCommand(['init']), { kind: 'init', path: undefined, mode: 'write' })
  t.same(readCommand(['init', 'db']), { kind: 'init', path: 'db', mode: 'write' })
  t.same(readCommand(['init', '--dry-run']), { kind: 'init', path: undefined, mode: 'dry-run' })
  t.same(readCommand(['--check', 'init', 'db']), { kind: 'init', path: 'db', mode: 'check' })
})

test('reads help and version, alone or with a command', async (t) => {
  for (const words of [['--help'], ['-h'], ['help'], ['help', 'init'], ['init', '--help']]) {
    t.same(readCommand(words), { kind: 'help' })
  }
  t.same(readCommand(['--version']), { kind: 'version' })
})

test('help fits into 80 columns', async (t) => {
  t.strictSame(
    HELP.split('\n').filter((line) => line.length > 80),
    [],
  )
})

test('names what it cannot use', async (t) => {
  const problems: [words: string[], problem: RegExp][] = [
    [[], /no command/],
    [['migrate'], /no command migrate/],
    [['init', '--force'], /no option --force/],
    [['init', '-x'], /no option -x/],
    [['init', '--check=yes'], /--check takes no value/],
    [['init', 'a', 'b'], /b is too much/],
    [['init', ''], /path is empty/],
    [['init', '--check', '--dry-run'], /do not go together/],
  ]
  for (const [words, problem] of problems) {
    t.match(readCommand(words), { kind: 'misuse', problem }, words.join(' '))
  }
})
