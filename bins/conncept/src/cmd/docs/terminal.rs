//! Markdown as text for a terminal: paragraphs and tables wrapped to its width, headings in bold.

use std::io::{IsTerminal as _, stdout};

use l4_core::schema::manual::without_links;

/// Where a page is shown.
pub(super) struct Screen {
    width: usize,
    /// Whether it understands escape sequences.
    escapes: bool,
}

/// Lines that are longer than this are hard to read, however wide the screen is.
const WIDEST: usize = 120;

/// What does not go to a terminal.
const PLAIN: usize = 100;

impl Screen {
    pub(super) fn of_stdout() -> Self {
        let escapes = stdout().is_terminal();
        let size = escapes
            .then(|| rustix::termios::tcgetwinsize(stdout()).ok())
            .flatten();
        let width = size
            .map(|size| usize::from(size.ws_col))
            .filter(|width| *width > 0);
        Self {
            width: width.map_or(PLAIN, |width| width.clamp(40, WIDEST)),
            escapes,
        }
    }

    /// A Markdown page as text.
    pub(super) fn show(&self, page: &str) -> String {
        let mut shown = String::new();
        for block in blocks(page) {
            let text = match block {
                Block::Heading(line) => self.heading(line),
                Block::Code(lines) => indented(&lines),
                Block::Table(rows) => self.table(&rows),
                Block::Text(text) => self.wrapped(&text, ""),
                Block::Item(text) => self.wrapped(&text, "* "),
            };
            let list = matches!(text.as_bytes(), [b'*', ..]);
            let goes_on = list && last_line_is_of_a_list(&shown);
            if !shown.is_empty() && !goes_on {
                shown.push('\n');
            }
            shown.push_str(&text);
        }
        shown
    }

    fn heading(&self, line: &str) -> String {
        match self.escapes {
            true => format!(
                "{}\n",
                bold(&line.trim_start_matches('#').trim().replace('`', ""))
            ),
            false => format!("{line}\n"),
        }
    }

    fn wrapped(&self, text: &str, mark: &str) -> String {
        let lines = wrap(&without_links(text), self.width - mark.len());
        let mut wrapped = String::new();
        for (i, line) in lines.iter().enumerate() {
            let begin = if i == 0 { mark } else { &"  "[..mark.len()] };
            wrapped.push_str(begin);
            wrapped.push_str(line);
            wrapped.push('\n');
        }
        wrapped
    }

    fn table(&self, rows: &[Vec<String>]) -> String {
        let widths = widths(rows, self.width);
        let mut table = String::new();
        for (i, row) in rows.iter().enumerate() {
            let cells: Vec<Vec<String>> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| wrap(cell, *width))
                .collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or_default();
            for line in 0..height {
                let mut text = String::new();
                for (cell, width) in cells.iter().zip(&widths) {
                    let part = cell.get(line).map_or("", String::as_str);
                    text.push_str(&format!("{part:width$}  "));
                }
                match i == 0 && self.escapes {
                    true => table.push_str(&bold(text.trim_end())),
                    false => table.push_str(text.trim_end()),
                }
                table.push('\n');
            }
            if i == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                table.push_str(&rules.join("  "));
                table.push('\n');
            }
        }
        table
    }
}

fn bold(text: &str) -> String {
    format!("\x1b[1m{text}\x1b[0m")
}

fn indented(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("    {line}\n")).collect()
}

fn last_line_is_of_a_list(shown: &str) -> bool {
    let last = shown.trim_end_matches('\n').rsplit("\n\n").next();
    last.is_some_and(|paragraph| paragraph.starts_with("* "))
}

/// What a page is made of.
enum Block<'a> {
    Heading(&'a str),
    Code(Vec<&'a str>),
    Table(Vec<Vec<String>>),
    Text(String),
    Item(String),
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    // Whether the line before belongs to the last block.
    let mut open = false;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let text = line.trim();
        if text.is_empty() || text.starts_with("<!--") {
            open = false;
        } else if text.starts_with("```") {
            let code = lines.by_ref().take_while(|line| !line.starts_with("```"));
            blocks.push(Block::Code(code.collect()));
            open = false;
        } else if line.starts_with('#') {
            blocks.push(Block::Heading(line));
            open = false;
        } else if line.starts_with('|') {
            match blocks.last_mut() {
                Some(Block::Table(rows)) if open => {
                    if !line.starts_with("|-") {
                        rows.push(cells(line));
                    }
                }
                _ => blocks.push(Block::Table(vec![cells(line)])),
            }
            open = true;
        } else if let Some(item) = text.strip_prefix("* ") {
            blocks.push(Block::Item(item.to_owned()));
            open = true;
        } else {
            match blocks.last_mut() {
                Some(Block::Text(last) | Block::Item(last)) if open => {
                    last.push(' ');
                    last.push_str(text);
                }
                _ => blocks.push(Block::Text(text.to_owned())),
            }
            open = true;
        }
    }
    blocks
}

fn cells(row: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for c in row.trim().trim_start_matches('|').chars() {
        match (c, cells.last_mut()) {
            ('|', Some(cell)) if escaped => {
                // The backslash was for the table.
                cell.pop();
                cell.push('|');
            }
            ('|', _) => cells.push(String::new()),
            (c, Some(cell)) => cell.push(c),
            (_, None) => {}
        }
        escaped = c == '\\';
    }
    // What stands behind the last bar.
    cells.pop();
    cells
        .iter()
        .map(|cell| without_links(cell.trim()))
        .collect()
}

/// How wide the columns become, so that they fit into `total` with two spaces between them: narrow ones as they are,
/// what is left in equal parts for the others.
fn widths(rows: &[Vec<String>], total: usize) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let natural = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let mut widths: Vec<usize> = (0..columns).map(natural).collect();
    let mut room = total.saturating_sub(2 * columns.saturating_sub(1));
    // The first column has names, which are to be found; it is cut only where it would take half of the screen.
    let mut order: Vec<usize> = (1..columns).collect();
    order.sort_by_key(|column| widths.get(*column).copied());
    if let Some(first) = widths.first_mut() {
        *first = (*first).min(total / 2).max(1);
        room = room.saturating_sub(*first);
    }
    for (done, column) in order.into_iter().enumerate() {
        let share = room / (columns - 1 - done).max(1);
        if let Some(width) = widths.get_mut(column) {
            *width = (*width).min(share).max(1);
            room = room.saturating_sub(*width);
        }
    }
    widths
}

/// Cuts a text into lines of at most `width` characters, between words where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(width) {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + piece.chars().count() <= width => {
                    line.push(' ');
                    line.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# `a.b`\n\nSome [words](x.md#y) and\nmore of them.\n\n<!-- fields: a.b -->\n\n\
        | Field | Effect |\n|---|---|\n| `one` | Does a lot of things, `x\\|y` one of them. |\n\n<!-- end of fields -->\n\n\
        * first\n  item\n* second\n\n```json\n{\"a\":   1}\n```\n";

    fn shown(width: usize, escapes: bool) -> String {
        Screen { width, escapes }.show(PAGE)
    }

    #[test]
    fn a_page_is_wrapped_and_its_tables_are_aligned() {
        assert_eq!(
            shown(40, false),
            "# `a.b`\n\nSome words and more of them.\n\n\
             Field  Effect\n\
             -----  ---------------------------------\n\
             `one`  Does a lot of things, `x|y` one\n       of them.\n\n\
             * first item\n* second\n\n    {\"a\":   1}\n"
        );
    }

    #[test]
    fn only_a_terminal_gets_escape_sequences() {
        assert!(!shown(80, false).contains('\x1b'));
        assert!(shown(80, true).starts_with("\x1b[1ma.b\x1b[0m\n"));
    }

    #[test]
    fn no_line_of_a_table_is_wider_than_the_screen() {
        let words =
            "a few words and `one-that-is-rather-long-for-a-column-of-a-narrow-terminal` | "
                .repeat(4);
        let page = format!("| {words}\n|---|---|---|---|\n| {words}\n");
        for width in 40..120 {
            let shown = Screen {
                width,
                escapes: false,
            }
            .show(&page);
            assert!(
                shown.lines().all(|line| line.chars().count() <= width),
                "{width}: {shown}"
            );
        }
    }
}
