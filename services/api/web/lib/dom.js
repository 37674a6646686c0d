// Build elements. Text is always text: nothing here reads HTML, so names and messages cannot become markup.

/**
 * Make an element.
 * @param {string} tag Its tag, with classes after dots: "p.note".
 * @param {object} [attributes] Attributes; `on<event>` adds a listener, a value of null or false leaves one out.
 * @param {...(Node|string|number|null|false|Array)} children What is in it.
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  if (attributes instanceof Node || typeof attributes !== "object" || Array.isArray(attributes) || attributes === null) {
    children.unshift(attributes);
    attributes = {};
  }
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled" || key === "selected") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Replace what is in an element, unless it says the same already: what somebody reads, or has the focus in, stays.
 * A field or link that had the focus gets it back.
 */
export function fill(element, ...children) {
  const made = document.createDocumentFragment();
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  if (focused && same(element, made)) return element;
  const again = focused?.id ? `#${CSS.escape(focused.id)}` : focused?.getAttribute("href") ? `a[href="${CSS.escape(focused.getAttribute("href"))}"]` : null;
  element.replaceChildren(made);
  if (again) element.querySelector(again)?.focus({ preventScroll: true });
  return element;
}

function same(element, made) {
  const [now, then] = [[...element.childNodes], [...made.childNodes]];
  return now.length === then.length && now.every((node, i) => node.isEqualNode(then[i]));
}
