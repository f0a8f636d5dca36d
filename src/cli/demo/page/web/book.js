// The reader of e-books: foliate-js opens and lays out an EPUB.

import { $, show } from './dom.js'
import { word } from './words.js'
import { EPUB } from './vendor/foliate-js/epub.js'
import './vendor/foliate-js/paginator.js'
import { BlobReader, BlobWriter, configure, TextWriter, ZipReader } from './vendor/zip.js/zip.js'

configure({ useWebWorkers: false })

const STYLE = `
  html { color-scheme: light dark; font: 1.0625rem/1.65 Georgia, "Times New Roman", serif; }
  body { color: light-dark(#1d2733, #e8e6e1); }
  h1 { font-size: 1.5em; line-height: 1.25; margin: 0 0 1em; }
  p { margin: 0 0 0.9em; hyphens: auto; }
  a { color: inherit; }`

let view = null

const loader = async file => {
  const entries = await new ZipReader(new BlobReader(file)).getEntries()
  const byName = new Map(entries.map(entry => [entry.filename, entry]))
  const load = read => (name, type) => byName.has(name) ? read(byName.get(name), type) : null
  return {
    entries,
    loadText: load(entry => entry.getData(new TextWriter())),
    loadBlob: load((entry, type) => entry.getData(new BlobWriter(type))),
    getSize: name => byName.get(name)?.uncompressedSize ?? 0,
  }
}

export const closeBook = () => {
  if (view) {
    view.destroy()
    view.remove()
    view = null
  }
  show($('read'), false)
}

export const openBook = async (file, label) => {
  closeBook()
  show($('read'), true)
  const book = await new EPUB(await loader(file)).init()
  view = document.createElement('foliate-paginator')
  view.setAttribute('max-column-count', '1')
  view.setAttribute('margin', '24')
  view.addEventListener('load', ({ detail: { doc } }) => {
    // A constructed sheet needs no exception from the page's policy.
    const sheet = new doc.defaultView.CSSStyleSheet()
    sheet.replaceSync(STYLE)
    doc.adoptedStyleSheets = [sheet]
    doc.defaultView.frameElement.title = label
    doc.addEventListener('keydown', turn)
  })
  view.addEventListener('relocate', ({ detail }) => {
    const size = book.sections.length
    $('place').textContent = `${word('chapter')} ${detail.index + 1} / ${size}`
  })
  $('pages').replaceChildren(view)
  view.open(book)
  await view.goTo({ index: 0 })
}

const turn = event => {
  if (event.key === 'ArrowRight') view?.next()
  if (event.key === 'ArrowLeft') view?.prev()
}

$('previous').addEventListener('click', () => view?.prev())
$('next').addEventListener('click', () => view?.next())
$('pages').addEventListener('keydown', turn)
