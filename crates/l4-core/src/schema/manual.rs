//! What the pages of the manual say about a module.

use crate::registry::Registry;

/// The text about the module `id`, with its heading: up to the next heading that is not below it.
pub fn section(registry: &Registry, id: &str) -> Option<&'static str> {
    let title = format!("`{id}`");
    registry.pages().find_map(|page| {
        let (start, level) = headings(page)
            .find_map(|(start, level, text)| (text == title).then_some((start, level)))?;
        let end = headings(page)
            .find(|(at, other, _)| *at > start && *other <= level)
            .map_or(page.len(), |(at, _, _)| at);
        page.get(start..end)
    })
}

/// The headings of a page outside its code blocks: offset, level, text.
pub fn headings(page: &str) -> impl Iterator<Item = (usize, usize, &str)> {
    let mut at = 0;
    let mut code = false;
    page.split_inclusive('\n').filter_map(move |line| {
        let start = at;
        at += line.len();
        code ^= line.starts_with("```");
        let text = line.trim_start_matches('#');
        let level = line.len() - text.len();
        (!code && level > 0).then(|| (start, level, text.trim()))
    })
}

/// The first paragraph under the heading, without links.
pub(super) fn summary(section: &str) -> Option<String> {
    let (_, body) = section.split_once('\n')?;
    let lines: Vec<&str> = body
        .lines()
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| !line.trim().is_empty())
        .collect();
    let first = lines.first()?;
    let prose = !["|", "#", "```", "<!--"]
        .iter()
        .any(|mark| first.starts_with(mark));
    prose.then(|| without_links(&lines.join(" ")))
}

/// `[text](target)` becomes `text`.
pub fn without_links(markdown: &str) -> String {
    let mut plain = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once('[') {
        let link = after
            .split_once("](")
            .filter(|(text, _)| !text.contains(['[', ']']))
            .and_then(|(text, target)| Some((text, target.split_once(')')?.1)));
        plain.push_str(before);
        match link {
            Some((text, behind)) => {
                plain.push_str(text);
                rest = behind;
            }
            None => {
                plain.push('[');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// A doc comment as text: its paragraphs on a line each, without examples.
pub(super) fn paragraphs(comment: &str) -> String {
    let mut paragraphs: Vec<String> = Vec::new();
    let mut code = false;
    let mut begin = true;
    for line in comment.lines().map(str::trim) {
        if line.starts_with("```") {
            code = !code;
        } else if line.is_empty() {
            begin = true;
        } else if !code {
            match paragraphs.last_mut() {
                Some(last) if !begin => {
                    last.push(' ');
                    last.push_str(line);
                }
                _ => paragraphs.push(line.to_owned()),
            }
            begin = false;
        }
    }
    paragraphs.join("\n\n")
}
