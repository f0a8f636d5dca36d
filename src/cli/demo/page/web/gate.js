// Calls of the gate: the readers' API as an app uses it, and the demo's own calls.

export let session = null

const json = async response => {
  try { return await response.json() } catch { return {} }
}

// The demo's own calls answer with {"error": …} if they fail.
export const demo = async path => {
  const value = await json(await fetch(`/demo/api/${path}`))
  if (value.error) throw new Error(value.error)
  return value
}

// Signs a reader in: the demo's login service issues a token, and a link to each title.
export const signIn = async name => {
  session = await demo(`sign-in/${encodeURIComponent(name)}`)
  return session
}

const call = async (method, path) => {
  const headers = { Authorization: `Bearer ${session.token}` }
  const response = await fetch(path, { method, headers })
  return { response, id: response.headers.get('x-request-id') }
}

export const pause = ms => new Promise(done => setTimeout(done, ms))

// What an app knows of a refusal: its problem document.
const refusal = async ({ response, id }) => ({ ...await json(response), id })

export const loans = async () => {
  const { response } = await call('GET', '/loans')
  return response.ok ? (await json(response)).loans : []
}

// Begins a loan. A new token is needed after a return: an old one never borrows again.
export const borrow = async isbn => {
  for (let attempt = 0; ; attempt += 1) {
    await signIn(session.name)
    const called = await call('PUT', `/loans/${isbn}`)
    if (called.response.ok) return { loan: await json(called.response), id: called.id }
    const refused = await refusal(called)
    const again = refused.type === 'loan-ended' || refused.type === 'loan-pending'
    if (!again || attempt === 5) return { refused, id: called.id }
    await pause(1000)
  }
}

export const giveBack = async isbn => {
  const called = await call('DELETE', `/loans/${isbn}`)
  return called.response.ok ? { id: called.id } : { refused: await refusal(called), id: called.id }
}

// Fetches a whole file, as an app downloads a book.
export const download = async title => {
  const called = await call('GET', title.path)
  if (called.response.ok) return { file: await called.response.blob(), id: called.id }
  return { refused: await refusal(called), id: called.id }
}

// The address of a file by a signed link: an audio element sends no Authorization.
export const linked = title => `${title.path}?token=${encodeURIComponent(session.links[title.isbn])}`

// Requests a byte of a link, to learn what the gate says of it now.
export const tryLink = async link => {
  const response = await fetch(link, { headers: { Range: 'bytes=1-1' } })
  const id = response.headers.get('x-request-id')
  return response.ok ? { id } : { refused: await refusal({ response, id }), id }
}
