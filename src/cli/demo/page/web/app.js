// The reading app: sign in, borrow, read or listen, and return.

import * as behind from './behind.js'
import { closeBook, openBook } from './book.js'
import { $, fill, make, show } from './dom.js'
import * as gate from './gate.js'
import { closeAudio, nowPlaying, openAudio } from './listen.js'
import { currentLanguage, day, setLanguage, size, translate, word } from './words.js'

// How soon after a return the app asks what its link gets now.
const LINK_CHECK = 1200

let readers = []
let titles = []
let reader = null
let selected = null
let busy = null // the title and the word of what is under way
const loans = new Map() // by ISBN
const refusals = new Map()

const notice = (kind, head, ...lines) => {
  fill($('notice'), make('div', { class: `notice ${kind}` }, make('h4', {}, head),
    ...lines.filter(Boolean).map(line => make('p', {}, line))))
  show($('room-empty'), false)
}

const clearNotice = () => {
  $('notice').replaceChildren()
  const open = !$('read').hidden || !$('listen').hidden
  show($('room-empty'), !open)
}

const refusedNotice = (head, refused) => notice('refused', `${head}: ${refused.status} ${refused.type}`,
  refused.reason ? `${refused.reason}. ${refused.detail}` : refused.detail,
  refused.id ? `${word('requestId')} ${refused.id}` : null)

const isLive = isbn => loans.get(isbn)?.state === 'accepted'

const stateOf = title => {
  if (busy?.isbn === title.isbn) return ['waiting', word(busy.word)]
  const loan = loans.get(title.isbn)
  if (isLive(title.isbn)) return ['passed', `${word('until')} ${day(loan.due)}`]
  if (refusals.has(title.isbn)) return ['refused', `${word('refused')}: ${refusals.get(title.isbn)}`]
  if (loan?.ended) return ['over', word('over')]
  return ['free', word('free')]
}

const button = (title, name, kind, act) => make('button', {
  type: 'button', class: kind, disabled: Boolean(busy), 'aria-label': `${word(name)}: ${title.name}`,
  'data-act': name, onclick: () => act(title),
}, word(name))

const buttons = title => {
  if (!isLive(title.isbn)) {
    return [button(title, loans.get(title.isbn)?.ended ? 'again' : 'borrow', 'primary', borrow)]
  }
  const use = title.kind === 'ebook' ? button(title, 'read', 'primary', read)
    : button(title, 'listen', 'primary', listen)
  return [use, button(title, 'giveBack', '', giveBack)]
}

const cover = title => title.isbn === '9788299999014'
  ? make('img', { class: 'cover', src: `/covers/${title.isbn}.png`, alt: '', width: 64, height: 96 })
  : make('span', { class: `cover drawn ${title.kind}`, 'aria-hidden': 'true' }, title.name.split(',')[0])

const item = title => {
  const [kind, text] = stateOf(title)
  const facts = [word(title.kind), size(title.bytes), title.licences === 1 ? word('oneLicence') : null]
  return make('li', { class: selected === title ? 'selected' : '', 'data-isbn': title.isbn },
    cover(title), make('div', { class: 'about' },
      make('h4', {}, title.name), make('p', { class: 'hint' }, title.creator),
      make('p', { class: 'hint' }, facts.filter(Boolean).join(' · ')),
      make('p', { class: `state ${kind}` }, text), make('div', { class: 'row' }, ...buttons(title))))
}

// Rebuilds the lists, and gives the focus back to the button that had it.
const render = () => {
  const focused = document.activeElement?.closest?.('[data-isbn]')?.dataset.isbn
  $('readers').replaceChildren(...readers.map(({ name, library }) => make('button', {
    type: 'button', 'aria-pressed': String(reader === name), 'data-reader': name, disabled: Boolean(busy),
    onclick: () => signIn(name),
  }, make('strong', {}, name[0].toUpperCase() + name.slice(1)), make('span', {}, word(name)),
  make('code', {}, library))))
  show($('shelf-empty'), !reader)
  $('shelf').replaceChildren(...(reader ? titles.map(item) : []))
  if (focused) $('shelf').querySelector(`[data-isbn="${focused}"] button`)?.focus()
}

const select = title => {
  selected = title
  render()
  return behind.watch(reader, title, titles)
}

const readLoans = async () => {
  loans.clear()
  for (const loan of (await gate.loans()).reverse()) loans.set(loan.isbn, loan)
}

// Runs what a button does, one at a time, and shows a failure of the demo.
const during = async (title, name, act) => {
  if (busy) return
  busy = { isbn: title?.isbn, word: name }
  render()
  try {
    await act()
  } catch {
    notice('refused', word('unreachable'))
  }
  busy = null
  render()
  behind.refresh(titles)
}

const signIn = name => during(null, 'asking', async () => {
  closeAudio()
  closeBook()
  refusals.clear()
  await gate.signIn(name)
  reader = name
  await readLoans()
  clearNotice()
  select(selected ?? titles[0])
})

const borrow = title => during(title, 'asking', async () => {
  select(title)
  clearNotice()
  const { refused, id } = await gate.borrow(title.isbn)
  await readLoans()
  if (refused) {
    refusals.set(title.isbn, refused.reason ?? refused.type)
    closeAudio()
    closeBook()
    refusedNotice(word('refusedHead'), refused)
  } else {
    refusals.delete(title.isbn)
  }
  await behind.watchRequest(id, Boolean(refused), titles)
})

const read = title => during(title, 'asking', async () => {
  select(title)
  closeAudio()
  const { file, refused, id } = await gate.download(title)
  if (refused) refusedNotice(word('refusedHead'), refused)
  else {
    await openBook(file, title.name)
    clearNotice()
  }
  await behind.watchRequest(id, Boolean(refused), titles)
})

const listen = title => {
  select(title)
  closeBook()
  openAudio(title.isbn, gate.linked(title), `${title.name} · ${title.creator}`, stopped)
  clearNotice()
}

// The link of what plays failed: asks the gate why.
const stopped = async ({ link }) => {
  closeAudio()
  const { refused, id } = await gate.tryLink(link).catch(() => ({}))
  if (refused) refusedNotice(word('endedHead'), refused)
  else notice('refused', word('endedHead'))
  await behind.watchRequest(id, Boolean(refused), titles)
}

const giveBack = title => during(title, 'returning', async () => {
  select(title)
  const { refused, id } = await gate.giveBack(title.isbn)
  if (refused) {
    refusedNotice(word('refusedHead'), refused)
    return
  }
  closeBook()
  await readLoans()
  const playing = nowPlaying(title.isbn)
  if (!playing) {
    notice('over', word('returnedHead'), word('returnedText'))
    await behind.watchRequest(id, false, titles)
    return
  }
  // The gate aborts the stream. The browser may play on from its memory, so the app asks.
  await gate.pause(LINK_CHECK)
  if (nowPlaying(title.isbn) === playing) await stopped(playing)
})

const labels = () => {
  translate()
  const dark = getComputedStyle(document.documentElement).colorScheme === 'dark'
    || (!document.documentElement.dataset.theme && matchMedia('(prefers-color-scheme: dark)').matches)
  $('theme').textContent = word(dark ? 'light' : 'dark')
  $('theme').onclick = () => {
    document.documentElement.dataset.theme = dark ? 'light' : 'dark'
    localStorage.setItem('theme', dark ? 'light' : 'dark')
    labels()
  }
  const other = currentLanguage() === 'en' ? 'nb' : 'en'
  $('language').textContent = other === 'nb' ? 'Norsk' : 'English'
  $('language').lang = other
  $('language').onclick = () => {
    setLanguage(other)
    labels()
    render()
    behind.render(titles)
  }
}

const theme = localStorage.getItem('theme')
if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme
labels()
for (const which of ['now', 'last']) $(which).onclick = () => behind.choose(which, titles)
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', labels)
document.addEventListener('visibilitychange', () => behind.refresh(titles))

try {
  ({ readers, titles } = await gate.demo('world'))
  render()
} catch {
  notice('refused', word('unreachable'))
}
