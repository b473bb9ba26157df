//! Runs that end too soon: what they leave on the disk.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use unslothify::train::{LoadSettings, Model};

use super::tiny;

/// Trains without end unless `limit` says otherwise, and says when three steps are done.
const TRAIN: &str = r#"let model = Model::from_pretrained("tiny");
    let batches = Dataset::from_json("mine.jsonl").tokenize(model.tokenizer).batches(#{ batch_size: 8, shuffle: false });
    model.add_lora(#{ r: 4, seed: 3 });
    let opt = optim::adamw(model.parameters());
    let done = 0;
    while done != limit {
        for step in batches.epoch(0) {
            if done == limit { break; }
            for micro in step { model.loss(micro).backward(); }
            opt.step(0.01);
            opt.zero_grad();
            done += 1;
            if done == 3 { print("started"); }
        }
    }
"#;

/// A folder with a tiny model, texts and the recipe `train.rhai`.
struct Place(tempfile::TempDir);

struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Place {
    fn new(recipe: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny::write(&dir.path().join("tiny"), 1);
        tiny::write_data(&dir.path().join("mine.jsonl"), 16);
        std::fs::write(dir.path().join("train.rhai"), format!("let limit = param(\"limit\", -1);\n{recipe}")).unwrap();
        Self(dir)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unslothify"));
        command.env("HF_HUB_OFFLINE", "1"); // no test reaches the network
        command.args(["train.rhai", "--threads", "2"]).args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    fn start(&self) -> Running {
        let mut child = self.command(&[]).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = BufReader::new(child.stderr.take().unwrap());
        let mut running = Running { child, out, err };
        let mut line = String::new();
        running.out.read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        running
    }

    fn latest(&self) -> PathBuf {
        self.0.path().join("outputs/latest").canonicalize().unwrap()
    }

    fn weights(&self, folder: &str) -> Vec<u8> {
        std::fs::read(self.latest().join(folder).join("adapter_model.safetensors")).unwrap()
    }
}

impl Running {
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").arg(name).arg(self.child.id().to_string()).status().unwrap().success());
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.err.read_line(&mut line).unwrap();
        line
    }

    /// The exit code and the rest of what was said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.err.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

/// The steps that the kept adapter has had, by what was said of it.
fn steps(said: &str) -> String {
    let (_, rest) = said.split_once("the adapter after ").unwrap_or_else(|| panic!("nothing was kept: {said}"));
    rest.split(' ').next().unwrap().to_string()
}

fn puts_on(place: &Place, adapter: &Path) {
    let model = Model::from_pretrained("tiny", place.0.path(), &LoadSettings::default()).unwrap();
    assert_eq!(model.load_adapter(adapter).unwrap().tensors, 28);
}

#[test]
fn an_interrupted_run_keeps_the_adapter_of_its_last_step() {
    let recipe = format!("{TRAIN}\nmodel.save_pretrained(\"adapter\");");
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let place = Place::new(&recipe);
        let running = place.start();
        running.signal(signal);
        let (ended, said) = running.end();
        assert_eq!(ended, Some(code), "{said}");
        assert!(said.contains("which the recipe had not saved, is in `outputs/train-"), "{said}");
        assert!(!place.latest().join("adapter").exists());
        for file in ["adapter_config.json", "tokenizer.json", "tokenizer_config.json"] {
            assert!(place.latest().join("interrupted").join(file).is_file(), "{file}");
        }
        puts_on(&place, &place.latest().join("interrupted"));
        let kept = place.weights("interrupted");
        // A run of as many steps, ended by nobody, gives the same bytes.
        let (ended, said) = place.run(&["--set", &format!("limit={}", steps(&said))]);
        assert_eq!(ended, Some(0), "{said}");
        assert!(kept == place.weights("adapter"), "the kept adapter is not that of the last step");
    }
}

#[test]
fn a_model_inside_a_function_is_kept_too() {
    let place = Place::new(&format!("fn train(limit) {{\n{TRAIN}\n}}\ntrain(limit);"));
    let running = place.start();
    running.signal("-INT");
    let (ended, said) = running.end();
    assert_eq!(ended, Some(130), "{said}");
    assert!(steps(&said).parse::<u32>().unwrap() >= 3);
    puts_on(&place, &place.latest().join("interrupted"));
}

#[test]
fn a_run_that_fails_after_training_keeps_its_adapter() {
    let place = Place::new(&format!("{TRAIN}\nmodel.save_pretraned(\"adapter\");"));
    let (ended, said) = place.run(&["--set", "limit=2"]);
    assert_eq!(ended, Some(1), "{said}");
    assert!(said.contains("save_pretrained") && steps(&said) == "2", "{said}");
    puts_on(&place, &place.latest().join("interrupted"));
}

#[test]
fn what_is_saved_or_never_trained_is_not_kept_again() {
    let saved = format!("{TRAIN}\nmodel.save_pretrained(\"adapter\");\nthrow \"later\";");
    for (recipe, limit) in [(TRAIN.to_string() + "\nthrow \"untrained\";", "limit=0"), (saved, "limit=2")] {
        let place = Place::new(&recipe);
        let (ended, said) = place.run(&["--set", limit]);
        assert_eq!(ended, Some(1), "{said}");
        assert!(!said.contains("the adapter after") && !place.latest().join("interrupted").exists(), "{said}");
    }
}

#[test]
fn the_second_ctrl_c_says_what_is_going_on_and_the_third_ends_at_once() {
    // Nobody reads more than the first line of what is printed: the run hangs in it, and cannot end in any other way.
    let hanging = "run::progress(#{ what: \"training\", done: 3, total: 60 });\n\
                   let text = \"started\\n\";\ntext.pad(1000000, \".\");\nprint(text);\n";
    let place = Place::new(hanging);
    let mut running = place.start();
    running.signal("-INT");
    assert_eq!(running.line(), "stopping; the run folder keeps what is done (twice more to end at once)\n");
    running.signal("-INT");
    assert_eq!(running.line(), "still stopping: training, 3 of 60 done (once more to end at once)\n");
    running.signal("-INT");
    let (ended, said) = running.end();
    assert_eq!((ended, said.as_str()), (Some(130), ""));
}
