//! What a recipe tells about itself, for people and for programs.

use std::fmt::Write;

use rhai::AST;
use serde_json::{Map, Value as Json, json};

use super::param::{Kind, Parameter};
use super::{Result, extract};

/// A recipe, unrun.
#[derive(Clone, Debug)]
pub struct Description {
    /// As the user named it.
    pub recipe: String,
    /// The `//!` lines.
    pub doc: String,
    pub parameters: Vec<Parameter>,
    pub imports: Vec<String>,
}

impl Description {
    /// Reads the description off `ast`, or tells the first parameter that is declared wrongly.
    pub fn new(recipe: &str, ast: &AST) -> Result<Self> {
        let strip = |line: &str| {
            let line = line.trim_start().trim_start_matches("//!");
            line.strip_prefix(' ').unwrap_or(line).trim_end().to_string()
        };
        let doc = ast.doc().lines().map(strip).collect::<Vec<_>>().join("\n").trim().to_string();
        let parameters = extract::parameters(ast)?;
        Ok(Self { recipe: recipe.to_string(), doc, parameters, imports: extract::imports(ast) })
    }

    /// The table of `--help`.
    pub fn parameter_table(&self) -> String {
        let rows: Vec<[String; 5]> = self.parameters.iter().map(row).collect();
        let mut widths = [0; 4];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut table = String::new();
        for row in &rows {
            let mut line = String::from(" ");
            for (at, cell) in row.iter().enumerate() {
                match widths.get(at) {
                    Some(0) => {}
                    Some(width) => {
                        let _ = write!(line, " {cell:width$} ");
                    }
                    None => {
                        let _ = write!(line, " {cell}");
                    }
                }
            }
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }

    /// The description as a JSON Schema of the recipe's parameters.
    pub fn to_json(&self) -> Json {
        let properties: Map<String, Json> = self.parameters.iter().map(|p| (p.name.clone(), property(p))).collect();
        let required: Vec<&str> =
            self.parameters.iter().filter(|p| p.default.is_none()).map(|p| p.name.as_str()).collect();
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.recipe,
            "description": self.doc,
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
            "x-imports": self.imports,
        })
    }
}

fn row(parameter: &Parameter) -> [String; 5] {
    let default = match &parameter.default {
        None => "required".to_string(),
        Some(value) if parameter.unit.is_empty() => value.to_string(),
        Some(value) => format!("{value} {}", parameter.unit),
    };
    let kind = if parameter.choices.is_empty() { parameter.kind.to_string() } else { "choice".to_string() };
    [parameter.name.clone(), kind, default, parameter.range_text(), parameter.help.clone()]
}

fn property(parameter: &Parameter) -> Json {
    let mut property = Map::new();
    let mut put = |name: &str, value: Json| {
        property.insert(name.to_string(), value);
    };
    let number = |bound: f64| match parameter.kind {
        Kind::Int if bound.fract() == 0.0 => json!(bound as i64),
        _ => json!(bound),
    };
    put(
        "type",
        match parameter.kind {
            Kind::Int => "integer".into(),
            Kind::Float => "number".into(),
            Kind::Bool => "boolean".into(),
            Kind::String | Kind::Path | Kind::Model => "string".into(),
        },
    );
    if matches!(parameter.kind, Kind::Path | Kind::Model) {
        put("x-kind", parameter.kind.to_string().into());
    }
    if let Some(default) = &parameter.default {
        put("default", default.to_json());
    }
    let bounds = [
        ("minimum", parameter.min),
        ("maximum", parameter.max),
        ("exclusiveMinimum", parameter.above),
        ("exclusiveMaximum", parameter.below),
    ];
    for (name, bound) in bounds {
        if let Some(bound) = bound {
            put(name, number(bound));
        }
    }
    if !parameter.choices.is_empty() {
        put("enum", parameter.choices.iter().map(super::Value::to_json).collect::<Vec<_>>().into());
    }
    for (name, text) in [("description", &parameter.help), ("x-unit", &parameter.unit)] {
        if !text.is_empty() {
            put(name, text.as_str().into());
        }
    }
    Json::Object(property)
}
