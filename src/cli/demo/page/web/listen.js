// The player of audiobooks: an audio element plays a signed link, and seeks by range requests.

import { $, show } from './dom.js'

const audio = $('audio')
let playing = null

export const closeAudio = () => {
  playing = null
  audio.pause()
  audio.removeAttribute('src')
  audio.load()
  show($('listen'), false)
}

// Plays a link. `failed` is called once if the element reports an error.
export const openAudio = (isbn, link, label, failed) => {
  playing = { isbn, link, failed }
  $('playing').textContent = label
  show($('listen'), true)
  audio.src = link
  audio.play().catch(() => {}) // it may wait for a click, and an error has an event
}

// What plays, if it is this title.
export const nowPlaying = isbn => playing?.isbn === isbn ? playing : null

audio.addEventListener('error', () => {
  if (playing && audio.getAttribute('src')) playing.failed(playing)
})

const jump = to => {
  if (Number.isFinite(audio.duration)) audio.currentTime = Math.min(to(), audio.duration - 1)
}
$('middle').addEventListener('click', () => jump(() => audio.duration / 2))
$('back').addEventListener('click', () => jump(() => Math.max(0, audio.currentTime - 30)))
$('forward').addEventListener('click', () => jump(() => audio.currentTime + 30))
