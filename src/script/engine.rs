//! The interpreter, as strict as it can be set.

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, OptimizationLevel};

use super::failure::Failure;
use super::host::Host;
use super::{modules, names};

/// Calls within calls that a script may make.
pub(super) const MAX_CALLS: usize = 256;
/// What the recursion of [`MAX_CALLS`] levels and of the parser needs, with room for natives that call closures.
pub(super) const STACK_BYTES: usize = 64 << 20;

/// Adds natives of an embedder to the engine.
pub type Register = dyn Fn(&mut Engine, &Host) + Send + Sync;

/// A new interpreter for `host`, with every native of unslothify and those of `extra`.
pub(super) fn build(host: &Host, extra: &[std::sync::Arc<Register>]) -> Engine {
    let mut engine = Engine::new();
    engine
        // Never `Full`: it calls natives while it compiles.
        .set_optimization_level(OptimizationLevel::Simple)
        .set_strict_variables(true)
        .set_fail_on_invalid_map_property(true)
        // Set outright: the defaults differ between debug and release builds.
        .set_max_call_levels(MAX_CALLS)
        .set_max_expr_depths(256, 128)
        .set_max_array_size(10_000_000)
        .set_max_map_size(1_000_000)
        .set_max_string_size(64 << 20)
        .set_max_modules(256)
        .set_max_functions(10_000)
        .set_max_variables(100_000)
        .set_max_operations(0)
        .disable_symbol("eval");
    let own = host.clone();
    engine.on_progress(move |_| {
        own.stop().is_set().then(|| {
            own.models().hold();
            Dynamic::UNIT
        })
    });
    let printer = host.clone();
    engine.on_print(move |text| printer.print(text));
    let printer = host.clone();
    engine.on_debug(move |text, source, position| {
        let place = source.map_or_else(String::new, |source| format!("{source}:"));
        printer.note(&format!("debug {place}{position}: {text}"));
    });
    language(&mut engine, host);
    modules::register(&mut engine, host);
    for register in extra {
        register(&mut engine, host);
    }
    engine
}

/// What belongs to every recipe, whatever it trains.
fn language(engine: &mut Engine, host: &Host) {
    let own = host.clone();
    engine.register_fn("param", move |context: NativeCallContext<'_>, name: Dynamic, _: Dynamic| {
        param(&context, &own, &name)
    });
    let own = host.clone();
    engine.register_fn("param", move |context: NativeCallContext<'_>, name: Dynamic, _: Dynamic, _: Dynamic| {
        param(&context, &own, &name)
    });
    // Rhai's own `exit` ends the script as if it had succeeded, whatever it is given.
    engine.register_fn("exit", |context: NativeCallContext<'_>| no_exit(&context));
    engine.register_fn("exit", |context: NativeCallContext<'_>, _: Dynamic| no_exit(&context));
    engine.register_type_with_name::<Failure>("Error");
    engine.register_fn("to_string", |failure: &mut Failure| failure.message.clone());
    engine.register_fn("to_debug", |failure: &mut Failure| failure.message.clone());
    engine.register_get("message", |failure: &mut Failure| failure.message.clone());
    engine.register_get("hints", |failure: &mut Failure| {
        failure.hints.iter().map(|hint| Dynamic::from(hint.clone())).collect::<Array>()
    });
    engine.register_fn("options", options);
}

fn param(context: &NativeCallContext<'_>, host: &Host, name: &Dynamic) -> Result<Dynamic, Box<EvalAltResult>> {
    let Ok(name) = name.as_immutable_string_ref() else {
        return Err(Failure::at(context, "the name of a parameter must be a literal").into());
    };
    match host.parameters().get(&name) {
        Some(setting) => Ok(setting.value.to_script()),
        None => Err(Failure::at(context, format!("`{}` is not a parameter of the recipe", name.as_str()))
            .hint("`param` stands at the top level of the recipe itself, not in a file that it imports")
            .into()),
    }
}

fn no_exit(context: &NativeCallContext<'_>) -> Result<Dynamic, Box<EvalAltResult>> {
    let failure = Failure::at(context, "a recipe does not call `exit`");
    Err(failure.hint("use `return` to end it, or `throw \"why\"` to make it fail").into())
}

/// `options(given, defaults)`: the check of named options for functions written in Rhai.
fn options(context: NativeCallContext<'_>, given: Map, defaults: Map) -> Result<Map, Box<EvalAltResult>> {
    let mut settled = defaults;
    for (key, value) in given {
        let all: Vec<&str> = settled.keys().map(|key| key.as_str()).collect();
        let Some(default) = settled.get(&key) else {
            let accepted = format!("accepted: {}", all.join(", "));
            let hint = match names::nearest(&key, all.iter().copied()) {
                Some(near) => format!("did you mean `{near}`? {accepted}"),
                None => accepted,
            };
            return Err(Failure::at(&context, format!("unknown option `{key}`")).key(key.as_str()).hint(hint).into());
        };
        let value = match (default.is_float(), value.as_int()) {
            (true, Ok(int)) => Dynamic::from_float(int as f64),
            _ => value,
        };
        // A default of `()` says that there is none: everything will do.
        if !default.is_unit() && default.type_id() != value.type_id() {
            let wanted = names::with_article(&names::type_of(context.engine(), default));
            let got = names::describe(context.engine(), &value);
            let message = format!("option `{key}` must be {wanted}, got {got}");
            return Err(Failure::at(&context, message).key(key.as_str()).into());
        }
        settled.insert(key, value);
    }
    Ok(settled)
}
