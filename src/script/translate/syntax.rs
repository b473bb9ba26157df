//! Texts that are not Rhai.

use rhai::{LexError, ParseErrorType};

use super::{At, Translator, lowercase};
use crate::script::failure::{Failure, Kind};
use crate::script::text::{self, Lexeme, lexemes};

impl Translator<'_> {
    pub(super) fn syntax(&self, error: &ParseErrorType, at: &At<'_>) -> Failure {
        let told = |message: String| Failure::new(Kind::Recipe, message);
        let failure = match error {
            ParseErrorType::VariableUndefined(name) => {
                let failure = self.unknown_variable(name, at);
                let habit =
                    if failure.hints.is_empty() { self.variable_habit(at).or_else(|| self.habit(at)) } else { None };
                return match habit {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                };
            }
            ParseErrorType::ModuleUndefined(name) => return self.unknown_module(name, at),
            ParseErrorType::UnexpectedEOF => {
                told("the script ends in the middle of something".to_string()).hint("is a `}`, `)` or `\"` missing?")
            }
            ParseErrorType::BadInput(LexError::MalformedChar(_)) => {
                told("single quotes hold one character".to_string()).hint("write texts with double quotes: \"text\"")
            }
            ParseErrorType::BadInput(LexError::UnterminatedString) => {
                return self.open_string(at);
            }
            ParseErrorType::BadInput(LexError::ImproperSymbol(word, _)) if word == "eval" => {
                told("`eval` is not part of the language".to_string())
            }
            ParseErrorType::BadInput(LexError::ImproperSymbol(symbol, text)) if text.is_empty() => {
                told(format!("`{symbol}` is no symbol of the language"))
            }
            ParseErrorType::BadInput(LexError::UnexpectedInput(symbol)) => {
                let failure = told(format!("`{symbol}` means nothing here"));
                if symbol.starts_with('#') { failure.hint("comments start with `//`") } else { failure }
            }
            ParseErrorType::BadInput(lexical) => told(lowercase(&lexical.to_string()).replace('\'', "`")),
            ParseErrorType::Reserved(symbol) if !symbol.starts_with(char::is_alphabetic) => {
                told(format!("`{symbol}` means nothing here"))
            }
            ParseErrorType::PropertyExpected => told("the name of a property or a method is expected".to_string()),
            ParseErrorType::Reserved(word) => told(format!("`{word}` is a reserved word")),
            ParseErrorType::ForbiddenVariable(name) => told(format!("`{name}` cannot be the name of a variable")),
            ParseErrorType::AssignmentToConstant(name) if !name.is_empty() => {
                told(format!("cannot assign to the constant `{name}`")).hint("declare it with `let` instead of `const`")
            }
            ParseErrorType::DuplicatedProperty(name) => told(format!("key `{name}` stands twice in the map")),
            ParseErrorType::FnDuplicatedDefinition(name, count) => {
                told(format!("function `{name}` with {count} parameters is defined twice"))
            }
            ParseErrorType::WrongFnDefinition => told("functions are defined at the top level".to_string())
                .hint("inside a block, write a closure: `let f = |x| x + 1;`"),
            ParseErrorType::WrongDocComment => told("a `///` comment belongs right before a function".to_string())
                .hint("other comments start with `//`"),
            ParseErrorType::ExprTooDeep => told("the expression is nested too deep".to_string()),
            ParseErrorType::LoopBreak => told("`break` and `continue` belong in a loop".to_string()),
            ParseErrorType::MissingToken(token, why) => {
                told(format!("expected `{token}` {}", why.replace('\'', "`")).trim_end().to_string())
            }
            ParseErrorType::MismatchedType(wanted, given) if wanted.contains("iterable") => {
                told(format!("`for` cannot go through {given}")).hint("go through a range: `for i in 0..3 { … }`")
            }
            ParseErrorType::MismatchedType(wanted, given) => told(format!("{wanted} is wanted here, got {given}")),
            other => told(lowercase(&other.to_string()).replace('\'', "`")),
        };
        match self.habit(at) {
            Some(hint) => Failure { hints: vec![hint], ..failure },
            None => failure,
        }
    }

    /// What an unknown name at this place looks like in other languages: `f(lr=1)`, `f"…"`.
    fn variable_habit(&self, at: &At<'_>) -> Option<String> {
        let place = self.sources.place(at.source, at.position, None)?;
        let name = place.text.get(place.span.clone())?;
        let mut next = lexemes(place.text.get(place.span.end..)?).into_iter();
        match (next.next()?, next.next()) {
            ((Lexeme::Symbol('='), _), after)
                if !matches!(after, Some((Lexeme::Symbol('='), _))) && inside_call(&place.text, place.span.start) =>
            {
                Some(format!("named options go in a map: `f(#{{ {name}: … }})`"))
            }
            ((Lexeme::Text, text), _) if text.start == 0 && ["f", "r", "b"].contains(&name) => {
                Some("put values into a text by back quotes: `` `loss ${loss}` ``".to_string())
            }
            _ => None,
        }
    }

    /// What the text at the place of a syntax error looks like in other languages.
    fn habit(&self, at: &At<'_>) -> Option<String> {
        let text = self.sources.text(at.source)?;
        let line = at.position.line()?;
        let offset = text::offset(&text, line, at.position.position().unwrap_or(1))?;
        let start = text[..offset].rfind('\n').map_or(0, |at| at + 1);
        let end = text[offset..].find('\n').map_or(text.len(), |length| offset + length);
        let here = text.get(start..end)?;
        let word = text.get(text::word_at(&text, offset))?;
        let before = text::before(&text, offset).map(|(_, span)| &text[span]);
        let first = here.split_whitespace().next().unwrap_or("");
        let said = |hint: &str| Some(hint.to_string());
        match word {
            "and" => return said("write `&&`"),
            "or" => return said("write `||`"),
            "not" => return said("write `!`"),
            "elif" => return said("write `else if`"),
            "is" => return said("write `==`"),
            "#" => return said("comments start with `//`"),
            _ => {}
        }
        match first {
            "def" => return said("a function is written `fn name(a, b) { … }`"),
            "elif" | "elif:" => return said("write `} else if … {`"),
            "import" if !here.contains('"') => return said("an import is written `import \"std/report\" as report;`"),
            "from" => return said("an import is written `import \"std/report\" as report;`"),
            "class" => return said("there are no classes: a map holds values, `fn` makes functions"),
            "var" => return said("a variable is declared by `let`"),
            _ => {}
        }
        // f(lr=1): Rhai takes `lr = 1` for an assignment where only values stand.
        if word == "=" && inside_call(&text, offset) {
            let name = before.unwrap_or("name");
            return Some(format!("named options go in a map: `f(#{{ {name}: … }})`"));
        }
        if word == ":" || here.trim_end().ends_with(':') {
            let block = ["for", "if", "while", "else", "else:", "try:", "with"].contains(&first);
            if block {
                return said("a block stands in braces: `for x in xs { … }`, `if a > b { … }`");
            }
            if word == ":" && !here.contains("#{") {
                return said("a map is written `#{ key: value }`; a part of an array, `xs[1..3]`");
            }
        }
        if before == Some("lambda") {
            return said("a closure is written `|x| x + 1`");
        }
        if before == Some("not") {
            return said("write `!`");
        }
        if before == Some(".") && ["eval", "default", "new", "with", "match", "is"].contains(&word) {
            return said(match word {
                "eval" => "write `for_inference()`",
                _ => "this word is kept by the language and cannot be a name",
            });
        }
        None
    }

    /// A string that was never closed: Rhai points at its end, the user wants its beginning.
    fn open_string(&self, at: &At<'_>) -> Failure {
        Failure::new(Kind::Recipe, "a string is not closed".to_string()).hint(match self.sources.text(at.source) {
            Some(text) if text.contains("\"\"\"") => "a text of several lines stands in back quotes: `` `…` ``",
            _ => "close it with the quote it began with; a text of several lines stands in back quotes",
        })
    }
}

/// Is `offset` within round brackets that belong to a call?
fn inside_call(text: &str, offset: usize) -> bool {
    let mut open = Vec::new();
    let mut last_is_name = false;
    for (lexeme, span) in lexemes(text) {
        if span.start >= offset {
            break;
        }
        match lexeme {
            Lexeme::Symbol(c @ ('(' | '[' | '{')) => open.push(c == '(' && last_is_name),
            Lexeme::Symbol(')' | ']' | '}') => {
                open.pop();
            }
            _ => {}
        }
        last_is_name = lexeme == Lexeme::Word;
    }
    open.last() == Some(&true)
}
