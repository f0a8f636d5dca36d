// The pane beside the app: what the gate, Bokbasen's stand-in and the storage have, live.

import { $, fill, make, show } from './dom.js'
import { demo, session } from './gate.js'
import { size, time, word } from './words.js'

const STEPS = ['path', 'authority', 'catalog', 'reader', 'gate', 'origin', 'delivery']

// The page polls often after an action, then seldom.
const INTERVAL = 1000
const SELDOM = 5000
const OFTEN = 20

let shown = null // the reader and the title
let latest = null // what the last poll brought
let last = null // the explanation of the last request that the app made
let wantsLast = false
let timer = null
let polls = 0 // since the last action

const isRefused = explanation => explanation.status >= 400

const verdict = explanation => [explanation.status, explanation.reason ?? explanation.type]
  .filter(Boolean).join(' ')

const step = (name, explanation) => {
  const found = explanation.steps.find(one => one.step === name)
  if (!found) {
    return make('li', { class: 'skipped' }, make('span', { class: 'mark' }),
      make('strong', {}, word(`step_${name}`)), ' ', make('em', {}, word('notReached')))
  }
  const refused = isRefused(explanation) && explanation.steps.at(-1) === found
  return make('li', { class: refused ? 'refused' : 'passed' },
    make('span', { class: 'mark' }), make('strong', {}, word(`step_${name}`)), ' ',
    make('em', {}, found.decision), make('p', {}, found.why))
}

const renderPath = () => {
  const explanation = wantsLast && last ? last : latest?.explanation
  show($('path'), Boolean(explanation))
  show($('path-empty'), !explanation)
  show($('which'), Boolean(last))
  $('now').setAttribute('aria-pressed', String(!wantsLast))
  $('last').setAttribute('aria-pressed', String(wantsLast))
  if (!explanation) return
  const request = explanation.request
  $('request').textContent = request ? `${request.method} ${request.path}` : `GET ${shown.title.path}`
  $('verdict').textContent = verdict(explanation)
  $('verdict').className = `verdict ${isRefused(explanation) ? 'refused' : 'passed'}`
  $('request-hint').textContent = wantsLast ? word('wasMade')
    : word('ifNow') + (explanation.assumes ? ` (${explanation.status}: ${word('assumes')})` : '')
  fill($('steps'), ...STEPS.map(name => step(name, explanation)))
  fill($('advice'), ...(isRefused(explanation) ? withCode(explanation.advice) : []))
}

// Text between backticks is code.
const withCode = text => text.split('`')
  .map((part, number) => number % 2 ? make('code', {}, part) : part)

const bar = (file, { bytes, ranges }) => {
  const track = make('div', { class: 'track' })
  for (const [first, end] of ranges) {
    const part = make('span')
    part.style.left = `${100 * first / shown.title.bytes}%`
    part.style.width = `${Math.max(0.5, 100 * (end - first + 1) / shown.title.bytes)}%`
    track.append(part)
  }
  return make('div', { class: 'coverage' },
    make('p', {}, `${word('delivered')}: ${size(bytes)}`), track)
}

const renderLife = () => {
  const loan = latest?.loan
  const steps = (loan?.history ?? []).map(one => make('li', { class: one.to },
    make('time', { dateTime: one.at }, time(one.at)),
    make('strong', {}, word(`state_${one.to}`)),
    make('span', { class: 'detail' }, [one.cause, one.detail].filter(Boolean).join(': '))))
  fill($('life'), ...steps)
  show($('life-empty'), steps.length === 0)
  fill($('delivered'), ...Object.entries(loan?.delivered ?? {}).map(entry => bar(...entry)))
  const streams = latest?.streams
  show($('streams'), Number.isInteger(streams) && Boolean(shown))
  $('streams').textContent = `${word('streams')} ${streams}`
}

const renderBooks = titles => {
  const loans = latest?.books ?? []
  show($('books'), loans.length > 0)
  show($('books-empty'), loans.length === 0)
  const head = ['title', 'status', 'begun', 'ended'].map(name => make('th', { scope: 'col' }, word(name)))
  const cell = (name, ...children) => make('td', { 'data-label': word(name) }, ...children)
  const rows = loans.map(loan => make('tr', {},
    cell('title', titles.find(title => title.isbn === loan.isbn)?.name ?? loan.isbn),
    cell('status', make('span', { class: `state ${loan.status.toLowerCase()}` }, loan.status)),
    cell('begun', time(loan.made)),
    cell('ended', loan.endReceived ? time(loan.endReceived) : '–')))
  fill($('books'), make('table', {}, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...rows)))
}

const renderStorage = () => {
  const requests = latest?.storage ?? []
  show($('storage-empty'), requests.length === 0)
  fill($('storage'), ...requests.map(one => make('li', {}, make('time', { dateTime: one.at }, time(one.at)),
    make('code', {}, `${one.method} ${one.range ?? (one.method === 'GET' ? word('whole') : '')}`))))
}

export const render = titles => {
  renderPath()
  renderLife()
  renderBooks(titles)
  renderStorage()
}

const poll = async titles => {
  clearTimeout(timer)
  const asked = shown
  if (asked && session && !document.hidden) {
    try {
      const value = await demo(`live/${asked.reader}/${asked.title.isbn}/${session.issued}`)
      if (asked === shown) latest = value
      show($('pulse'), true)
    } catch {
      show($('pulse'), false)
    }
    if (asked === shown) render(titles)
  }
  clearTimeout(timer)
  polls += 1
  timer = setTimeout(() => poll(titles), polls < OFTEN ? INTERVAL : SELDOM)
}

// Polls at once, because something was done.
export const refresh = titles => {
  polls = 0
  return poll(titles)
}

// Shows another reader or title.
export const watch = (reader, title, titles) => {
  if (shown?.reader !== reader || shown?.title !== title) {
    shown = title ? { reader, title } : null
    latest = null
    last = null
    wantsLast = false
    render(titles)
  }
  return refresh(titles)
}

// Shows the path of a request that the app made, at once if it was refused.
export const watchRequest = async (id, refused, titles) => {
  if (!id) return
  try {
    last = await demo(`request/${id}`)
    wantsLast = refused
  } catch {
    last = null
    wantsLast = false
  }
  render(titles)
}

export const choose = (which, titles) => {
  wantsLast = which === 'last'
  render(titles)
}
