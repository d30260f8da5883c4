/** Calls `stop`, once, when this process is asked to end. */
export function whenToStop(stop: () => void): void {
  let isStopping = false
  const stopOnce = () => {
    // Ctrl+C arrives twice: from the terminal, and once more from npm.
    if (isStopping) return
    isStopping = true
    stop()
  }
  process.on('SIGINT', stopOnce)
  process.on('SIGTERM', stopOnce)

  // A SIGTERM for `npm start` reaches the shell between npm and us, and many shells end without
  // passing it on. Then the parent changes, and the server would stay on its port unseen.
  if (process.env.npm_lifecycle_event === undefined) return
  const parent = process.ppid
  setInterval(() => process.ppid !== parent && stopOnce(), 250).unref()
}
