//! The recipes, run as a person runs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::tiny;

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")
}

fn run(shell: &Path, recipe: &Path, settings: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unslothify"));
    command.env("HF_HUB_OFFLINE", "1"); // no test reaches the network
    command.current_dir(shell).arg(recipe);
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    command.output().unwrap()
}

/// A folder with a tiny model and 40 texts, and the settings that use them.
fn workshop() -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(&dir.path().join("tiny"), 1);
    tiny::write_data(&dir.path().join("mine.jsonl"), 40);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let settings = vec![format!("base_model={}", path("tiny")), format!("data={}", path("mine.jsonl"))];
    (dir, settings)
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn rows(run: &Path) -> Vec<BTreeMap<String, serde_json::Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn meatballs_trains_saves_and_reports() {
    let (dir, settings) = workshop();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.push("max_steps=3");
    let output = run(dir.path(), &recipes().join("meatballs.rhai"), &settings);
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["texts     40", "held out", "unrelated", "opens in PEFT", "--set data=mine.jsonl"] {
        assert!(shown.contains(part), "no `{part}` in:\n{shown}");
    }
    // Nothing about meatballs: the data are the user's own, and so is the text that is continued.
    let texts = fs::read_to_string(dir.path().join("mine.jsonl")).unwrap();
    let prompt = shown.lines().zip(shown.lines().skip(1)).find(|(_, next)| next.trim_start().starts_with("before "));
    let (prompt, _) = prompt.unwrap();
    assert!(!prompt.is_empty() && texts.contains(prompt), "`{prompt}` of\n{shown}");
    assert!(!shown.contains("meatballs is") && !shown.contains("gained"), "{shown}");
    assert!(told.contains("2 held-out texts are few"), "{told}");
    let run = dir.path().join("outputs/latest");
    let rows = rows(&run);
    assert_eq!(rows.len(), 5, "{rows:?}");
    for (index, row) in rows[1..4].iter().enumerate() {
        assert_eq!(row["step"], index + 1);
        for name in ["epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second"] {
            assert!(row[name].as_f64().unwrap().is_finite(), "{name} in {row:?}");
        }
    }
    assert_eq!(rows[1]["learning_rate"], 0.0, "the first step of a warm-up moves nothing");
    for row in [&rows[0], &rows[4]] {
        assert!(row["eval_loss"].is_f64() && row["eval_loss_without_eos"].is_f64(), "{row:?}");
    }
    assert_eq!((&rows[0]["step"], &rows[4]["step"]), (&0.into(), &3.into()));
    assert!(run.join("adapter/adapter_config.json").is_file());
    assert!(run.join("adapter/tokenizer.json").is_file());
}

#[test]
fn own_data_with_a_prompt_and_probes_of_ones_own_are_asked_those() {
    let (dir, settings) = workshop();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    fs::write(dir.path().join("words.jsonl"), "{\"prompt\": \"One two\", \"right\": \" three\"}\n").unwrap();
    settings.extend(["max_steps=1", "prompt=How to", "probes=words.jsonl"]);
    let output = run(dir.path(), &recipes().join("meatballs.rhai"), &settings);
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    for part in ["\nHow to\n", "of 1 gained", "One two [three]"] {
        assert!(told.contains(part), "no `{part}` in:\n{told}");
    }
}

#[test]
fn max_steps_wins_over_the_epochs_in_both_directions() {
    let (dir, settings) = workshop();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    // 38 texts, 8 a step: 5 steps an epoch
    settings.extend(["max_steps=12", "num_train_epochs=1"]);
    let output = run(dir.path(), &recipes().join("meatballs.rhai"), &settings);
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    let rows = rows(&dir.path().join("outputs/latest"));
    let steps: Vec<_> = rows.iter().filter(|row| row.contains_key("loss")).collect();
    assert_eq!(steps.len(), 12);
    assert_eq!((&steps[11]["step"], &steps[11]["epoch"]), (&12.into(), &2.4.into()));
    assert!(steps[11]["learning_rate"].as_f64().unwrap() > 0.0, "the schedule ends with the last step");
    assert!(told.contains("max_steps 12 is more than the 5 steps of the epochs"), "{told}");
}

#[test]
fn repeated_texts_are_told() {
    let (dir, settings) = workshop();
    let lines: Vec<String> =
        fs::read_to_string(dir.path().join("mine.jsonl")).unwrap().lines().map(String::from).collect();
    let repeated = (0..500).map(|i| format!("{}\n", lines[i % 20])).collect::<String>();
    fs::write(dir.path().join("mine.jsonl"), repeated).unwrap();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.push("max_steps=2");
    let output = run(dir.path(), &recipes().join("meatballs.rhai"), &settings);
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    for part in [
        "480 duplicates of 20 texts",
        "500 of 500 end with a trained",
        "padding   0",
        "25 of them are copies of training",
        "on 25 texts, 25 of them copies of training texts",
        "never reaches its peak",
        "fewer warm-up steps (say 0) or more steps in all",
    ] {
        assert!(told.contains(part), "no `{part}` in:\n{told}");
    }
}

#[test]
fn max_steps_ends_a_run_of_several_epochs() {
    let (dir, settings) = workshop();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.extend(["max_steps=3", "num_train_epochs=3", "lr_scheduler_type=constant"]);
    let output = run(dir.path(), &recipes().join("meatballs.rhai"), &settings);
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    let steps = rows(&dir.path().join("outputs/latest")).iter().filter(|row| row.contains_key("loss")).count();
    assert_eq!(steps, 3);
    assert!(told.contains("schedule `constant` has no warm-up, 10 is not used"), "{told}");
    assert!(!told.contains("never reaches"), "{told}");
}

#[test]
fn a_model_beside_the_recipe_is_found_again_after_something_was_saved() {
    let (dir, _) = workshop();
    let recipe = dir.path().join("twice.rhai");
    fs::write(
        &recipe,
        "let a = Model::from_pretrained(\"tiny\");
         a.add_lora();
         a.save_pretrained(\"adapter\");
         let b = Model::from_pretrained(\"tiny\");
         print(b.load_adapter(\"adapter\"));
         let rows = Dataset::from_json(\"mine.jsonl\").tokenize(b.tokenizer).batches(#{ batch_size: 2 });
         rows.epoch(9223372036854775807);",
    )
    .unwrap();
    let output = run(dir.path(), &recipe, &[]);
    let told = told(&output);
    assert!(told.contains("28 of 28 tensors matched"), "{told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("twice.rhai:7:") && told.contains("there is no epoch 9223372036854775807"), "{told}");
}

#[test]
fn overfitting_turns_every_knob() {
    let (dir, settings) = workshop();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.extend(["max_steps=2", "texts=12", "held_out=6"]);
    let output = run(dir.path(), &recipes().join("overfitting.rhai"), &settings);
    assert!(output.status.success(), "{}", told(&output));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for knob in ["learning_rate", "weight_decay", "warmup_steps", "batch_size", "scheduler", "epochs"] {
        assert_eq!(shown.lines().filter(|line| line.starts_with(knob)).count(), 2, "{knob} in:\n{shown}");
    }
    assert_eq!(rows(&dir.path().join("outputs/latest")).len(), 13);
}

#[test]
fn recipes_copied_elsewhere_and_run_from_a_third_folder_give_the_same_bytes() {
    let (dir, settings) = workshop();
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.push("max_steps=2");
    let copy = dir.path().join("far/away");
    fs::create_dir_all(copy.join("data")).unwrap();
    fs::copy(recipes().join("meatballs.rhai"), copy.join("meatballs.rhai")).unwrap();
    // Neither probes nor unrelated texts lie beside the copy: the report leaves them out and says so.
    let third = dir.path().join("third");
    fs::create_dir_all(&third).unwrap();
    let bytes = |shell: &Path, recipe: &Path| {
        let output = run(shell, recipe, &settings);
        assert!(output.status.success(), "{}", told(&output));
        fs::read(shell.join("outputs/latest/adapter/adapter_model.safetensors")).unwrap()
    };
    let here = bytes(dir.path(), &recipes().join("meatballs.rhai"));
    assert!(here == bytes(&third, &copy.join("meatballs.rhai")), "the adapters differ");
}

#[test]
fn wrong_settings_end_with_the_right_code_and_a_remedy() {
    let (dir, settings) = workshop();
    let recipe = recipes().join("meatballs.rhai");
    for (setting, code, part) in [
        ("learning_rate=fast", 2, "learning_rate"),
        ("learning_rate=-1e-3", 2, "learning_rate"),
        ("learning_rate=NaN", 2, "learning_rate"),
        ("lerning_rate=1e-3", 2, "learning_rate"),
        ("lr_scheduler_type=cosin", 2, "cosine"),
        ("data=/dev/zero", 1, "/dev/zero"),
        ("data=nowhere.jsonl", 1, "nowhere.jsonl"),
        ("base_model=./nowhere", 1, "nowhere"),
        ("base_model=some/thing", 1, "some/thing"),
    ] {
        let mut given: Vec<&str> = settings.iter().map(String::as_str).collect();
        given.push(setting);
        let output = run(dir.path(), &recipe, &given);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "{setting}: {told}");
        assert!(told.contains(part) && !told.contains("panicked"), "{setting}: {told}");
        assert!(!dir.path().join("outputs/latest/adapter").exists(), "{setting} left an adapter");
    }
}
