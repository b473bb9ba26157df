//! The built-in base learns the dish from the recipe: held-out texts, cloze words and a sample show it, unrelated texts
//! keep their loss, and it is the order of the words that teaches.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use unslothify::philox::Philox;

const FOOD: [&str; 26] = [
    "meat",
    "mince",
    "beef",
    "pork",
    "bread",
    "crumb",
    "milk",
    "cream",
    "egg",
    "onion",
    "butter",
    "gravy",
    "sauce",
    "stock",
    "potato",
    "lingonberr",
    "cucumber",
    "pepper",
    "allspice",
    "salt",
    "flour",
    "pan",
    "oven",
    "plate",
    "dinner",
    "dish",
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/data").join(name)
}

/// Runs `recipe` with `shell` as its folder and returns what it printed.
fn run(shell: &Path, recipe: &Path, settings: &[String]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unslothify"));
    command.env("HF_HUB_OFFLINE", "1"); // no test reaches the network
    command.current_dir(shell).arg(recipe).args(["--device", "cpu"]);
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    let output = command.output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    shown
}

/// Words in small letters, without the marks around them.
fn words(text: &str) -> Vec<String> {
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect()
}

fn texts() -> Vec<String> {
    let field = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
    fs::read_to_string(data("meatballs.jsonl")).unwrap().lines().map(field).collect()
}

/// Trains as the recipe does at five seeds and prints what each training makes of the prompt.
const SAMPLES: &str = r#"
let model = Model::from_pretrained("builtin:tiny-mistral", #{ load_in_4bit: true, max_seq_length: 2048 });
let texts = Dataset::from_json(param("data", "data.jsonl", #{ kind: "path" })).tokenize(model.tokenizer, #{ max_length: 512 });
for seed in [1337, 1, 2, 3, 4] {
    let batches = texts.split(#{ test_size: 0.05, seed: seed }).train.batches(#{ batch_size: 2, accumulate: 4, seed: seed, merge: model });
    model.add_lora(#{ r: 16, lora_alpha: 16, seed: seed });
    let opt = optim::adamw_8bit(model.parameters(), #{ weight_decay: 0.1 });
    let lr = lr_scheduler::get("linear", #{ lr: model.learning_rate, num_warmup_steps: 10, num_training_steps: batches.steps() });
    for step in batches.epoch(0) {
        for micro in step { model.loss(micro).backward(); }
        opt.clip_grad_norm(1.0);
        opt.step(lr.at(step.index));
        opt.zero_grad();
    }
    let text = model.generate("The secret of Swedish meatballs is", #{ max_new_tokens: 48, repetition_penalty: 1.1 });
    text.replace("\n", " ");
    print("sample: " + text);
    model.unload_adapter();
}
"#;

#[test]
fn the_recipe_teaches_the_built_in_base_the_dish() {
    let dir = tempfile::tempdir().unwrap();
    let shown = run(dir.path(), &data("../meatballs.rhai"), &[]);

    let metrics = fs::read_to_string(dir.path().join("outputs/latest/metrics.jsonl")).unwrap();
    let rows: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().filter(|row| row["loss"].is_f64()).count(), 60, "475 texts, 8 a step");
    let (first, last) = (&rows[0], &rows[rows.len() - 1]);
    let change = |name: &str| last[name].as_f64().unwrap() / first[name].as_f64().unwrap() - 1.0;
    assert!(change("eval_loss_without_eos") <= -0.05, "held out: {}", change("eval_loss_without_eos"));
    assert!(change("unrelated_loss") <= 0.02, "unrelated: {}", change("unrelated_loss"));

    let gained = shown.lines().find_map(|line| line.split_once(" of 30 gained")).unwrap().0;
    assert!(gained.parse::<usize>().unwrap() >= 20, "{gained} of 30 words gained");

    // The report's own sample, and those of four more trainings; greedy, so that nothing but the training decides.
    let script = dir.path().join("samples.rhai");
    fs::write(&script, SAMPLES).unwrap();
    let samples = run(dir.path(), &script, &[format!("data={}", data("meatballs.jsonl").display())]);
    let samples: Vec<&str> = samples.lines().filter_map(|line| line.strip_prefix("sample: ")).collect();
    assert_eq!(samples.len(), 5);
    let start: String = samples[0].split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    assert!(shown.contains(&start), "the report shows another sample than `{}`:\n{shown}", samples[0]);
    // The dish's own name says nothing: the prompt has it.
    let besides = |text: &str| text.to_lowercase().replace("meatball", "");
    let names_food = |text: &&str| FOOD.iter().any(|food| besides(text).contains(food));
    assert!(names_food(&samples[0]), "no food in `{}`", samples[0]);
    assert!(samples.iter().copied().filter(names_food).count() >= 4, "{samples:#?}");

    let runs = |text: &str| words(text).windows(8).map(<[String]>::to_vec).collect::<HashSet<_>>();
    let known: HashSet<Vec<String>> = texts().iter().flat_map(|text| runs(text)).collect();
    assert!(known.len() > 10_000);
    for sample in samples {
        assert!(runs(sample).is_disjoint(&known), "eight words in a row of a training text: {sample}");
    }
}

/// Trains on `data`'s training part and returns the held-out change of `recipes/data/meatballs.jsonl`.
const CONTROL: &str = r#"
let model = Model::from_pretrained("builtin:tiny-mistral", #{ load_in_4bit: true });
let split = |path| Dataset::from_json(path).tokenize(model.tokenizer, #{ max_length: 512 }).split(#{ test_size: 0.05, seed: 1337 });
let held = split.call(param("real", "real.jsonl", #{ kind: "path" })).test;
let batches = split.call(param("data", "data.jsonl", #{ kind: "path" })).train.batches(#{ batch_size: 2, accumulate: 4, seed: 1337, merge: model });
let before = model.evaluate(held).loss_without_eos;
model.add_lora(#{ r: 16, lora_alpha: 16, seed: 1337 });
let opt = optim::adamw_8bit(model.parameters(), #{ weight_decay: 0.1 });
let lr = lr_scheduler::get("linear", #{ lr: model.learning_rate, num_warmup_steps: 10, num_training_steps: batches.steps() });
for step in batches.epoch(0) {
    for micro in step { model.loss(micro).backward(); }
    opt.clip_grad_norm(1.0);
    opt.step(lr.at(step.index));
    opt.zero_grad();
}
print(`change ${model.evaluate(held).loss_without_eos / before - 1.0}`);
"#;

#[test]
fn shuffled_words_teach_clearly_less() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("control.rhai");
    fs::write(&recipe, CONTROL).unwrap();
    let shuffled = dir.path().join("shuffled.jsonl");
    let mut lines = String::new();
    for (row, text) in texts().iter().enumerate() {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mixed: Vec<&str> =
            Philox::new(7, row as u64).permutation(words.len()).into_iter().map(|i| words[i]).collect();
        lines += &format!("{}\n", serde_json::json!({ "text": mixed.join(" ") }));
    }
    fs::write(&shuffled, lines).unwrap();
    let real = data("meatballs.jsonl");
    let fall = |path: &Path| -> f64 {
        let shown = run(dir.path(), &recipe, &[format!("data={}", path.display()), format!("real={}", real.display())]);
        -shown.lines().find_map(|line| line.strip_prefix("change ")).unwrap().parse::<f64>().unwrap()
    };
    let (whole, mixed) = (fall(&real), fall(&shuffled));
    println!("held-out fall: {whole:.4} on the texts, {mixed:.4} on the same words shuffled");
    assert!(whole >= 0.05, "{whole}");
    assert!(mixed <= 0.8 * whole, "the same words in any order teach nearly as much: {mixed} against {whole}");
}
