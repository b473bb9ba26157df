#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::recipe::Given;

fn session() -> Session {
    Session::new(SessionOptions::default())
}

#[test]
fn cells_see_the_variables_of_cells_before() {
    let mut session = session();
    let _ = session.evaluate("cell 1", "let x = 20;").unwrap();
    assert_eq!(session.evaluate("cell 2", "x + 22").unwrap().as_int(), Ok(42));
    let failure = session.evaluate("cell 3", "y").unwrap_err();
    assert_eq!(failure.place.as_ref().map(|at| (at.source.as_str(), at.line, at.column)), Some(("cell 3", 1, 1)));
    assert_eq!(session.evaluate("cell 4", "x").unwrap().as_int(), Ok(20), "a failed cell loses nothing");
}

#[test]
fn compiling_calls_no_natives() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let options = SessionOptions::default().with_module(move |engine, _| {
        let seen = seen.clone();
        engine.register_fn("touch", move |_: &str| seen.fetch_add(1, Ordering::SeqCst) as i64);
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.rhai");
    std::fs::write(&path, "let a = param(\"a\", 1);\nlet x = touch(\"x\");\nfn f() { touch(\"y\") }\n").unwrap();
    let mut session = Session::new(options);
    assert_eq!(session.describe(&path).unwrap().parameters.len(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    session.run(&path).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_stop_cannot_be_caught() {
    let stop = Stop::new();
    let terminal = Arc::new(Collected::new());
    let setter = stop.clone();
    let options = SessionOptions { stop, terminal: terminal.clone(), ..SessionOptions::default() };
    let options = options.with_module(move |engine, _| {
        let setter = setter.clone();
        engine.register_fn("stop_now", move || setter.set(StopReason::Interrupt));
    });
    let failure =
        Session::new(options).run_source("x", "try { stop_now(); loop {} } catch { print(\"caught\"); }").unwrap_err();
    assert_eq!((failure.kind, failure.exit_code()), (Kind::Stopped(StopReason::Interrupt), 130));
    assert!(terminal.printed().is_empty());
}

#[test]
fn a_panic_in_a_native_ends_the_record_of_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let options = SessionOptions { out: Some(folder.path().into()), ..SessionOptions::default() };
    let options = options.with_module(|engine, _| {
        engine.register_fn("boom", || -> i64 { panic!("boom") });
    });
    let mut session = Session::new(options);
    let failure = session.run_source("x", "boom();").unwrap_err();
    assert_eq!((failure.kind, failure.exit_code()), (Kind::Bug, 1));
    let read = |name: &str| std::fs::read_to_string(session.host().run_dir().unwrap().join(name)).unwrap();
    let run: serde_json::Value = serde_json::from_str(&read("run.json")).unwrap();
    assert_eq!((run["status"].as_str(), run["exit_code"].as_i64()), (Some("failed"), Some(1)));
    assert!(run["error"].as_str().unwrap().starts_with("error: unslothify has a bug: boom (src"), "{run}");
    assert!(run["seconds"].is_number());
    assert!(read("log.jsonl").contains("unslothify has a bug: boom"));
}

fn host_in(folder: &std::path::Path) -> Host {
    let options = SessionOptions { out: Some(folder.join("out")), shell: folder.into(), ..SessionOptions::default() };
    let given = Given { set: vec!["data=../elsewhere/d.jsonl".to_string()], ..Given::default() };
    let recipe = folder.join("r.rhai");
    std::fs::write(&recipe, "let d = param(\"data\", \"d.jsonl\", #{ kind: \"path\" });").unwrap();
    let mut session = Session::new(SessionOptions { given, ..options });
    session.run(&recipe).unwrap();
    session.host().clone()
}

#[test]
fn writing_stays_in_the_run_folder() {
    let folder = tempfile::tempdir().unwrap();
    let host = host_in(folder.path());
    let run = host.run_dir().unwrap();
    assert_eq!(host.write_path("adapter").unwrap(), run.join("adapter"));
    assert_eq!(host.write_path("./a/b").unwrap(), run.join("a/b"));
    for refused in ["../x", "/tmp/x", "a/../../x", "a/..", "", " ", ".", "run.json", "imports/x", "./config.json"] {
        let error = host.write_path(refused).unwrap_err();
        assert!(!error.to_string().contains("No such"), "{refused}: {error}");
    }
}

#[test]
fn reading_stays_beside_the_recipe_or_where_the_user_pointed() {
    let folder = tempfile::tempdir().unwrap();
    let host = host_in(folder.path());
    assert_eq!(host.read_path("data/a.jsonl").unwrap(), folder.path().join("data/a.jsonl"));
    // What this run wrote comes first, but only what it wrote.
    host.write_path("adapter").unwrap();
    assert_eq!(host.read_path("adapter/x").unwrap(), host.run_dir().unwrap().join("adapter/x"));
    assert_eq!(host.read_path("config.json").unwrap(), folder.path().join("config.json"));
    assert_eq!(host.read_path(".").unwrap(), folder.path());
    let given = folder.path().join("../elsewhere/d.jsonl");
    assert!(host.read_path(given.to_str().unwrap()).is_ok());
    for refused in ["/etc/passwd", "../other", "data/../../x", "/", ""] {
        assert!(host.read_path(refused).is_err(), "{refused}");
    }
}

#[cfg(unix)]
#[test]
fn reading_follows_no_link_out_of_the_folder_unless_the_user_named_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("private.jsonl"), "{}").unwrap();
    std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let link = |from: &Path, to: PathBuf| std::os::unix::fs::symlink(from, to).unwrap();
    link(&outside.path().join("private.jsonl"), inner.join("data.jsonl"));
    link(outside.path(), inner.join("deep"));
    let host = host_in(&inner);
    for refused in ["data.jsonl", "deep/private.jsonl", "deep"] {
        assert!(matches!(host.read_path(refused), Err(host::Error::LinkOutside { .. })), "{refused}");
    }
    // `host_in` names `../elsewhere/d.jsonl` as the data.
    std::fs::write(folder.path().join("elsewhere/d.jsonl"), "{}").unwrap();
    link(&folder.path().join("elsewhere/d.jsonl"), inner.join("named.jsonl"));
    assert!(host.read_path("named.jsonl").is_ok());
}

#[test]
fn a_text_from_outside_that_is_no_path_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.rhai");
    std::fs::write(&recipe, "let prompt = param(\"prompt\", \"hello\");").unwrap();
    let given = Given { set: vec!["prompt=/".to_string()], ..Given::default() };
    let mut session = Session::new(SessionOptions { given, shell: folder.path().into(), ..SessionOptions::default() });
    session.run(&recipe).unwrap();
    assert!(matches!(session.host().read_path("/etc/passwd"), Err(host::Error::ReadOutside { .. })));
}

#[cfg(unix)]
#[test]
fn an_import_follows_no_link_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret.rhai"), "fn x() { 1 }").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret.rhai"), folder.path().join("link.rhai")).unwrap();
    let recipe = folder.path().join("r.rhai");
    std::fs::write(&recipe, "import \"link\" as l;").unwrap();
    let failure = session().run(&recipe).unwrap_err();
    assert_eq!(failure.message, "cannot import `link`: it leads out of the recipe's folder");
}

#[test]
fn metrics_reach_the_file_and_the_history() {
    let folder = tempfile::tempdir().unwrap();
    let host = host_in(folder.path());
    let mut row = rhai::Map::new();
    row.insert("step".into(), 1_i64.into());
    row.insert("loss".into(), 2.5.into());
    host.log_metrics(&row).unwrap();
    let text = std::fs::read_to_string(host.run_dir().unwrap().join("metrics.jsonl")).unwrap();
    assert_eq!(text, "{\"step\":1,\"loss\":2.5}\n");
    assert_eq!(host.history().len(), 1);
    row.insert("bad".into(), f64::NAN.into());
    assert_eq!(
        host.log_metrics(&row).unwrap_err().to_string(),
        "`bad` of a metrics row is NaN, wanted a finite number"
    );
    row.insert("bad".into(), rhai::Dynamic::from_array(vec![]));
    assert_eq!(
        host.log_metrics(&row).unwrap_err().to_string(),
        "`bad` of a metrics row must be a number, a bool or a string, got an array"
    );
}

#[test]
fn every_type_of_a_native_is_registered_under_a_name() {
    let mut engine = rhai::Engine::new();
    let host = session().host().clone();
    modules::register(&mut engine, &host);
    let last = |path: &str| path.rsplit("::").next().unwrap().to_owned();
    let told: serde_json::Value = serde_json::from_str(&engine.gen_fn_metadata_to_json(false).unwrap()).unwrap();
    let registered: std::collections::BTreeSet<String> =
        told["customTypes"].as_array().unwrap().iter().map(|t| last(t["typeName"].as_str().unwrap())).collect();
    let told = |info: rhai::FuncInfo| {
        let parameters = info.metadata.params_info.iter().filter_map(|p| p.split_once(": ").map(|(_, kind)| kind));
        Some(parameters.chain([info.metadata.return_type.as_str()]).map(String::from).collect::<Vec<_>>())
    };
    let plain = ["int", "float", "bool", "string", "array", "map", "function", "any", "()", "range"];
    let mut handles = std::collections::BTreeSet::new();
    for kind in engine.collect_fn_metadata(None, told, false).into_iter().flatten() {
        let inner = kind.strip_prefix("Answer<").and_then(|inner| inner.strip_suffix('>')).unwrap_or(&kind).trim();
        let name = names::type_name(inner);
        if !name.is_empty() && !plain.contains(&name.as_str()) {
            let rust = last(inner.trim_start_matches("&mut "));
            assert!(registered.contains(&rust), "`{kind}` is registered under no name: {registered:?}");
            handles.insert(rust);
        }
    }
    assert!(handles.len() > 8, "only {handles:?}: does the scan still see the natives?");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_breaks_the_session(text in "[a-z0-9 (){}\\[\\]#:;,.|&=\"'`$\\\\/*+\\-\n\tåé→]{0,60}") {
        // Whatever it is, it ends as a value or as a failure that can be shown.
        if let Err(failure) = session().evaluate("cell 1", &text) {
            prop_assert!(!failure.render(false).is_empty());
            prop_assert_ne!(failure.kind, Kind::Bug);
        }
    }

    #[test]
    fn lexemes_cover_any_text(text in "\\PC{0,80}") {
        for (_, span) in text::lexemes(&text) {
            prop_assert!(text.get(span).is_some());
        }
        for at in 0..text.len() {
            if text.is_char_boundary(at) {
                let _ = text::option_key(&text, at, "r");
                prop_assert!(text.get(text::word_at(&text, at)).is_some());
            }
        }
    }
}

#[test]
fn a_step_that_overflows_is_left_out_said_and_counted_in_the_metrics() {
    use crate::train::{LoadSettings, Model};
    let terminal = Arc::new(Collected::new());
    let options = SessionOptions { terminal: terminal.clone(), ..SessionOptions::default() };
    let options = options.with_module(|engine, host| {
        let host = host.clone();
        engine.register_fn("scaled", move || {
            let settings = LoadSettings { loss_scale: Some(65_536.0), ..LoadSettings::default() };
            let model = Model::from_pretrained("builtin:tiny-mistral", Path::new("."), &settings).unwrap();
            host.models().add(&model);
            model
        });
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jsonl"), "{\"text\": \"Soak the bread in milk.\"}\n").unwrap();
    let path = folder.path().join("a.rhai");
    let script = "let model = scaled();
        model.add_lora(#{ r: 4 });
        let opt = optim::adamw(model.parameters());
        let batches = Dataset::from_json(\"a.jsonl\").tokenize(model.tokenizer).batches(#{ batch_size: 1 });
        run::start(3);
        for factor in [1.0, 1e300, 1.0] {
            for step in batches.epoch(0) {
                for micro in step { (model.loss(micro) * factor).backward(); }
                let norm = opt.clip_grad_norm(1.0);
                opt.step(1e-3);
                opt.zero_grad();
                run::step(#{ step: step.index + 1, grad_norm: norm, tokens: step.tokens });
            }
        }
        for row in run::history() {
            let skipped = if \"skipped_steps\" in row { row.skipped_steps } else { 0 };
            print(`${\"grad_norm\" in row} ${skipped}`);
        }";
    std::fs::write(&path, script).unwrap();
    Session::new(options).run(&path).unwrap();
    assert_eq!(terminal.printed(), ["true 0", "false 1", "true 1"]);
    let said: Vec<String> = terminal.notes().into_iter().filter(|note| note.contains("left out")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("scaled by 65536, from now on by 32768") && said[0].ends_with("so far: 1"), "{said:?}");
}
