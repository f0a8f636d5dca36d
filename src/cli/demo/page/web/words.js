// The page's words in English and Norwegian. The gate's own sentences are English.

const WORDS = {
  en: {
    skip: 'Skip to the reading app', demo: 'demo', headline: 'No byte without a loan',
    lead: 'loangate stands between a reading app and a library\'s files. A file leaves only under a loan that Bokbasen has accepted, and its stream stops when the loan ends.',
    app: 'The reading app', appHint: 'What a reader sees.', who: 'Choose a reader',
    shelf: 'Borrow a title', shelfEmpty: 'Choose a reader first.', room: 'Read, listen, and return',
    roomEmpty: 'Borrow a title, and it opens here.', back: '30 s back', forward: '30 s forward',
    middle: 'Jump to the middle', previous: 'Previous page', next: 'Next page',
    listenHint: 'Each jump is a range request by a signed link. Return the audiobook while it plays, and see its stream stop.',
    behind: 'Behind the gate', behindHint: 'What happens meanwhile, live.', path: 'The request\'s path',
    pathEmpty: 'Choose a reader and a title to see the steps that a request takes.',
    life: 'The loan\'s life', lifeEmpty: 'No loan yet. The first request for the file begins one.',
    books: 'Bokbasen\'s books', booksEmpty: 'No loan of this reader is registered.',
    booksHint: 'A stand-in on this machine. The real Bokbasen has the same books of each library.',
    storage: 'The storage', storageEmpty: 'No request for this title has reached the storage.',
    foot: 'Readers, libraries and books are invented. Whoever reaches this port can be one of them.',
    now: 'Now', last: 'Last request', light: 'Light', dark: 'Dark', theme: 'Theme', live: 'live',
    kari: 'May borrow every title.', ola: 'Has as many loans as his library allows.',
    liv: 'Her library has spent its budget.', per: 'Too late for a title whose only licence Kari has.',
    ebook: 'E-book', audiobook: 'Audiobook', oneLicence: 'one licence',
    borrow: 'Borrow', again: 'Borrow again', read: 'Read', listen: 'Listen', giveBack: 'Return',
    asking: 'Asking Bokbasen…', until: 'Borrowed until', refused: 'Refused',
    free: 'Not borrowed', over: 'The loan has ended', returning: 'Returning…',
    refusedHead: 'The gate refuses', endedHead: 'The stream has stopped',
    endedText: 'The loan has ended, so its link opens nothing any more.', requestId: 'Request',
    returnedHead: 'Returned', returnedText: 'Bokbasen has the end of the loan. Its tokens and links open nothing any more.',
    unreachable: 'The demo does not answer. Is it still running?',
    ifNow: 'What this request would get if it were sent now.',
    assumes: 'if Bokbasen accepts the loan', wasMade: 'What the last request got, and why.',
    notReached: 'not reached', whole: 'the whole file', chapter: 'Chapter', streams: 'files in flight:', delivered: 'Delivered',
    title: 'Title', status: 'Status', begun: 'Registered', ended: 'End received',
    step_path: 'Path', step_authority: 'Host', step_catalog: 'Catalogue', step_reader: 'Reader',
    step_gate: 'Loan', step_origin: 'Storage', step_delivery: 'Delivery',
    state_intended: 'The gate records that it will ask', state_pending: 'Bokbasen is deciding',
    state_accepted: 'Bokbasen accepted the loan', state_refused: 'Bokbasen refused the loan',
    state_unknown: 'The answer is unknown, so the gate asks again',
    state_ending: 'The loan has ended here', state_ended: 'Bokbasen has the end of the loan',
  },
  nb: {
    skip: 'Hopp til leseappen', demo: 'demo', headline: 'Ingen byte uten et lån',
    lead: 'loangate står mellom en leseapp og bibliotekets filer. En fil sendes bare under et lån som Bokbasen har godtatt, og strømmen stopper når lånet slutter.',
    app: 'Leseappen', appHint: 'Det leseren ser.', who: 'Velg en leser',
    shelf: 'Lån en tittel', shelfEmpty: 'Velg en leser først.', room: 'Les, lytt og lever',
    roomEmpty: 'Lån en tittel, så åpnes den her.', back: '30 s tilbake', forward: '30 s fram',
    middle: 'Hopp til midten', previous: 'Forrige side', next: 'Neste side',
    listenHint: 'Hvert hopp er en forespørsel om en del av filen, med signert lenke. Lever lydboka mens den spilles, og se at strømmen stopper.',
    behind: 'Bak porten', behindHint: 'Det som skjer imens, direkte.', path: 'Forespørselens vei',
    pathEmpty: 'Velg en leser og en tittel for å se stegene i en forespørsel.',
    life: 'Lånets liv', lifeEmpty: 'Ikke noe lån ennå. Den første forespørselen etter filen begynner et.',
    books: 'Bokbasens bøker', booksEmpty: 'Ingen lån av denne leseren er registrert.',
    booksHint: 'En stedfortreder på denne maskinen. Den virkelige Bokbasen har de samme bøkene for hvert bibliotek.',
    storage: 'Lageret', storageEmpty: 'Ingen forespørsel om denne tittelen har nådd lageret.',
    foot: 'Lesere, biblioteker og bøker er oppdiktet. Den som når denne porten, kan være en av dem.',
    now: 'Nå', last: 'Siste forespørsel', light: 'Lyst', dark: 'Mørkt', theme: 'Tema', live: 'direkte',
    kari: 'Kan låne alle titler.', ola: 'Har så mange lån som biblioteket tillater.',
    liv: 'Biblioteket hennes har brukt opp budsjettet.', per: 'For sen til en tittel der Kari har den eneste lisensen.',
    ebook: 'E-bok', audiobook: 'Lydbok', oneLicence: 'én lisens',
    borrow: 'Lån', again: 'Lån på nytt', read: 'Les', listen: 'Lytt', giveBack: 'Lever',
    asking: 'Spør Bokbasen…', until: 'Lånt til', refused: 'Avslått',
    free: 'Ikke lånt', over: 'Lånet er slutt', returning: 'Leverer…',
    refusedHead: 'Porten avslår', endedHead: 'Strømmen har stoppet',
    endedText: 'Lånet er slutt, så lenken åpner ingenting lenger.', requestId: 'Forespørsel',
    returnedHead: 'Levert', returnedText: 'Bokbasen har fått slutten på lånet. Token og lenker åpner ingenting lenger.',
    unreachable: 'Demoen svarer ikke. Kjører den ennå?',
    ifNow: 'Det denne forespørselen ville fått om den ble sendt nå.',
    assumes: 'hvis Bokbasen godtar lånet', wasMade: 'Det den siste forespørselen fikk, og hvorfor.',
    notReached: 'ikke nådd', whole: 'hele filen', chapter: 'Kapittel', streams: 'filer underveis:', delivered: 'Sendt',
    title: 'Tittel', status: 'Status', begun: 'Registrert', ended: 'Slutt mottatt',
    step_path: 'Sti', step_authority: 'Vert', step_catalog: 'Katalog', step_reader: 'Leser',
    step_gate: 'Lån', step_origin: 'Lager', step_delivery: 'Levering',
    state_intended: 'Porten noterer at den skal spørre', state_pending: 'Bokbasen avgjør',
    state_accepted: 'Bokbasen godtok lånet', state_refused: 'Bokbasen avslo lånet',
    state_unknown: 'Svaret er ukjent, så porten spør igjen',
    state_ending: 'Lånet er slutt her', state_ended: 'Bokbasen har fått slutten på lånet',
  },
}

const stored = localStorage.getItem('language')
const preferred = /^(nb|nn|no)\b/.test(navigator.language) ? 'nb' : 'en'
let language = stored === 'nb' || stored === 'en' ? stored : preferred

export const word = name => WORDS[language][name] ?? name

export const currentLanguage = () => language

export const setLanguage = to => {
  language = to
  localStorage.setItem('language', to)
}

// Writes the words of all elements that name one.
export const translate = () => {
  document.documentElement.lang = language
  for (const element of document.querySelectorAll('[data-word]')) {
    element.textContent = word(element.dataset.word)
  }
}

export const day = at => new Date(at).toLocaleDateString(language, { day: 'numeric', month: 'short' })

export const time = at => new Date(at).toLocaleTimeString(language, { hour12: false })

export const size = bytes => {
  const [unit, name] = bytes < 1e6 ? [1e3, 'kB'] : [1e6, 'MB']
  return `${(bytes / unit).toLocaleString(language, { maximumFractionDigits: 1 })} ${name}`
}
