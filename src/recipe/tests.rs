#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use rhai::Engine;

use super::*;

fn parameters(text: &str) -> Vec<Parameter> {
    let ast = Engine::new().compile(text).unwrap();
    Description::new("r.rhai", &ast).unwrap().parameters
}

fn one(text: &str) -> Parameter {
    parameters(text).remove(0)
}

#[test]
fn types_come_from_the_default_or_the_kind() {
    let kinds = |text: &str| parameters(text).iter().map(|p| p.kind).collect::<Vec<_>>();
    let text = r#"
        let a = param("a", 1); let b = param("b", 1.0); let c = param("c", true); let d = param("d", "x");
        let e = param("e", "x", #{ kind: "path" }); let f = param("f", "auto", #{ kind: "model" });
        let g = param("g", 1, #{ kind: "float" }); let h = param("h", ());
    "#;
    let wanted = [Kind::Int, Kind::Float, Kind::Bool, Kind::String, Kind::Path, Kind::Model, Kind::Float, Kind::String];
    assert_eq!(kinds(text), wanted);
}

#[test]
fn ints_do_for_floats_and_never_floats_for_ints() {
    let rate = one(r#"let x = param("x", 0.5);"#);
    assert_eq!(rate.parse("1"), Ok(Value::Float(1.0)));
    assert_eq!(rate.parse("1e-5"), Ok(Value::Float(1e-5)));
    let steps = one(r#"let x = param("x", 5);"#);
    assert_eq!(steps.parse("-1"), Ok(Value::Int(-1)));
    assert_eq!(steps.parse("1_000"), Ok(Value::Int(1000)));
    for wrong in ["2.0", "", "x", "1e3", "99999999999999999999"] {
        assert!(steps.parse(wrong).is_err(), "{wrong}");
    }
    for wrong in ["nan", "inf", "-inf", "", "1,5"] {
        assert!(rate.parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn ranges_are_open_or_closed_as_written() {
    let closed = one(r#"let x = param("x", 0.5, #{ min: 0, max: 1.0 });"#);
    assert_eq!(closed.range_text(), "[0, 1]");
    assert!(closed.parse("0").is_ok() && closed.parse("1").is_ok() && closed.parse("1.01").is_err());
    let open = one(r#"let x = param("x", 0.5, #{ above: 0.0, below: 1 });"#);
    assert_eq!(open.range_text(), "(0, 1)");
    assert!(open.parse("0").is_err() && open.parse("1").is_err() && open.parse("1e-9").is_ok());
    assert_eq!(open.parse("2").unwrap_err(), "must be a number in (0, 1), got `2.0`");
    assert_eq!(one(r#"let x = param("x", 2e-5, #{ min: 1e-6 });"#).range_text(), "[1e-6, inf)");
}

#[test]
fn choices_suggest_the_nearest() {
    let kind = one(r#"let x = param("x", "linear", #{ choices: ["linear", "cosine"] });"#);
    assert_eq!(kind.parse("cosin").unwrap_err(), "must be one of linear, cosine, got `cosin`; did you mean `cosine`?");
}

#[test]
fn paths_from_outside_are_the_shells_and_models_may_be_hub_ids() {
    let parameters =
        parameters(r#"let a = param("a", "d", #{ kind: "path" }); let m = param("m", "auto", #{ kind: "model" });"#);
    let resolve = |set: &[&str]| {
        let given = Given { set: set.iter().map(ToString::to_string).collect(), ..Given::default() };
        let resolved = Resolved::new(&parameters, &given, Path::new("/shell")).unwrap();
        ["a", "m"].map(|name| resolved.get(name).unwrap().value.to_string())
    };
    assert_eq!(resolve(&[]), ["d", "auto"]);
    assert_eq!(resolve(&["a=x/y", "m=org/model"]), ["/shell/x/y", "org/model"]);
    assert_eq!(resolve(&["m=./model"])[1], "/shell/./model");
    assert_eq!(["m=x.gguf", "m=a/x.gguf"].map(|set| resolve(&[set])[1].clone()), ["/shell/x.gguf", "/shell/a/x.gguf"]);
    assert_eq!(resolve(&["m=org/model/x.gguf"])[1], "org/model/x.gguf", "a file on the hub");
    assert_eq!(resolve(&["a=/abs", "a=last"])[0], "/shell/last", "the last of a name wins");
}

#[test]
fn a_value_with_an_equals_sign_stays_whole() {
    let parameters = parameters(r#"let a = param("a", "x");"#);
    let given = Given { set: vec!["a=b=c".to_string()], ..Given::default() };
    let resolved = Resolved::new(&parameters, &given, Path::new("/")).unwrap();
    assert_eq!(resolved.get("a").unwrap().value, Value::Text("b=c".to_string()));
}

#[test]
fn a_parameter_within_a_call_is_still_at_the_top_level() {
    assert_eq!(parameters(r#"print(param("a", 1) + param("b", 2));"#).len(), 2);
}

#[test]
fn other_functions_called_param_are_not_parameters() {
    assert!(parameters(r#"let x = m::param("a", 1);"#).is_empty());
}
