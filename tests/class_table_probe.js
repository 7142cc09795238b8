// Runs in a page of 5,000 classes that tests/test_run_page.py opens: sorts, searches, chooses and scrolls.
addEventListener("load", () => setTimeout(() => {
  const part = id => document.getElementById(id), said = {opened: performance.now()};
  const names = () => [...part("classes-rows").querySelectorAll("th bdi")].map(one => one.textContent);
  const top = () => part("classes-rows").querySelector("tr:not(.gap) td:nth-child(2)").textContent;
  const timed = (name, work) => { const began = performance.now(); work(); said[name] = performance.now() - began; };
  const search = words => {
    part("classes-search").value = words;
    part("classes-search").dispatchEvent(new Event("input"));
  };
  said.rows = names().length;
  said.worst = top();
  timed("sort", () => part("classes-head").children[1].firstChild.click());
  said.best = top();
  timed("search", () => search("Class 4321"));
  said.matches = names();
  said.count = part("classes-count").textContent;
  part("classes-rows").querySelector("tr:not(.gap)").click();
  said.chosen = part("class-name").textContent;
  said.curve = part("class-curve").querySelector("svg").getAttribute("aria-label");
  search("script");
  said.hostile = names();
  search("nothing like it");
  said.none = part("classes-count").textContent;
  search("");
  timed("scroll", () => {
    part("classes-view").scrollTop = 1e9;
    part("classes-view").dispatchEvent(new Event("scroll"));
  });
  requestAnimationFrame(() => setTimeout(() => {
    said.last = [...part("classes-rows").querySelectorAll("tr:not(.gap)")].at(-1).getAttribute("aria-rowindex");
    document.title = JSON.stringify(said);
  }, 50));
}, 0));
