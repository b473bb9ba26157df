//! What things are called towards the user: types, values, and the nearest name to a misspelt one.

use rhai::{Dynamic, Engine, NativeCallContext};

/// The candidate most like `name`, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates {
        if candidate == name {
            continue;
        }
        let other = candidate.to_lowercase();
        let mut score = strsim::normalized_damerau_levenshtein(&wanted, &other);
        // `alpha` for `lora_alpha`: too far by letters, near by parts.
        // `cat` in `frobnicate` is chance: what is contained must be more than a third of the whole.
        let (short, long) = (wanted.len().min(other.len()), wanted.len().max(other.len()));
        let contained = short >= 3 && 3 * short > long && (other.contains(&wanted) || wanted.contains(&other));
        if contained {
            score = score.max(0.6) + 0.1;
        }
        // Short names have few letters to get right; one wrong letter of three is still a slip.
        let enough = if wanted.chars().count() <= 4 { 0.5 } else { 0.62 };
        if score >= enough && best.is_none_or(|(top, _)| score > top) {
            best = Some((score, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// A Rust or Rhai type name in the words of the language: `int`, `string`, `map`, `Model`.
pub(crate) fn type_name(name: &str) -> String {
    let name = name.trim().trim_start_matches("&mut ").trim_start_matches('&').trim();
    // Rhai tells texts as `&str | ImmutableString | String`.
    if name.contains("| ImmutableString") {
        return "string".to_string();
    }
    let plain = match name {
        "i64" | "INT" | "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "isize" | "i128" | "u128" => {
            "int"
        }
        "f64" | "FLOAT" | "f32" => "float",
        "str"
        | "String"
        | "ImmutableString"
        | "&str | ImmutableString | String"
        | "string"
        | "alloc::string::String"
        | "rhai::types::immutable_string::ImmutableString" => "string",
        "Array" | "array" | "rhai::Array" => "array",
        "Map" | "map" | "rhai::Map" => "map",
        "FnPtr" | "Fn" | "rhai::FnPtr" => "function",
        "Dynamic" | "?" | "rhai::Dynamic" | "_" => "any",
        "()" => "()",
        "RangeInclusive<i64>" | "range=" | "InclusiveRange" => "range",
        "Range<i64>" | "range" | "ExclusiveRange" => "range",
        "Blob" | "blob" => "blob",
        "Instant" | "timestamp" => "timestamp",
        _ => "",
    };
    if !plain.is_empty() {
        return plain.to_string();
    }
    if name.contains("Range") {
        return "range".to_string();
    }
    if let Some(inner) = name.strip_prefix("Result<").or_else(|| name.strip_prefix("RhaiResultOf<")) {
        let inner = inner.split(", Box<").next().unwrap_or(inner).trim_end_matches('>');
        return type_name(inner);
    }
    // `Vec<a::b::Tensor>` and the like: no Rust paths.
    let base = name.split('<').next().unwrap_or(name);
    match base.rsplit("::").next().unwrap_or(base) {
        "Vec" => "array".to_string(),
        last => last.to_string(),
    }
}

/// The type of `value`.
pub(crate) fn type_of(engine: &Engine, value: &Dynamic) -> String {
    type_name(engine.map_type_name(value.type_name()))
}

/// The type of `value`, with the value itself when it is short: `string "8"`, `int 3`, `map`.
pub(crate) fn describe(engine: &Engine, value: &Dynamic) -> String {
    let kind = type_of(engine, value);
    let short = |text: String| if text.chars().count() <= 40 { format!("{kind} {text}") } else { kind.clone() };
    match kind.as_str() {
        "string" => short(format!("{:?}", value.to_string())),
        "int" | "bool" => short(value.to_string()),
        "float" => short(value.as_float().map_or_else(|_| value.to_string(), |number| format!("{number:?}"))),
        "()" => "(), which is no value".to_string(),
        _ => kind,
    }
}

/// "an int", "a string", "an array of int".
pub(crate) fn with_article(kind: &str) -> String {
    match kind {
        "()" | "anything" => kind.to_string(),
        _ if kind.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O']) => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

/// How many arguments the script's functions called `function` take; empty for natives and unknown ones.
pub(crate) fn arities(context: &NativeCallContext<'_>, function: &str) -> Vec<usize> {
    context.engine().collect_fn_metadata(
        Some(context),
        |info| match info.script {
            Some(script) if script.name == function => Some(script.params.len()),
            _ => None,
        },
        false,
    )
}
