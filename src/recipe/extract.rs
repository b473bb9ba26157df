//! Reads `param(…)` calls and imports off the syntax tree. Nothing is evaluated.

use rhai::{AST, ASTNode, Dynamic, Expr, FnCallExpr, Map, Position, Stmt};

use super::param::{Kind, Parameter, Value};
use super::{Error, Result, nearest};

/// What the map of a `param` may hold.
pub(super) const OPTIONS: [&str; 8] = ["help", "kind", "min", "max", "above", "below", "choices", "unit"];

/// All parameters in the order of the text, or the first that is declared wrongly.
pub(super) fn parameters(ast: &AST) -> Result<Vec<Parameter>> {
    let mut parameters: Vec<Parameter> = Vec::new();
    let mut outside = 0_usize;
    for stmt in ast.statements() {
        let mut result = Ok(());
        stmt.walk(&mut Vec::new(), &mut |path: &[ASTNode<'_>]| {
            let Some((call, position)) = param_call(path) else { return true };
            outside += 1;
            let statements = path.iter().filter(|node| matches!(node, ASTNode::Stmt(_))).count();
            result =
                if statements > 1 { Err(Error::Nested { position }) } else { add(&mut parameters, call, position) };
            result.is_ok()
        });
        result?;
    }
    // The walk of a tree goes through its statements first, then through the bodies of its functions and closures.
    let mut seen = 0_usize;
    let mut result = Ok(());
    ast.walk(&mut |path: &[ASTNode<'_>]| {
        let Some((_, position)) = param_call(path) else { return true };
        seen += 1;
        result = if seen > outside { Err(Error::Nested { position }) } else { Ok(()) };
        result.is_ok()
    });
    result.map(|()| parameters)
}

fn add(parameters: &mut Vec<Parameter>, call: &FnCallExpr, position: Position) -> Result<()> {
    let parameter = read(call, position)?;
    if parameters.iter().any(|other| other.name == parameter.name) {
        return Err(Error::Twice { name: parameter.name, position });
    }
    parameters.push(parameter);
    Ok(())
}

/// The `param(…)` at the end of `path`, if that is one.
fn param_call<'a>(path: &[ASTNode<'a>]) -> Option<(&'a FnCallExpr, Position)> {
    let (call, position) = match path.last()? {
        ASTNode::Stmt(Stmt::FnCall(call, position)) => (call, position),
        ASTNode::Expr(Expr::FnCall(call, position)) => (call, position),
        _ => return None,
    };
    (!call.is_qualified() && call.name == "param").then_some((&**call, *position))
}

/// The literal paths that the recipe imports, in the order of the text.
pub(super) fn imports(ast: &AST) -> Vec<String> {
    let mut found = Vec::new();
    ast.walk(&mut |path: &[ASTNode<'_>]| {
        if let Some(ASTNode::Stmt(Stmt::Import(import, _))) = path.last()
            && let Expr::StringConstant(name, _) = &import.0
        {
            found.push(name.to_string());
        }
        true
    });
    found
}

fn read(call: &FnCallExpr, position: Position) -> Result<Parameter> {
    let (name, default, options) = match call.args.as_slice() {
        [name, default] => (name, default, None),
        [name, default, options] => (name, default, Some(options)),
        other => return Err(Error::Arguments { given: other.len(), position }),
    };
    let literal = |expr: &Expr, what| {
        let value = expr.get_literal_value(None);
        value.ok_or_else(|| Error::NotLiteral { what, position: expr.start_position() })
    };
    let name = literal(name, "name")?;
    let name = name.into_string().map_err(|_| Error::NotLiteral { what: "name", position })?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(Error::Name { name, position });
    }
    let default_position = default.start_position();
    let default = literal(default, "default")?;
    let options = match options {
        None => Map::new(),
        Some(options) => {
            let wrong = Error::NotLiteral { what: "option map", position: options.start_position() };
            literal(options, "option map")?.try_cast::<Map>().ok_or(wrong)?
        }
    };
    if let Some(key) = options.keys().find(|key| !OPTIONS.contains(&key.as_str())) {
        let near = OPTIONS.iter().copied().find(|option| Some(*option) == nearest(key, OPTIONS));
        return Err(Error::UnknownOption { key: key.to_string(), near, position });
    }
    let reader = Reader { name: &name, options: &options, position };
    let default_value = match default.is_unit() {
        true => None,
        false => Some(Value::from_literal(&default).ok_or_else(|| Error::Default {
            name: name.clone(),
            what: "must be an int, a float, a bool, a string, or () for a value that must be given".to_string(),
            position: default_position,
        })?),
    };
    let kind = reader.kind(default_value.as_ref())?;
    let mut parameter = Parameter {
        kind,
        default: None,
        help: reader.text("help")?,
        unit: reader.text("unit")?,
        min: reader.number("min", kind)?,
        max: reader.number("max", kind)?,
        above: reader.number("above", kind)?,
        below: reader.number("below", kind)?,
        choices: reader.choices()?,
        name: name.clone(),
        position,
    };
    let checked = default_value.map(|value| parameter.check(value)).transpose();
    parameter.default = checked.map_err(|what| Error::Default { name, what, position: default_position })?;
    Ok(parameter)
}

struct Reader<'a> {
    name: &'a str,
    options: &'a Map,
    position: Position,
}

impl Reader<'_> {
    fn wrong(&self, key: &'static str, wanted: impl Into<String>, given: &Dynamic) -> Error {
        let given = if given.is_string() { format!("{:?}", given.to_string()) } else { given.to_string() };
        Error::Option { name: self.name.to_string(), key, wanted: wanted.into(), given, position: self.position }
    }

    fn text(&self, key: &'static str) -> Result<String> {
        let Some(value) = self.options.get(key) else { return Ok(String::new()) };
        value.clone().into_string().map_err(|_| self.wrong(key, "a string", value))
    }

    fn number(&self, key: &'static str, kind: Kind) -> Result<Option<f64>> {
        let Some(value) = self.options.get(key) else { return Ok(None) };
        let number = value.as_float().or_else(|_| value.as_int().map(|int| int as f64));
        match number {
            Ok(number) if kind.is_number() && !number.is_nan() => Ok(Some(number)),
            Ok(_) => Err(self.wrong(key, format!("absent, for a {kind} has no range"), value)),
            Err(_) => Err(self.wrong(key, "a number", value)),
        }
    }

    fn choices(&self) -> Result<Vec<Value>> {
        let Some(given) = self.options.get("choices") else { return Ok(Vec::new()) };
        let wrong = || self.wrong("choices", "an array of literals", given);
        let list = given.as_array_ref().map_err(|_| wrong())?;
        list.iter().map(|choice| Value::from_literal(choice).ok_or_else(wrong)).collect()
    }

    fn kind(&self, default: Option<&Value>) -> Result<Kind> {
        let natural = match default {
            Some(Value::Int(_)) => Kind::Int,
            Some(Value::Float(_)) => Kind::Float,
            Some(Value::Bool(_)) => Kind::Bool,
            Some(Value::Text(_)) | None => Kind::String,
        };
        let Some(given) = self.options.get("kind") else { return Ok(natural) };
        let wanted = || format!("one of {}", Kind::NAMES.join(", "));
        let kind = given.clone().into_string().ok().and_then(|name| Kind::from_name(&name));
        kind.ok_or_else(|| self.wrong("kind", wanted(), given))
    }
}
