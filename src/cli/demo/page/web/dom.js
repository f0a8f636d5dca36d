// Small helpers to build the page. Text is always set as text, never as markup.

export const $ = id => document.getElementById(id)

// Creates an element: properties first, then children (elements or text).
export const make = (name, properties = {}, ...children) => {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(properties)) {
    if (key === 'class') element.className = value
    else if (key in element) element[key] = value
    else element.setAttribute(key, value)
  }
  element.append(...children.filter(child => child !== null && child !== undefined))
  return element
}

// Replaces the children of an element only if they differ, so that focus and selection stay.
export const fill = (element, ...children) => {
  const next = make('div', {}, ...children)
  if (next.innerHTML !== element.innerHTML) element.replaceChildren(...next.childNodes)
}

export const show = (element, visible) => { element.hidden = !visible }
