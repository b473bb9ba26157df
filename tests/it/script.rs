//! Scripts that must fail, each with the error it must give.
//!
//! A file of `tests/scripts` ends with what it must tell: `// error: 3:18 message`, `// frame: 7:9 in call to …`,
//! `// hint: …`, `// prints: …`. Places of other files carry their name. `UNSLOTHIFY_BLESS=1` rewrites them: read the
//! difference before you commit it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhai::{Dynamic, Engine, EvalAltResult, FnPtr, Map, Module, NativeCallContext};
use unslothify::script::options::{Callback, above};
use unslothify::script::{Collected, Failure, Host, Place, Session, SessionOptions};
use unslothify::{handle_option, options};

options! {
    /// What `widget.tune` takes.
    TuneOptions for "widget.tune" {
        r: usize = 8, 1..=1024, "rank of the adapters";
        lora_alpha: f64 = 8.0, 0.0.., "scale = lora_alpha / r";
        rate: f64 = 0.1, above(0.0), "step size";
        kind: String = "linear", ["linear", "cosine"], "shape of the schedule";
        layers: Option<Vec<usize>> = None, 0..=31, "only these layers";
    }
}

options! {
    /// What `gadget::run` takes.
    RunOptions for "gadget::run" {
        steps: usize, 1.., "how many steps";
        on_step: Option<Callback<1>> = None, "called after each step";
        widget: Option<Widget> = None, "what to run on";
    }
}

/// A stand-in for a model: a shared handle.
#[derive(Clone, Debug)]
struct Widget(Arc<str>);

handle_option!(Widget, "Widget");

/// The natives of these tests, under names that no real module has.
pub fn natives(engine: &mut Engine, _: &Host) {
    engine.register_type_with_name::<Widget>("Widget");
    engine.register_get("label", |widget: &mut Widget| widget.0.to_string());
    engine.register_fn("tune", |context: NativeCallContext<'_>, _: &mut Widget, map: Map| {
        let options = TuneOptions::parse(&map, &context)?;
        Ok::<_, Box<EvalAltResult>>(options.r as f64 * options.lora_alpha * options.rate)
    });
    engine.register_fn("apart", |context: NativeCallContext<'_>, widget: &mut Widget, f: FnPtr| {
        f.call_within_context::<Dynamic>(&context, (widget.clone(),))
    });
    engine.register_fn("seen", |_: &mut Widget| 1_i64);
    let mut gadget = Module::new();
    gadget.set_native_fn("make", |name: &str| Ok(Widget(name.into())));
    gadget.set_native_fn("fail", |context: NativeCallContext<'_>| {
        Err::<(), _>(Failure::at(&context, "the gadget is broken").hint("buy another one").into())
    });
    gadget.set_native_fn("boom", || -> Result<i64, Box<EvalAltResult>> { panic!("boom") });
    gadget.set_native_fn("run", |context: NativeCallContext<'_>, map: Map| {
        let options = RunOptions::parse(&map, &context)?;
        for step in 0..options.steps {
            if let Some(Callback(f)) = &options.on_step {
                let _ = f.call_within_context::<Dynamic>(&context, (step as i64,))?;
            }
        }
        Ok(options.steps as i64)
    });
    engine.register_static_module("gadget", gadget.into());
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

fn told(place: Option<&Place>, own: &str) -> String {
    match place {
        None => "nowhere".to_string(),
        Some(at) if at.source == own => format!("{}:{}", at.line, at.column),
        Some(at) => format!("{}:{}:{}", at.source, at.line, at.column),
    }
}

/// What running `path` tells, in the words of the annotations.
fn outcome(path: &Path) -> Vec<String> {
    let terminal = Arc::new(Collected::new());
    let options = SessionOptions { terminal: terminal.clone(), ..SessionOptions::default() }.with_module(natives);
    let result = Session::new(options).run(path);
    let mut lines: Vec<String> = terminal.printed().iter().map(|line| format!("// prints: {line}")).collect();
    if let Err(failure) = result {
        let own = path.display().to_string();
        lines.push(format!("// error: {} {}", told(failure.place.as_ref(), &own), failure.message));
        let frame =
            |frame: &unslothify::script::Frame| format!("// frame: {} {}", told(Some(&frame.place), &own), frame.what);
        lines.extend(failure.frames.iter().map(frame));
        lines.extend(failure.hints.iter().map(|hint| format!("// hint: {}", lasting(hint))));
        let report = failure.render(false);
        for forbidden in ["Dynamic", "anon$", "&mut", "alloc::", "rhai::", "ImmutableString"] {
            assert!(!report.contains(forbidden), "{}: `{forbidden}` in\n{report}", path.display());
        }
        assert!(failure.render(true).contains(&failure.message));
    }
    lines.into_iter().map(|line| line.replace(env!("CARGO_MANIFEST_DIR"), "")).collect()
}

/// A hint without the list of what there is, which grows with every release.
fn lasting(hint: &str) -> String {
    match hint.split_once("there are: ") {
        Some((before, _)) => format!("{before}there are: …"),
        None => hint.to_string(),
    }
}

fn is_annotation(line: &str) -> bool {
    ["// error: ", "// frame: ", "// hint: ", "// prints: "].iter().any(|start| line.starts_with(start))
}

#[test]
fn every_script_tells_what_it_must() {
    let bless = std::env::var_os("UNSLOTHIFY_BLESS").is_some();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rhai"));
    paths.sort();
    assert!(paths.len() > 40, "only {} scripts", paths.len());
    let mut wrong = String::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let wanted: Vec<&str> = text.lines().filter(|line| is_annotation(line)).collect();
        let got = outcome(&path);
        if bless {
            let body: Vec<&str> = text.lines().filter(|line| !is_annotation(line)).collect();
            let body = body.join("\n").trim_end().to_string();
            std::fs::write(&path, format!("{body}\n{}\n", got.join("\n"))).unwrap();
        } else if wanted.is_empty() || wanted != got {
            let (wanted, got) = (wanted.join("\n"), got.join("\n"));
            wrong.push_str(&format!("\n{}\nwanted\n{wanted}\ngot\n{got}\n", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_a_config_leaves_out_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let notes = |remove: &[&str]| {
        super::tiny::write(&folder.path().join("base"), 1);
        let path = folder.path().join("base/config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for key in remove {
            config.as_object_mut().unwrap().remove(*key);
        }
        std::fs::write(path, config.to_string()).unwrap();
        let terminal = Arc::new(Collected::new());
        let shell = folder.path().to_path_buf();
        let options = SessionOptions { terminal: terminal.clone(), shell, ..SessionOptions::default() };
        Session::new(options).run_source("x", "let model = Model::from_pretrained(\"base\");").unwrap();
        terminal.notes()
    };
    assert!(notes(&[]).is_empty());
    let told = notes(&["sliding_window", "rope_theta"]);
    let taken =
        "says nothing of some keys; taken as transformers takes them: sliding_window = 4096, rope_theta = 10000.0";
    assert!(told.len() == 1 && told[0].ends_with(taken), "{told:?}");
}
