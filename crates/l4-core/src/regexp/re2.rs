//! The dialect of RE2, as Go's `regexp/syntax` reads it, rewritten in the dialect of the crate `regex`.
//!
//! One pass from left to right. What is written says everything by itself: `\d` becomes `[0-9]`, `$` becomes `\z`, a
//! lazy or greedy repetition is chosen here, so of all flags only `i` is left to the engine. Groups lose their names,
//! which may be ones that the engine refuses; the caller gets them beside the pattern.

use regex::Regex;

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegexpError {
    /// `(a`
    #[error("unclosed group")]
    UnclosedGroup,
    /// `a)`
    #[error("unopened group")]
    UnopenedGroup,
    /// `[a`
    #[error("unclosed character class {0}")]
    UnclosedClass(Box<str>),
    /// `[z-a]`
    #[error("the range {0} ends before it begins")]
    ReversedRange(Box<str>),
    /// `[[:letters:]]` or `\p{Klingon}`
    #[error("unknown character class {0}")]
    UnknownClass(Box<str>),
    /// `\y`
    #[error("unknown escape {0}")]
    UnknownEscape(Box<str>),
    /// `a\`
    #[error("a backslash at the end escapes nothing")]
    TrailingBackslash,
    /// `*a`
    #[error("nothing to repeat before {0}")]
    NothingToRepeat(Box<str>),
    /// `a**`
    #[error("a repetition is repeated: {0}")]
    RepeatedRepetition(Box<str>),
    /// `a{2,1}`
    #[error("the repetition {0} ends before it begins")]
    ReversedRepetition(Box<str>),
    /// `a{1001}` or `(a{100}){11}`
    #[error("the repetition {0} makes more than 1000 copies")]
    TooManyCopies(Box<str>),
    /// `(?=a)`
    #[error("unknown kind of group {0}")]
    UnknownGroup(Box<str>),
    /// `(?P<a b>c)`
    #[error("invalid group name in {0}")]
    GroupName(Box<str>),
    /// Hundreds of groups in groups.
    #[error("groups are nested too deeply")]
    TooDeep,
    /// Compiled, it is larger than 64 MiB.
    #[error("the expression is too large")]
    TooLarge,
    /// The engine's own reason.
    #[error("{0}")]
    Engine(Box<str>),
}

impl RegexpError {
    /// What would be right, where that can be said.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            Self::UnclosedGroup => r"close it with ), or write \( for the character",
            Self::UnopenedGroup => r"write \) for the character",
            Self::UnclosedClass(_) => r"close it with ], or write \[ for the character",
            Self::ReversedRange(_) => r"swap its ends, or write \- for the character",
            Self::UnknownClass(class) if class.starts_with('[') => {
                "there are alnum, alpha, ascii, blank, cntrl, digit, graph, lower, print, punct, space, upper, word \
                 and xdigit, such as [[:alpha:]]"
            }
            Self::UnknownClass(_) => {
                r"write a Unicode category or script, such as \pL, \p{Lu} or \p{Greek}"
            }
            Self::UnknownEscape(escape) => match escape.chars().nth(1) {
                Some('1'..='9') => {
                    r"there are no back-references; a character by its number is \x41 or \101"
                }
                Some('C') => r"single bytes are not matched; (?s:.) is any character",
                Some('Z') => r"the end of the text is \z",
                Some('u' | 'U' | 'x') => r"a character by its number is \x41 or \x{1F600}",
                Some('E') => r"\E only ends what \Q began, outside of [ ]",
                _ => {
                    "only punctuation is escaped to mean itself; letters and digits mean themselves without \\"
                }
            },
            Self::TrailingBackslash => r"write \\ for the character",
            Self::NothingToRepeat(_) => r"write \*, \+, \? or \{ for the character",
            Self::RepeatedRepetition(_) => "put the inner one in a group: (?:a*)*",
            Self::ReversedRepetition(_) => "write the smaller number first",
            Self::TooManyCopies(_) => "use * or +, or split the text otherwise",
            Self::UnknownGroup(group) | Self::GroupName(group)
                if strip_any(group, &["(?=", "(?!", "(?<=", "(?<!"]).is_some() =>
            {
                "there is no look-around; combine matchers with not instead"
            }
            Self::UnknownGroup(_) => {
                "groups are (a), (?:a), (?P<name>a), (?<name>a) and, with the flags i, m, s and U, (?i:a) or (?i)"
            }
            Self::GroupName(_) => "use letters, digits and underscores, and end it with >",
            Self::TooDeep | Self::TooLarge => "use several shorter expressions",
            Self::Engine(_) => return None,
        })
    }
}

/// A pattern in the dialect of the engine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) pattern: String,
    /// The names of groups 1 and up.
    pub(super) names: Vec<Option<Box<str>>>,
}

/// Rewrites `pattern`, which is read as if it began with `(?i)` if `ignore_case`.
pub(super) fn translate(pattern: &str, ignore_case: bool) -> Result<Translated, RegexpError> {
    let flags = Flags {
        ignore_case,
        ..Flags::default()
    };
    Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len() + 16),
        flags,
        ignoring_case: false,
        last: None,
        copies: 1,
        outer: Vec::new(),
        names: Vec::new(),
    }
    .run()
}

/// The flags in force; all are off at first.
#[derive(Debug, Clone, Copy, Default)]
struct Flags {
    ignore_case: bool,
    multi_line: bool,
    dot_all: bool,
    swap_greed: bool,
}

/// What a repetition would repeat.
struct Atom {
    /// Where in the output it begins.
    start: usize,
    /// Into how many copies of its innermost part it unrolls.
    copies: u32,
    /// How many repetitions it has.
    repeated: u32,
}

/// A group that was opened, and what is restored when it ends.
struct Group {
    start: usize,
    flags: Flags,
    ignoring_case: bool,
    copies: u32,
}

struct Translator<'p> {
    /// What was not read so far.
    rest: &'p str,
    out: String,
    flags: Flags,
    /// Whether `(?i)` is in force at the end of `out`. It is written when a text needs it and not where it was read,
    /// because `a(?i)*` repeats the `a`.
    ignoring_case: bool,
    last: Option<Atom>,
    /// The most copies that an atom of this group before the last one unrolls into.
    copies: u32,
    outer: Vec<Group>,
    names: Vec<Option<Box<str>>>,
}

type Step<T = ()> = Result<T, RegexpError>;

impl<'p> Translator<'p> {
    fn run(mut self) -> Step<Translated> {
        // Where the repetition began that was read just before, if that is what was read.
        let mut previous: Option<&'p str> = None;
        while let Some(first) = self.rest.chars().next() {
            let here = self.rest;
            let mut repetition = None;
            match first {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.skip(1);
                    self.settle();
                    self.out.push('|');
                }
                '^' => self.assertion(
                    1,
                    if self.flags.multi_line {
                        "(?m:^)"
                    } else {
                        r"\A"
                    },
                ),
                '$' => self.assertion(
                    1,
                    if self.flags.multi_line {
                        "(?m:$)"
                    } else {
                        r"\z"
                    },
                ),
                '.' => self.assertion(
                    1,
                    if self.flags.dot_all {
                        "(?s:.)"
                    } else {
                        r"[^\n]"
                    },
                ),
                '[' => self.class()?,
                '*' | '+' | '?' => {
                    self.skip(1);
                    self.repeat(here, None, previous)?;
                    repetition = Some(here);
                }
                '{' => match counts(here) {
                    Some((counts, rest)) => {
                        self.rest = rest;
                        self.repeat(here, Some(counts), previous)?;
                        repetition = Some(here);
                    }
                    // What starts no repetition is the character.
                    None => self.literal(),
                },
                '\\' => self.escape()?,
                _ => self.literal(),
            }
            previous = repetition;
        }
        if !self.outer.is_empty() {
            return Err(RegexpError::UnclosedGroup);
        }
        Ok(Translated {
            pattern: self.out,
            names: self.names,
        })
    }

    /// What was read since `here`.
    fn since(&self, here: &'p str) -> &'p str {
        &here[..here.len() - self.rest.len()]
    }

    /// Skips `len` bytes that were seen to be ASCII.
    fn skip(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn eat(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// The last atom is beyond the reach of repetitions.
    fn settle(&mut self) {
        let last = self.last.take().map_or(0, |last| last.copies);
        self.copies = self.copies.max(last);
    }

    /// The next thing written is an atom.
    fn begin(&mut self) {
        self.settle();
        self.last = Some(Atom {
            start: self.out.len(),
            copies: 1,
            repeated: 0,
        });
    }

    /// Writes an atom whose meaning depends on `(?i)`.
    fn text(&mut self, text: &str) {
        if self.ignoring_case != self.flags.ignore_case {
            self.ignoring_case = self.flags.ignore_case;
            let flag = if self.ignoring_case { "(?i)" } else { "(?-i)" };
            self.out.push_str(flag);
        }
        self.begin();
        self.out.push_str(text);
    }

    /// Skips `len` ASCII bytes and writes an atom without letters.
    fn assertion(&mut self, len: usize, text: &str) {
        self.skip(len);
        self.begin();
        self.out.push_str(text);
    }

    /// Reads a character that means itself.
    fn literal(&mut self) {
        if let Some(c) = self.next() {
            self.character(u32::from(c));
        }
    }

    fn character(&mut self, code: u32) {
        match char::from_u32(code) {
            Some(c) => {
                let mut text = String::new();
                push_char(&mut text, c);
                self.text(&text);
            }
            // A surrogate: it stands in no text.
            None => self.text(NEVER),
        }
    }

    fn open(&mut self) -> Step {
        let here = self.rest;
        let mut flags = self.flags;
        let capturing = if !here.starts_with("(?") {
            self.skip(1);
            self.names.push(None);
            true
        } else if let Some(name) = strip_any(here, &["(?P<", "(?<"]) {
            let (name, rest) = name
                .split_once('>')
                .ok_or_else(|| RegexpError::GroupName(excerpt(here)))?;
            self.rest = rest;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(RegexpError::GroupName(excerpt(self.since(here))));
            }
            self.names.push(Some(name.into()));
            true
        } else {
            self.skip(2);
            let (changed, end) = self.flags(here)?;
            if end == ')' {
                // Until the end of the group that is open.
                self.flags = changed;
                return Ok(());
            }
            flags = changed;
            false
        };
        if self.outer.len() >= MAX_DEPTH {
            return Err(RegexpError::TooDeep);
        }
        self.settle();
        self.outer.push(Group {
            start: self.out.len(),
            flags: self.flags,
            ignoring_case: self.ignoring_case,
            copies: self.copies,
        });
        self.out.push_str(if capturing { "(" } else { "(?:" });
        self.flags = flags;
        self.copies = 1;
        Ok(())
    }

    /// Reads flags up to the `:` or `)` behind them. `here` is where their group begins.
    fn flags(&mut self, here: &'p str) -> Step<(Flags, char)> {
        let mut flags = self.flags;
        let mut on = true;
        // `(?-)` clears nothing and is refused, though `(?)` is not.
        let mut useful = true;
        while let Some(c) = self.next() {
            match c {
                'i' => flags.ignore_case = on,
                'm' => flags.multi_line = on,
                's' => flags.dot_all = on,
                'U' => flags.swap_greed = on,
                '-' if on => {
                    on = false;
                    useful = false;
                    continue;
                }
                ':' | ')' if useful => return Ok((flags, c)),
                _ => break,
            }
            useful = true;
        }
        Err(RegexpError::UnknownGroup(excerpt(self.since(here))))
    }

    fn close(&mut self) -> Step {
        let group = self.outer.pop().ok_or(RegexpError::UnopenedGroup)?;
        self.skip(1);
        self.settle();
        self.out.push(')');
        self.last = Some(Atom {
            start: group.start,
            copies: self.copies,
            repeated: 0,
        });
        self.flags = group.flags;
        self.ignoring_case = group.ignoring_case;
        self.copies = group.copies;
        Ok(())
    }

    /// Repeats the last atom by the operator that was read since `here`.
    fn repeat(&mut self, here: &'p str, counts: Option<Counts>, previous: Option<&'p str>) -> Step {
        let operator = self.since(here);
        let lazy = self.eat("?");
        if let Some(previous) = previous {
            return Err(RegexpError::RepeatedRepetition(excerpt(
                self.since(previous),
            )));
        }
        let Some(atom) = &mut self.last else {
            return Err(RegexpError::NothingToRepeat(excerpt(operator)));
        };
        if let Some(Counts { min, max }) = counts {
            let too_many = || RegexpError::TooManyCopies(excerpt(operator));
            let most = max.unwrap_or(min);
            if min > MAX_COPIES || most > MAX_COPIES {
                return Err(too_many());
            }
            if min > most {
                return Err(RegexpError::ReversedRepetition(excerpt(operator)));
            }
            // `{0,}` is `*`, which counts as one copy.
            if max.is_some() || min > 0 {
                atom.copies = atom.copies.saturating_mul(most);
            }
            if most > 1 && atom.copies > MAX_COPIES {
                return Err(too_many());
            }
        }
        // Two repetitions of one thing (`a*(?i)*`, `a*\Q\E*`) stand apart only in a group.
        if atom.repeated > 0 {
            self.out.insert_str(atom.start, "(?:");
            self.out.push(')');
        }
        atom.repeated += 1;
        if atom.repeated as usize > MAX_DEPTH {
            return Err(RegexpError::TooDeep);
        }
        self.out.push_str(operator);
        if lazy != self.flags.swap_greed {
            self.out.push('?');
        }
        Ok(())
    }

    /// Reads a backslash outside of a class.
    fn escape(&mut self) -> Step {
        match self.rest.as_bytes().get(1) {
            Some(b'A') => self.assertion(2, r"\A"),
            Some(b'z') => self.assertion(2, r"\z"),
            // On ASCII: é is no part of a word.
            Some(b'b') => self.assertion(2, r"(?-u:\b)"),
            Some(b'B') => self.assertion(2, r"(?-u:\B)"),
            Some(b'Q') => {
                self.skip(2);
                let (quoted, rest) = self.rest.split_once(r"\E").unwrap_or((self.rest, ""));
                self.rest = rest;
                for c in quoted.chars() {
                    self.character(u32::from(c));
                }
            }
            _ => match self.set()? {
                Some(set) => self.text(&set),
                None => {
                    let code = self.escaped_character()?;
                    self.character(code);
                }
            },
        }
        Ok(())
    }

    /// Reads `\d`, `\pL` and the like, if that is what follows, and gives it in a form that can stand inside of a
    /// class and outside.
    fn set(&mut self) -> Step<Option<String>> {
        let set = match self.rest.as_bytes() {
            [b'\\', b'd', ..] => "[0-9]",
            [b'\\', b'D', ..] => "[^0-9]",
            // Without the vertical tab, which is in [[:space:]].
            [b'\\', b's', ..] => r"[\t\n\f\r ]",
            [b'\\', b'S', ..] => r"[^\t\n\f\r ]",
            [b'\\', b'w', ..] => "[0-9A-Za-z_]",
            [b'\\', b'W', ..] => "[^0-9A-Za-z_]",
            [b'\\', b'p' | b'P', ..] => return self.property().map(Some),
            _ => return Ok(None),
        };
        self.skip(2);
        Ok(Some(set.to_owned()))
    }

    /// Reads `\pL`, `\p{Greek}`, `\P{^Greek}`.
    fn property(&mut self) -> Step<String> {
        let here = self.rest;
        let mut negated = here.starts_with(r"\P");
        self.skip(2);
        let mut name = if self.eat("{") {
            let (name, rest) = self
                .rest
                .split_once('}')
                .ok_or_else(|| RegexpError::UnknownClass(excerpt(here)))?;
            self.rest = rest;
            name
        } else {
            let letter = self.rest;
            self.next();
            self.since(letter)
        };
        if let Some(rest) = name.strip_prefix('^') {
            name = rest;
            negated = !negated;
        }
        let property =
            property(name).ok_or_else(|| RegexpError::UnknownClass(excerpt(self.since(here))))?;
        Ok(match (property, negated) {
            (Property::None, false) => NEVER.to_owned(),
            (Property::None, true) => ALWAYS.to_owned(),
            (Property::Of(kind), false) => format!(r"\p{{{kind}={name}}}"),
            (Property::Of(kind), true) => format!(r"\P{{{kind}={name}}}"),
        })
    }

    /// Reads an escape that stands for one character.
    fn escaped_character(&mut self) -> Step<u32> {
        let here = self.rest;
        self.skip(1);
        let c = self.next().ok_or(RegexpError::TrailingBackslash)?;
        let code = match c {
            'a' => Some(0x07),
            'f' => Some(0x0C),
            'n' => Some(0x0A),
            'r' => Some(0x0D),
            't' => Some(0x09),
            'v' => Some(0x0B),
            'x' => self.hexadecimal(),
            // One digit that is not 0 would be a back-reference.
            '0' => Some(self.octal(0)),
            '1'..='7' if self.rest.starts_with(|c| matches!(c, '0'..='7')) => {
                Some(self.octal(u32::from(c) - u32::from('0')))
            }
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(u32::from(c)),
            _ => None,
        };
        code.ok_or_else(|| RegexpError::UnknownEscape(excerpt(self.since(here))))
    }

    /// Reads up to two more octal digits.
    fn octal(&mut self, mut code: u32) -> u32 {
        for _ in 0..2 {
            let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else {
                break;
            };
            self.skip(1);
            code = code * 8 + digit;
        }
        code
    }

    /// Reads `41` or `{1F600}`.
    fn hexadecimal(&mut self) -> Option<u32> {
        if !self.eat("{") {
            let high = self.next()?.to_digit(16)?;
            return Some(high * 16 + self.next()?.to_digit(16)?);
        }
        let mut code = 0;
        let mut digits = 0;
        loop {
            match self.next()? {
                '}' => return (digits > 0).then_some(code),
                c => code = code * 16 + c.to_digit(16)?,
            }
            if code > u32::from(char::MAX) {
                return None;
            }
            digits = 1;
        }
    }

    /// Reads a class in brackets. Every set in it is written as a class of its own, so that nothing between two of
    /// them is taken for an operator.
    fn class(&mut self) -> Step {
        let here = self.rest;
        self.skip(1);
        let negated = self.eat("^");
        let mut items = String::new();
        // A ] that comes first is the character.
        let mut first = true;
        loop {
            if !first && self.eat("]") {
                break;
            }
            first = false;
            if let Some(set) = self.posix()? {
                items.push_str(&set);
            } else if let Some(set) = self.set()? {
                items.push_str(&set);
            } else {
                self.range(here, &mut items)?;
            }
        }
        match (items.is_empty(), negated) {
            (true, false) => self.text(NEVER),
            (true, true) => self.text(ALWAYS),
            (false, false) => self.text(&format!("[{items}]")),
            (false, true) => self.text(&format!("[^{items}]")),
        }
        Ok(())
    }

    /// Reads `[:alpha:]` or `[:^alpha:]` inside of a class, if that is what follows.
    fn posix(&mut self) -> Step<Option<String>> {
        let Some((name, rest)) = self
            .rest
            .strip_prefix("[:")
            .and_then(|s| s.split_once(":]"))
        else {
            return Ok(None);
        };
        let here = std::mem::replace(&mut self.rest, rest);
        let (not, name) = name
            .strip_prefix('^')
            .map_or(("", name), |name| ("^", name));
        match POSIX.iter().find(|(known, _)| *known == name) {
            Some((_, set)) => Ok(Some(format!("[{not}{set}]"))),
            None => Err(RegexpError::UnknownClass(excerpt(self.since(here)))),
        }
    }

    /// Reads `a` or `a-z` inside of the class that begins at `class`.
    fn range(&mut self, class: &'p str, items: &mut String) -> Step {
        let here = self.rest;
        let low = self.class_character(class)?;
        let mut high = low;
        // In [a-] the - is the character.
        if let Some(rest) = self.rest.strip_prefix('-')
            && !rest.starts_with(']')
            && !rest.is_empty()
        {
            self.rest = rest;
            high = self.class_character(class)?;
            if high < low {
                return Err(RegexpError::ReversedRange(excerpt(self.since(here))));
            }
        }
        // Surrogates are left out: the nearest characters are before and behind them.
        let low = char::from_u32(low).unwrap_or('\u{E000}');
        let high = char::from_u32(high).unwrap_or('\u{D7FF}');
        if low <= high {
            push_char(items, low);
        }
        if low < high {
            items.push('-');
            push_char(items, high);
        }
        Ok(())
    }

    fn class_character(&mut self, class: &'p str) -> Step<u32> {
        if self.rest.starts_with('\\') {
            return self.escaped_character();
        }
        self.next()
            .map(u32::from)
            .ok_or_else(|| RegexpError::UnclosedClass(excerpt(class)))
    }
}

/// How often `{…}` repeats; `{2,}` has no `max`.
#[derive(Clone, Copy)]
struct Counts {
    min: u32,
    max: Option<u32>,
}

/// Reads `{2}`, `{2,}` or `{2,5}`; anything else is no repetition.
fn counts(text: &str) -> Option<(Counts, &str)> {
    let (min, rest) = number(text.strip_prefix('{')?)?;
    if let Some(rest) = rest.strip_prefix('}') {
        let max = Some(min);
        return Some((Counts { min, max }, rest));
    }
    let rest = rest.strip_prefix(',')?;
    if let Some(rest) = rest.strip_prefix('}') {
        return Some((Counts { min, max: None }, rest));
    }
    let (max, rest) = number(rest)?;
    let max = Some(max);
    Some((Counts { min, max }, rest.strip_prefix('}')?))
}

/// Reads a decimal number without leading zeros. One that is too large is the largest.
fn number(text: &str) -> Option<(u32, &str)> {
    let len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, rest) = text.split_at(len);
    if digits.is_empty() || (len > 1 && digits.starts_with('0')) {
        return None;
    }
    Some((digits.parse().unwrap_or(u32::MAX), rest))
}

/// The characters of a Unicode property.
enum Property {
    /// None that stand in a text.
    None,
    /// Those whose `gc` or `sc` it names.
    Of(&'static str),
}

/// Finds a category or a script. The engine knows other properties too (`\p{Alphabetic}`, `\p{Age=6.0}`), under names
/// that RE2 refuses or, one day, may understand otherwise.
fn property(name: &str) -> Option<Property> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b' ');
    let folded = || name.bytes().filter(u8::is_ascii_alphanumeric);
    let is = |other: &str| folded().map(|b| b.to_ascii_lowercase()).eq(other.bytes());
    // The engine would skip a leading "is".
    let prefixed = folded().take(2).map(|b| b.to_ascii_lowercase()).eq(*b"is");
    if name.is_empty() || !name.bytes().all(plain) || prefixed {
        return None;
    }
    if is("cs") || is("surrogate") {
        return Some(Property::None);
    }
    ["gc", "sc"]
        .into_iter()
        .find(|kind| Regex::new(&format!(r"\p{{{kind}={name}}}")).is_ok())
        .map(Property::Of)
}

/// Writes a character so that it means itself, inside of a class and outside.
fn push_char(out: &mut String, c: char) {
    // Exactly what the engine lets be escaped: `\<` would be the start of a word.
    if r"\.+*?()|[]{}^$#&-~".contains(c) {
        out.push('\\');
    }
    out.push(c);
}

fn strip_any<'p>(text: &'p str, prefixes: &[&str]) -> Option<&'p str> {
    prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// The part of a pattern that is shown in a message.
fn excerpt(text: &str) -> Box<str> {
    match text.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

const MAX_EXCERPT: usize = 40;
const MAX_COPIES: u32 = 1000;
/// As deep as the engine itself goes, which recurses while it compiles.
const MAX_DEPTH: usize = 250;
const NEVER: &str = r"[^\x{0}-\x{10FFFF}]";
const ALWAYS: &str = r"[\x{0}-\x{10FFFF}]";

const POSIX: &[(&str, &str)] = &[
    ("alnum", "0-9A-Za-z"),
    ("alpha", "A-Za-z"),
    ("ascii", r"\x00-\x7F"),
    ("blank", r"\t "),
    ("cntrl", r"\x00-\x1F\x7F"),
    ("digit", "0-9"),
    ("graph", "!-~"),
    ("lower", "a-z"),
    ("print", " -~"),
    ("punct", r"!-/:-@\[-`\{-~"),
    ("space", r"\t\n\x0B\f\r "),
    ("upper", "A-Z"),
    ("word", "0-9A-Za-z_"),
    ("xdigit", "0-9A-Fa-f"),
];
