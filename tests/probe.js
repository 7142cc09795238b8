// Runs in a page that tests/browser.py opens in a frame, and tells the frame's owner how the page looks.
const errors = [];
const refused = event => errors.push(`refused: ${event.violatedDirective} ${event.blockedURI}`);
addEventListener("error", event => errors.push(event.message || `not loaded: ${event.target.src}`), true);
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", refused);
for (const kind of ["error", "warn"]) console[kind] = (...said) => errors.push(said.join(" "));

const scrolls = element =>
  element && (["auto", "scroll"].includes(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
const sticksOut = element =>  // what lies in a drawing is clipped by it
  !element.ownerSVGElement && element.getBoundingClientRect().right > innerWidth + 1 && !scrolls(element.parentElement);

addEventListener("load", () => setTimeout(() => {
  const {scrollWidth: scroll, scrollHeight: height} = document.documentElement;
  const {backgroundColor: background, color: ink} = getComputedStyle(document.body);
  const wide = [...document.body.querySelectorAll("*")].filter(sticksOut).map(element => element.outerHTML.slice(0, 120));
  const scrolling = [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1);
  const labels = scrolling.map(one => one.getAttribute("aria-label")), pwned = "pwned" in window;
  parent.postMessage({page: window.name, errors, pwned, scrolling: labels, width: innerWidth, scroll, height, wide, background, ink}, "*");
}, 50));
