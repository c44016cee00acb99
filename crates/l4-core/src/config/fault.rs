//! What can be wrong with a value, said in words of JSON.

use std::fmt::{self, Display};

use serde::de::{self, Expected, Unexpected};

use super::document::{Document, Node, Value};
use super::error::{ConfigError, shortened};
use super::suggest::closest;

/// What went wrong, and where as soon as that is known. Boxed, as it passes through many frames.
#[derive(Debug)]
pub(super) struct Fault(Box<Unplaced>);

#[derive(Debug)]
struct Unplaced {
    problem: Problem,
    place: Option<Place>,
}

#[derive(Copy, Clone, Debug)]
pub(super) enum Place {
    Value(Node),
    Key(Node),
}

#[derive(Debug)]
pub(super) enum Problem {
    Other(String),
    /// `found` is what serde saw, which for a value is replaced by what the text says.
    Type {
        expected: String,
        found: Option<String>,
    },
    UnknownField {
        name: String,
        valid: &'static [&'static str],
    },
    UnknownValue {
        name: String,
        valid: &'static [&'static str],
    },
    MissingField(&'static str),
}

impl Fault {
    pub(super) fn new(problem: Problem) -> Self {
        Self(Box::new(Unplaced {
            problem,
            place: None,
        }))
    }

    pub(super) fn length(found: usize, expected: String) -> Self {
        Self::new(Problem::Other(format!(
            "expected {expected}, found {found}"
        )))
    }

    pub(super) fn problem(&self) -> &Problem {
        &self.0.problem
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.0.place
    }

    pub(super) fn node(&self) -> Option<Node> {
        self.0
            .place
            .map(|(Place::Value(node) | Place::Key(node))| node)
    }

    /// Takes the place on, unless a more inner one is known.
    pub(super) fn at_value(mut self, document: &Document, node: Node) -> Self {
        if self.0.place.is_none() {
            self.0.place = Some(Place::Value(node));
            if let Problem::Type { found, .. } = &mut self.0.problem {
                *found = Some(describe(document, node));
            }
        }
        self
    }

    pub(super) fn at_key(mut self, node: Node) -> Self {
        self.0.place.get_or_insert(Place::Key(node));
        self
    }

    pub(super) fn into_error(self, document: &Document, node: Node) -> ConfigError {
        let message = self.to_string();
        let error = match self.0.place {
            Some(Place::Key(_)) => document.key_error(node, message),
            Some(Place::Value(_)) | None => document.error(node, message),
        };
        match self.0.problem {
            Problem::UnknownField { valid: [], .. } => error.help("no fields are known here"),
            Problem::UnknownField { valid, .. } if valid.len() <= MAX_LISTED => {
                error.help(format!("valid fields: {}", valid.join(", ")))
            }
            Problem::UnknownValue { valid, .. } if valid.len() <= MAX_LISTED => {
                error.help(format!("valid values: {}", valid.join(", ")))
            }
            _ => error,
        }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.problem {
            Problem::Other(message) => f.write_str(message),
            Problem::Type { expected, found } => {
                let found = found.as_deref().unwrap_or("something else");
                write!(f, "expected {expected}, found {found}")
            }
            Problem::UnknownField { name, valid } => {
                write!(f, "unknown field {:?}", shortened(name))?;
                suggest(f, name, valid, "field names")
            }
            Problem::UnknownValue { name, valid } => {
                write!(f, "unknown value {:?}", shortened(name))?;
                suggest(f, name, valid, "values")
            }
            Problem::MissingField(field) => write!(f, "missing field {field:?}"),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(Problem::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = plain_type(&expected.to_string());
        Self::new(Problem::Type {
            expected,
            found: Some(plain_found(found)),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (expected, found) = (plain_value(&expected.to_string()), plain_found(found));
        Self::new(Problem::Other(format!(
            "expected {expected}, found {found}"
        )))
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::length(length, plain_type(&expected.to_string()))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownValue {
            name: variant.to_owned(),
            valid: expected,
        })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownField {
            name: field.to_owned(),
            valid: expected,
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Problem::MissingField(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::custom(format_args!("field {field:?} is given under two names"))
    }
}

/// Writes ` (did you mean "x"?)`, or nothing. `kind` says what is case-sensitive.
fn suggest(f: &mut fmt::Formatter<'_>, name: &str, valid: &[&str], kind: &str) -> fmt::Result {
    match closest(name, valid.iter().copied()) {
        None => Ok(()),
        Some(near) if near.to_lowercase() == name.to_lowercase() => {
            write!(f, " ({kind} are case-sensitive, write {near:?})")
        }
        Some(near) => write!(f, " (did you mean {near:?}?)"),
    }
}

/// What stands at a node, in words.
fn describe(document: &Document, node: Node) -> String {
    match document.value(node) {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(literal) => format!("the number {}", shortened(literal)),
        Value::String(text) => format!("the string {:?}", shortened(text)),
        Value::Array => "a list".to_owned(),
        Value::Object => "an object".to_owned(),
    }
}

/// What a visitor refused, in words.
fn plain_found(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Char(c) => format!("the string {:?}", c.to_string()),
        Unexpected::Str(text) => format!("the string {:?}", shortened(text)),
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq | Unexpected::TupleVariant => "a list".to_owned(),
        Unexpected::Map | Unexpected::StructVariant => "an object".to_owned(),
        Unexpected::UnitVariant => "only a name".to_owned(),
        Unexpected::Other(other) => other.to_owned(),
        _ => "another type of value".to_owned(),
    }
}

/// What a visitor expected, in words of JSON instead of Rust.
pub(super) fn plain_type(expected: &str) -> String {
    let plain = match expected {
        "i8" | "i16" | "i32" | "i64" | "isize" | "u8" | "u16" | "u32" | "u64" | "usize" => {
            "an integer"
        }
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "an empty array" => "an empty list",
        "a map" => "an object",
        "unit" => "null",
        "option" => "a value or null",
        "a character" => "a string of one character",
        "a borrowed string"
        | "path string"
        | "a borrowed path"
        | "os string"
        | "byte array"
        | "a borrowed byte array"
        | "field identifier"
        | "variant identifier" => "a string",
        _ => return plain_composite(expected),
    };
    plain.to_owned()
}

/// Expectations that end in a type's name or a length.
fn plain_composite(expected: &str) -> String {
    let words: Vec<&str> = expected.split(' ').collect();
    match *words.as_slice() {
        ["a", "nonzero", _] => "an integer other than 0".to_owned(),
        ["struct", _] | ["struct", "variant", _] | ["unit", "struct", _] => "an object".to_owned(),
        ["enum", _] => "a string".to_owned(),
        ["tuple", "struct", _] | ["tuple", "variant", _] => "a list".to_owned(),
        ["a", "tuple", "of", "size", n] | ["an", "array", "of", "length", n] => {
            format!("a list of {n} items")
        }
        [.., "with", n, "element" | "elements"] => format!("a list of {n} items"),
        _ => expected.to_owned(),
    }
}

/// As [`plain_type`], for a value of the right type: a range says more than "an integer".
fn plain_value(expected: &str) -> String {
    match expected {
        "i8" => in_range((i8::MIN, i8::MAX)),
        "i16" => in_range((i16::MIN, i16::MAX)),
        "i32" => in_range((i32::MIN, i32::MAX)),
        "i64" | "isize" => in_range((i64::MIN, i64::MAX)),
        "u8" => in_range((u8::MIN, u8::MAX)),
        "u16" => in_range((u16::MIN, u16::MAX)),
        "u32" => in_range((u32::MIN, u32::MAX)),
        "u64" | "usize" => in_range((u64::MIN, u64::MAX)),
        _ => plain_type(expected),
    }
}

pub(super) fn in_range((least, greatest): (impl Display, impl Display)) -> String {
    format!("an integer from {least} to {greatest}")
}

/// Longer lists of valid names are left to the reference pages.
const MAX_LISTED: usize = 32;
