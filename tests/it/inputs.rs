//! What a person may get wrong, run as a person runs it: each ends with its place, a remedy and the right exit code.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::tiny;

/// Uses every part that can be given something wrong, and ends with a saved adapter.
const RECIPE: &str = r#"let base = param("base", "tiny", #{ kind: "model" });
let data = param("data", "mine.jsonl", #{ kind: "path" });
let rate = param("learning_rate", 1e-3, #{ above: 0.0, max: 1e-2 });
let model = Model::from_pretrained(base);
let batches = Dataset::from_json(data).tokenize(model.tokenizer, #{ max_length: 400 }).batches(#{ batch_size: 4 });
model.add_lora(#{ r: 4 });
let opt = optim::adamw(model.parameters());
for step in batches.epoch(0) {
    for micro in step { model.loss(micro).backward(); }
    opt.step(rate);
    opt.zero_grad();
}
model.save_pretrained("adapter");
"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        tiny::write(&place.path("tiny"), 1);
        tiny::write_data(&place.path("mine.jsonl"), 8);
        place.write("train.rhai", RECIPE);
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_unslothify")).args(arguments).output().unwrap()
    }

    /// Runs the recipe with one setting and fails unless it ends with `code`, says every one of `parts` and leaves
    /// nothing that looks like a result.
    fn refuses(&self, setting: &str, code: i32, parts: &[&str]) {
        let mut arguments = vec!["train.rhai"];
        if !setting.is_empty() {
            arguments.extend(["--set", setting]);
        }
        let output = self.run(&arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{setting}: {said}");
        for part in parts {
            assert!(said.contains(part), "{setting}: no `{part}` in\n{said}");
        }
        assert!(said.contains("error: ") && !said.contains("panicked"), "{setting}: {said}");
        assert!(!self.path("outputs/latest/adapter").exists(), "{setting} left an adapter");
    }
}

#[test]
fn the_recipe_of_these_tests_works() {
    let place = Place::new();
    let output = place.run(&["train.rhai"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.path("outputs/latest/adapter/adapter_config.json").is_file());
}

#[test]
fn misspelt_names_are_told_with_their_place_and_the_right_one() {
    for (from, to, place_of, parts) in [
        ("r: 4", "rr: 4", "train.rhai:6:19", ["unknown option `rr`", "did you mean `r`?"]),
        ("optim::adamw", "optm::adamw", "train.rhai:7:11", ["there is no module `optm`", "did you mean `optim`?"]),
        ("batches.epoch", "batchs.epoch", "train.rhai:8:13", ["no variable `batchs`", "did you mean `batches`?"]),
        ("opt.zero_grad", "opt.zero_gard", "train.rhai:11:9", ["no method `zero_gard`", "did you mean `zero_grad`?"]),
    ] {
        let place = Place::new();
        assert!(RECIPE.contains(from), "{from}");
        place.write("train.rhai", RECIPE.replace(from, to));
        place.refuses("", 1, &[place_of, parts[0], parts[1]]);
    }
}

#[test]
fn settings_that_are_no_rates_or_no_parameters_exit_with_2() {
    let place = Place::new();
    for rate in ["fast", "-1e-3", "NaN", "inf", "1e400", ""] {
        place.refuses(&format!("learning_rate={rate}"), 2, &["`learning_rate` must be a number in (0, 0.01]", "--set"]);
    }
    place.refuses("lerning_rate=1e-3", 2, &["no parameter `lerning_rate`", "did you mean `learning_rate`?"]);
    assert!(!place.path("outputs").exists(), "nothing has been started");
}

#[test]
fn data_that_cannot_be_read_names_its_file_and_line() {
    let place = Place::new();
    place.write("bad.jsonl", "{\"text\": \"good\"}\n{\"text\": \"bad\n{\"text\": \"good\"}\n");
    place.write("empty.jsonl", "");
    place.write("blank.jsonl", "\n\n");
    place.write("bytes.jsonl", b"\xff\xfe\x00");
    place.write("field.jsonl", "{\"txt\": \"x\"}\n");
    place.write("long.jsonl", format!("{{\"text\": \"short\"}}\n{{\"text\": \"{}\"}}\n", "much ".repeat(300)));
    let at = "train.rhai:5:24";
    place.refuses("data=mine.json", 1, &[at, "mine.json` does not exist", "did you mean `", "mine.jsonl`?"]);
    place.refuses("data=bad.jsonl", 1, &[at, "bad.jsonl` line 2, column 13: not JSON", "one whole object"]);
    // the line itself, with a caret at the place, and the recipe as the way there
    place.refuses(
        "data=bad.jsonl",
        1,
        &["bad.jsonl:2:13", "2 | {\"text\": \"bad", "::: ", "read here", "hint: each line"],
    );
    place.refuses("data=empty.jsonl", 1, &[at, "empty.jsonl` is empty", "at least one row"]);
    place.refuses("data=blank.jsonl", 1, &[at, "blank.jsonl` holds only blank lines"]);
    place.refuses("data=bytes.jsonl", 1, &[at, "bytes.jsonl` line 1 is not UTF-8", "save the file as UTF-8"]);
    place.refuses("data=field.jsonl", 1, &["train.rhai:5:40", "field.jsonl` line 1", "`text`", "`txt`"]);
    place.refuses("data=tiny", 1, &[at, "tiny` is a folder"]);
    place.refuses("data=long.jsonl", 1, &["longer than `max_length`", "long.jsonl` line 2", "overflow: \"truncate\""]);
    #[cfg(unix)]
    place.refuses("data=/dev/zero", 1, &[at, "`/dev/zero` is a device"]);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_change_nothing() {
    let place = Place::new();
    let adapter = || {
        let output = place.run(&["train.rhai"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(place.path("outputs/latest/adapter/adapter_model.safetensors")).unwrap()
    };
    let plain = adapter();
    let lines = fs::read_to_string(place.path("mine.jsonl")).unwrap();
    place.write("mine.jsonl", format!("\u{feff}{}", lines.replace('\n', "\r\n")));
    assert!(plain == adapter(), "the adapters differ");
}

/// A copy of the tiny model with one file changed.
fn damaged(place: &Place, name: &str, file: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) {
    tiny::write(&place.path(name), 1);
    let path = format!("{name}/{file}");
    place.write(&path, change(fs::read(place.path(&path)).unwrap()));
}

#[test]
fn model_files_that_are_cut_or_junk_are_named() {
    let place = Place::new();
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let junk = |bytes: Vec<u8>| (0..bytes.len()).map(|i| (i * 37 % 251) as u8).collect();
    let at = "train.rhai:4:20";
    damaged(&place, "cut", "model.safetensors", half);
    place.refuses("base=cut", 1, &[at, "cut/model.safetensors` is cut or no safetensors file", "download it again"]);
    damaged(&place, "junk", "model.safetensors", junk);
    place.refuses("base=junk", 1, &[at, "junk/model.safetensors` is cut or no safetensors file"]);
    damaged(&place, "void", "model.safetensors", |_| Vec::new());
    place.refuses("base=void", 1, &[at, "void/model.safetensors` is cut or no safetensors file"]);
    damaged(&place, "config", "config.json", half);
    place.refuses("base=config", 1, &[at, "config/config.json` is not valid JSON", "line 1"]);
    damaged(&place, "words", "tokenizer.json", half);
    place.refuses("base=words", 1, &[at, "words/tokenizer.json` is not JSON at line 1", "is the file complete?"]);
    let gguf = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights/tiny.gguf")).unwrap();
    place.write("cut.gguf", &gguf[..gguf.len() / 2]);
    place.write("junk.gguf", junk(gguf));
    place.write("void.gguf", "");
    for name in ["cut", "junk", "void"] {
        place.refuses(&format!("base={name}.gguf"), 1, &[at, &format!("{name}.gguf` is cut or no GGUF file")]);
    }
    place.refuses("base=tiny/model.safetensors", 1, &[at, "give the folder that also has `config.json`"]);
    place.refuses(
        "base=nobody/nothing",
        1,
        &[at, "`nobody/nothing` is not on this machine and HF_HUB_OFFLINE forbids"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_made_is_told_before_training() {
    let place = Place::new();
    let output = place.run(&["train.rhai", "--out", "/proc/nowhere"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot make the output folder `/proc/nowhere`") && said.contains("--out DIR"), "{said}");
}

/// Files beyond so many kilobytes are refused, as a full disk refuses them.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_leaves_no_half_written_adapter() {
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_unslothify");
    let limited = format!("trap '' XFSZ; ulimit -f 12; exec {program} train.rhai");
    let output = place.command("bash").args(["-c", &limited]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in
        ["error: no space left for `", "train.rhai:13:7", "the adapter after 2 optimizer steps could not be kept"]
    {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }
    let left: Vec<String> = fs::read_dir(place.path("outputs/latest"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("adapter") || name.contains("interrupted") || name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_on_a_full_disk_keeps_whole_lines_and_is_complained_of_once() {
    let place = Place::new();
    place.write("say.rhai", "for i in 0..300 { print(`line ${i} of three hundred`); }\n");
    let limited = format!("trap '' XFSZ; ulimit -f 12; exec {} say.rhai", env!("CARGO_BIN_EXE_unslothify"));
    let output = place.command("bash").args(["-c", &limited]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 300);
    assert_eq!(said.matches("warning: cannot write `").count(), 1, "{said}");
    let log = fs::read_to_string(place.path("outputs/latest/log.jsonl")).unwrap();
    assert!(log.lines().count() > 50 && log.ends_with("}\n"), "{log}");
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{log}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_takes_no_more_is_an_error_and_no_closed_pipe() {
    let place = Place::new();
    place.write("say.rhai", "print(\"a\");\nprint(\"b\");\n");
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let program = env!("CARGO_BIN_EXE_unslothify");
    for arguments in [&["say.rhai"][..], &["say.rhai", "--help"], &["--help"]] {
        let output = place.command(program).args(arguments).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("cannot write to standard output: No space left"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_stream_function_that_fails_ends_the_text_at_once() {
    let place = Place::new();
    place.write(
        "stream.rhai",
        "let model = Model::from_pretrained(\"tiny\");
let show = |piece| { print(`piece ${piece}`); throw \"enough\"; };
model.generate(\"a\", #{ max_new_tokens: 40, stream: show });",
    );
    let output = place.run(&["stream.rhai"]);
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("enough"), "{said}");
    assert_eq!(shown.matches("piece ").count(), 1, "{shown}");
}

#[test]
fn an_epoch_beyond_counting_is_refused() {
    let place = Place::new();
    let script = |number: &str| {
        place.write(
            "epoch.rhai",
            format!(
                "let model = Model::from_pretrained(\"tiny\");
let tokens = Dataset::from_json(\"mine.jsonl\").tokenize(model.tokenizer, #{{ text: \"text\", max_length: 400 }});
let batches = tokens.batches(#{{ batch_size: 2 }});
for step in batches.epoch({number}) {{ print(step.index); break; }}"
            ),
        );
        place.run(&["epoch.rhai"])
    };
    let output = script("1000");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for number in ["-1", "9223372036854775807", "4611686018427387904"] {
        let output = script(number);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{number}: {said}");
        assert!(
            said.contains("epoch") && said.contains("epoch.rhai:4") && !said.contains("panicked"),
            "{number}: {said}"
        );
    }
}
