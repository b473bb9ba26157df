//! Habits from other languages, and names that stand where they cannot be seen.

use crate::script::text::{Lexeme, lexemes};

/// What to write instead of a name that Rhai does not have.
pub(super) fn variable(name: &str) -> Option<&'static str> {
    Some(match name {
        "None" | "null" | "nil" | "undefined" => "nothing is written `()`",
        "True" => "write `true`",
        "False" => "write `false`",
        "self" => "a method's own value is `this`",
        "and" => "write `&&`",
        "or" => "write `||`",
        "not" => "write `!`",
        "elif" => "write `else if`",
        "lambda" => "a closure is written `|x| x + 1`",
        "inf" | "nan" => "there is no such number here: use a large one, like `1e30`",
        "pi" | "math" => "it is written `PI()`",
        _ => return None,
    })
}

/// What to write instead of a call that Rhai does not have.
pub(super) fn call(name: &str, types: &[String], method: bool) -> Option<String> {
    let one = types.len() == 1;
    Some(match (name, method) {
        ("range", false) if one => "write `0..n`: `for i in 0..3 { … }`".to_string(),
        ("str", false) => "write `x.to_string()`, or put values into a text: `` `loss ${x}` ``".to_string(),
        ("int", false) => "write `x.to_int()`, for a text `parse_int(x)`".to_string(),
        ("float", false) => "write `x.to_float()`, for a text `parse_float(x)`".to_string(),
        ("enumerate", false) => "write `for (x, i) in xs { … }`: the value first, then the counter".to_string(),
        ("zip", _) => "go through one of them with a counter: `for (x, i) in xs { ys[i] }`".to_string(),
        ("list", false) => "an array is written `[1, 2, 3]`".to_string(),
        ("dict", false) => "a map is written `#{ a: 1, b: 2 }`".to_string(),
        ("type", false) => "write `type_of(x)`".to_string(),
        ("isinstance", false) => "write `type_of(x) == \"string\"`".to_string(),
        ("open", false) => "a recipe opens no files; datasets and models read theirs by path".to_string(),
        ("sum", false) => "write `xs.reduce(|sum, x| sum + x, 0)`".to_string(),
        ("map" | "filter", false) => format!("it is a method: `xs.{name}(|x| …)`"),
        ("print", false) if types.len() > 1 => "`print` takes one text: `` print(`loss ${loss}`) ``".to_string(),
        ("append", true) => "write `push`; to add a whole array, `+=`".to_string(),
        ("items", true) => "write `for key in map.keys() { map[key] }`".to_string(),
        ("join", true) => "write `xs.reduce(|text, x| text + x, \"\")`".to_string(),
        ("format", true) => "put values into a text by back quotes: `` `loss ${loss}` ``".to_string(),
        ("eval", true) => "write `for_inference()`".to_string(),
        ("item", true) if types.first().is_some_and(|kind| kind == "float" || kind == "int") => {
            "it is a number already".to_string()
        }
        _ => return None,
    })
}

/// The names declared around a place in the text.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// The named function that the place is in.
    pub function: Option<String>,
    /// Declared before, in the same function (or outside of all).
    pub inside: Vec<String>,
    /// Declared outside of the function that the place is in.
    pub outside: Vec<String>,
    /// Declared after the place.
    pub later: Vec<String>,
}

/// Reads names off the text: close enough for hints, and it works on text that does not compile.
pub(super) fn declared(text: &str, offset: usize) -> Declared {
    let tokens = lexemes(text);
    let word = |at: usize| match tokens.get(at) {
        Some((Lexeme::Word, span)) => text.get(span.clone()),
        _ => None,
    };
    let symbol = |at: usize| match tokens.get(at) {
        Some((Lexeme::Symbol(c), _)) => Some(*c),
        _ => None,
    };
    let mut found = Declared::default();
    // Functions are at the top level: one is open at a time, until its braces close.
    let mut function: Option<(String, usize, Vec<String>)> = None;
    let mut braces = 0_usize;
    let mut top = Vec::new();
    for (at, (lexeme, span)) in tokens.iter().enumerate() {
        let after = span.start >= offset;
        let mut names: Vec<String> = Vec::new();
        match (lexeme, word(at)) {
            (Lexeme::Symbol('{'), _) => braces += 1,
            (Lexeme::Symbol('}'), _) => {
                braces = braces.saturating_sub(1);
                if function.as_ref().is_some_and(|(_, depth, _)| braces == *depth) && !after {
                    function = None;
                }
            }
            (Lexeme::Symbol('|'), _) => names.extend(parameters(text, &tokens, at, '|')),
            (_, Some("let" | "const")) => names.extend(word(at + 1).map(str::to_string)),
            (_, Some("for")) if symbol(at + 1) == Some('(') => {
                names.extend([word(at + 2), word(at + 4)].into_iter().flatten().map(str::to_string));
            }
            (_, Some("for")) => names.extend(word(at + 1).map(str::to_string)),
            (_, Some("catch")) => names.extend(word(at + 2).map(str::to_string)),
            (_, Some("fn")) if !after => {
                if let Some(name) = word(at + 1) {
                    function = Some((name.to_string(), braces, parameters(text, &tokens, at + 2, ')')));
                }
            }
            _ => {}
        }
        match (&mut function, after) {
            (_, true) => found.later.append(&mut names),
            (Some((_, _, own)), false) => own.append(&mut names),
            (None, false) => top.append(&mut names),
        }
    }
    match function {
        Some((name, _, own)) => {
            found.function = Some(name);
            found.inside = own;
            found.outside = top;
            found.outside.extend(found.later.iter().cloned());
        }
        None => found.inside = top,
    }
    found
}

/// The words between the symbol at `from` and the next `end`.
fn parameters(text: &str, tokens: &[(Lexeme, std::ops::Range<usize>)], from: usize, end: char) -> Vec<String> {
    let list = tokens.iter().skip(from + 1);
    list.take_while(|(lexeme, _)| match lexeme {
        Lexeme::Word => true,
        Lexeme::Symbol(c) => *c == ',' && *c != end,
        _ => false,
    })
    .filter(|(lexeme, _)| *lexeme == Lexeme::Word)
    .filter_map(|(_, span)| text.get(span.clone()).map(str::to_string))
    .collect()
}
