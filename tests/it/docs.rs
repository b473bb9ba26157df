//! Every example in the documentation of a native, run.

use std::path::Path;

use unslothify::script::{Device, Session, SessionOptions};

use super::tiny;

/// What the examples talk about.
const PRELUDE: &str = r#"
let model = Model::from_pretrained(param("base_model", "auto", #{ kind: "model" }));
let dataset = Dataset::from_json("data/meatballs.jsonl").take(60).filter(|row| row.text.len() < 90);
let tokens = dataset.tokenize(model.tokenizer);
let parts = tokens.split(#{ test_size: 4, seed: 1 });
let batches = parts.train.take(8).batches(#{ batch_size: 2, accumulate: 2, seed: 1 });
let epochs = 1;
let ids = [5, 6];
model.add_lora();
model.save_pretrained("adapter");
let opt = optim::adamw(model.parameters());
let lr = lr_scheduler::linear(#{ lr: 1e-3, num_training_steps: 10 });
let step = ();
for first in batches.epoch(0) { step = first; break; }
let micro = ();
for first in step { micro = first; break; }
"#;

/// A loss whose backward has not run; some examples speak of one, others make their own.
const LOSS: &str = "let t = model.loss(micro); let loss = t;";

fn session(base: &Path, out: &Path) -> Session {
    let shell = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    // `auto` on a GPU would fetch gigabytes.
    let device = Device::Cpu;
    let mut options = SessionOptions { shell, out: Some(out.into()), device, ..SessionOptions::default() };
    options.given.set.push(format!("base_model={}", base.display()));
    Session::new(options)
}

fn help(session: &mut Session, what: &str) -> String {
    session.evaluate("help", &format!("help({what})")).unwrap().into_string().unwrap()
}

#[test]
fn every_documented_native_has_an_example_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("tiny");
    tiny::write(&base, 1);
    let mut asking = Session::new(SessionOptions::default());
    let names = help(&mut asking, "");
    assert!(names.lines().count() > 80, "{names}");
    let (mut failed, mut examples) = (Vec::new(), 0);
    for name in names.lines() {
        let text = help(&mut asking, &format!("\"{name}\""));
        let blocks: Vec<&str> = text.split("```rhai").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        if blocks.is_empty() && !text.contains("see `lr_scheduler::get`") {
            failed.push(format!("{name} has no example"));
        }
        for example in blocks {
            examples += 1;
            let has = |calls: &[&str]| calls.iter().any(|call| example.contains(call));
            let ahead = match () {
                () if has(&["add_lora(", "load_adapter("]) => "model.unload_adapter();",
                () if has(&["t.", "loss.", "(t"]) && !has(&["model.loss(", "opt.step", "print(text"]) => LOSS,
                () => "",
            };
            let ran = session(&base, dir.path()).run_source("example", &format!("{PRELUDE}{ahead}{example}"));
            if let Err(failure) = ran {
                failed.push(format!("{name}: {}\n{}", example.trim(), failure.message));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(examples > 80, "only {examples} examples");
}

#[test]
fn wrong_calls_end_with_a_place_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("tiny");
    tiny::write(&base, 1);
    for (script, message) in [
        ("model.loss(1);", "`Model.loss` does not take (int)"),
        ("opt.step(\"fast\");", "the learning rate must be a number, got string \"fast\""),
        ("opt.step(-1e-3);", "the learning rate is -0.001"),
        ("opt.step(0.0 / 0.0);", "the learning rate is NaN"),
        ("opt.step(()); ", "the learning rate must be a number"),
        ("model.add_lora(#{ r: 2 });", "unload_adapter"),
        ("model.unload_adapter(); model.add_lora(#{ r: \"16\" });", "option `r` of `model.add_lora` must be an int"),
        ("model.unload_adapter(); model.add_lora(#{ r: 0 });", "must be from 1"),
        ("model.unload_adapter(); model.add_lora(#{ lora_dropout: 0.1 });", "not there yet"),
        ("model.unload_adapter(); model.add_lora(#{ target_modules: \"q\" });", "`q` is not a linear layer"),
        ("model.unload_adapter(); model.add_lora(#{ layers_to_transform: [9] });", "the model has layers 0 to 1"),
        ("model.unload_adapter(); model.parameters();", "add_lora"),
        ("let t = model.loss(micro); model.loss(micro);", "still waits for its `backward()`"),
        ("let t = model.loss(micro); opt.step(1e-3);", "still waits"),
        ("model.unload_adapter(); opt.step(1e-3);", "no longer on the model"),
        ("optim::adamw(model.parameters(), #{ betas: [0.9] });", "`betas`"),
        ("optim::adamw(model.parameters(), #{ weight_deacy: 0.1 });", "unknown option `weight_deacy`"),
        ("optim::sgd(model.parameters());", "`optim::sgd` is not there yet"),
        ("lr_scheduler::get(\"cosin\", #{ lr: 1e-3 });", "did you mean `cosine`"),
        ("lr_scheduler::from(|a, b| a);", "must take 1 argument"),
        ("lr.at(-1);", "must not be negative"),
        ("lr_scheduler::from(|step| \"fast\").at(0);", "the rate that the closure returns must be a number"),
        ("dataset[100000];", "there is no row 100000"),
        ("dataset.split(#{ test_size: 2 });", "these rows are text still"),
        ("tokens.split(#{ test_size: 1.5 });", "`test_size` is 1.5"),
        ("tokens.batches(#{ batch_size: 0 });", "must be at least 1"),
        ("dataset.tokenize(model.tokenizer, #{ max_length: 8 });", "longer than `max_length`"),
        ("dataset.tokenize(model.tokenizer, #{ overflow: \"cut\" });", "must be one of error"),
        ("dataset.tokenize(model.tokenizer, #{ messages: \"m\" });", "not there yet"),
        ("dataset.map(|row| 1);", "must return a map"),
        ("Dataset::from_json(\"/dev/zero\");", "may not read"),
        ("Dataset::from_json(\"../Cargo.toml\");", "may not read"),
        ("Dataset::from_texts([1]);", "every text must be a string"),
        ("Model::from_pretrained(\"/etc\");", "may not read"),
        ("Model::from_pretrained(\"./no/such\");", "no/such"),
        ("Model::from_pretrained(\"auto\", #{ dtype: \"bf8\" });", "must be \"bf16\""),
        ("model.save_pretrained(\"../out\");", "leads out of the run's folder"),
        ("model.generate(\"a\", #{ max_new_tokens: 100000 });", "the model reads 1024"),
        ("model.generate(\"a\", #{ temperature: -1 });", "temperature"),
        ("model.probability(\"a\", \"\");", "there is no word"),
        (
            "let t = model.loss(micro); let x = (t == 1.0) || (t < micro.tokens); t.matmul(t);",
            "`tensor.matmul` is not there yet",
        ),
        ("let t = model.loss(micro); t.backward(); t.backward();", "given its gradients already"),
        (
            "let t = model.loss(micro); (t - t.item()).backward(); opt.zero_grad(); (t * 2).backward();",
            "given its gradients already",
        ),
        (
            "let t = model.loss(micro); let sum = 0.0; for i in 0..20000 { sum += t; }",
            "a chain of more than 10000 operations",
        ),
        ("manual_seed(-1);", "a seed must not be negative"),
        ("model.chat([]);", "`model.chat` is not there yet"),
        ("nn::linear(1, 2);", "`nn::linear` is not there yet"),
    ] {
        let failure = session(&base, dir.path()).run_source("wrong", &format!("{PRELUDE}{script}")).unwrap_err();
        assert!(failure.message.contains(message), "{script}\nwanted {message}\ngot    {}", failure.message);
        assert!(failure.place.is_some(), "{script} has no place");
    }
}
