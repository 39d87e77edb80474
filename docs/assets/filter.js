// A box above the tables of the model zoo: rows that lack one of its words are hidden. A click on a column's head sorts by it.
document$.subscribe(() => {
  const article = document.querySelector('article.md-content__inner')
  if (!article || !/\/(models|configs)\//.test(location.pathname)) return
  const tables = [...article.querySelectorAll('table')]
  if (!tables.length || article.querySelector('.filter')) return

  const box = document.createElement('input')
  box.className = 'filter'
  box.type = 'search'
  box.placeholder = 'Filter: s12/8 384, mask_rcnn, dino, robust …'
  box.setAttribute('aria-label', 'Filter the tables of this page')
  const count = document.createElement('span')
  count.className = 'filter-count'
  const bar = document.createElement('div')
  bar.className = 'filter-bar'
  bar.append(box, count)
  article.querySelector('h1').after(bar)

  // "s12/8" also finds rows that have the arch and the patch size in columns of their own.
  const words = new Map()
  for (const table of tables) {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim())
    const [arch, patch] = [heads.indexOf('arch'), heads.indexOf('patch')]
    for (const row of table.tBodies[0].rows) {
      const both = arch < 0 || patch < 0 ? '' : `${row.cells[arch].textContent}/${row.cells[patch].textContent}`
      words.set(row, `${row.textContent} ${both}`.toLowerCase())
    }
  }
  const apply = () => {
    const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean)
    let shown = 0, all = 0
    for (const table of tables) {
      for (const row of table.tBodies[0].rows) {
        row.hidden = !wanted.every((word) => words.get(row).includes(word))
        shown += !row.hidden
        all += 1
      }
    }
    count.textContent = wanted.length ? `${shown} of ${all} rows` : `${all} rows`
  }
  box.addEventListener('input', apply)
  apply()

  const value = (row, column) => {
    const text = row.cells[column].textContent.trim()
    const number = parseFloat(text)
    return Number.isNaN(number) ? text : number
  }
  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.addEventListener('click', () => {
        const direction = head.dataset.direction === '1' ? -1 : 1
        head.dataset.direction = direction
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)]
          return direction * (typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y)))
        })
        table.tBodies[0].append(...rows)
      })
    })
  }
})
