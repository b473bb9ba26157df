//! Finding things again in the text of a script. Rhai gives points (line, column); a report wants words and keys.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lexeme {
    Word,
    Number,
    Text,
    Symbol(char),
}

/// Splits `text` into words, numbers, string literals and single symbols; comments and blanks are dropped.
///
/// Forgiving: anything at all can be read, also text that Rhai refuses. An open string ends with the text.
pub(crate) fn lexemes(text: &str) -> Vec<(Lexeme, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let (lexeme, length) = if c.is_whitespace() {
            (None, c.len_utf8())
        } else if rest.starts_with("//") {
            (None, rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (None, rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else if c == '"' || c == '\'' {
            (Some(Lexeme::Text), quoted(rest, c))
        } else if c == '`' {
            (Some(Lexeme::Text), template(rest))
        } else if c.is_alphabetic() || c == '_' || c == '$' {
            (Some(Lexeme::Word), word_length(rest))
        } else if c.is_ascii_digit() {
            (Some(Lexeme::Number), number(rest))
        } else {
            (Some(Lexeme::Symbol(c)), c.len_utf8())
        };
        if let Some(lexeme) = lexeme {
            found.push((lexeme, at..at + length));
        }
        at += length;
    }
    found
}

fn word_length(rest: &str) -> usize {
    rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len())
}

fn number(rest: &str) -> usize {
    let whole = word_length(rest);
    let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    match rest[whole..].strip_prefix('.') {
        Some(fraction) if digits(fraction) => whole + 1 + word_length(fraction),
        _ => whole,
    }
}

/// The length of a string that starts with `quote`, escapes included.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' if quote == '\'' => return at,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// The length of a back-quoted string; what stands in `${…}` may hold strings again.
fn template(rest: &str) -> usize {
    let mut at = 1;
    let mut braces = 0_usize;
    while let Some(c) = rest[at..].chars().next() {
        let tail = &rest[at..];
        at += match c {
            '`' if braces == 0 => return at + 1,
            '`' => template_inside(tail),
            '"' | '\'' if braces > 0 => quoted(tail, c),
            '$' if braces == 0 && tail.starts_with("${") => {
                braces = 1;
                2
            }
            '{' if braces > 0 => {
                braces += 1;
                1
            }
            '}' if braces > 0 => {
                braces -= 1;
                1
            }
            _ => c.len_utf8(),
        };
    }
    rest.len()
}

/// A back-quoted string within `${…}`: read without its own nesting, so that hostile text cannot recurse.
fn template_inside(rest: &str) -> usize {
    rest[1..].find('`').map_or(rest.len(), |end| end + 2)
}

/// The byte offset of a 1-based line and character column.
pub(crate) fn offset(text: &str, line: usize, column: usize) -> Option<usize> {
    let mut start = 0;
    for _ in 1..line {
        start += text[start..].find('\n')? + 1;
    }
    let end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    let within = &text[start..end];
    let skipped = column.saturating_sub(1);
    Some(within.char_indices().nth(skipped).map_or(end, |(at, _)| start + at))
}

/// The 1-based line and character column of a byte offset.
pub(crate) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (line, before[start..].chars().count() + 1)
}

/// The lexeme at or right after `offset`, on the same line; empty at the end of a line.
pub(crate) fn word_at(text: &str, offset: usize) -> Range<usize> {
    let end_of_line = text[offset..].find('\n').map_or(text.len(), |length| offset + length);
    lexemes(&text[offset..end_of_line])
        .first()
        .map_or(offset..offset, |(_, span)| offset + span.start..offset + span.end)
}

/// The lexeme before `offset`, if any.
pub(crate) fn before(text: &str, offset: usize) -> Option<(Lexeme, Range<usize>)> {
    lexemes(text).into_iter().take_while(|(_, span)| span.end <= offset).last()
}

/// The key `key` of a map literal among the arguments of the call whose name stands at `offset`.
pub(crate) fn option_key(text: &str, offset: usize, key: &str) -> Option<Range<usize>> {
    let tokens = lexemes(&text[offset..]);
    let symbol = |at: usize| match tokens.get(at) {
        Some((Lexeme::Symbol(c), _)) => Some(*c),
        _ => None,
    };
    let open = (0..tokens.len()).find(|at| symbol(*at) == Some('('))?;
    let (mut round, mut curly) = (0_usize, 0_usize);
    for at in open..tokens.len() {
        match symbol(at) {
            Some('(' | '[') => round += 1,
            Some(')' | ']') => {
                round = round.saturating_sub(1);
                if round == 0 {
                    return None;
                }
            }
            Some('{') => curly += 1,
            Some('}') => curly = curly.saturating_sub(1),
            _ => {
                let (lexeme, span) = tokens.get(at)?;
                let word = &text[offset + span.start..offset + span.end];
                let named = match lexeme {
                    Lexeme::Word => word == key,
                    Lexeme::Text => word.trim_matches('"') == key,
                    _ => false,
                };
                let is_key = matches!(symbol(at.wrapping_sub(1)), Some('{' | ',')) && symbol(at + 1) == Some(':');
                if named && is_key && round == 1 && curly == 1 {
                    return Some(offset + span.start..offset + span.end);
                }
            }
        }
    }
    None
}
