//! The binary itself: exit codes, streams, run folders, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

const RECIPE: &str = r#"//! A small recipe.
//!
//! It trains nothing.

import "lib" as lib;

let rate = param("learning_rate", 2e-4, #{ above: 0.0, max: 1e-2, help: "peak rate" });
let data = param("data", "data.jsonl", #{ kind: "path", help: "JSON lines" });
let n = param("steps", 3, #{ min: 1, unit: "steps" });
let kind = param("kind", "linear", #{ choices: ["linear", "cosine"] });
print(`rate ${rate}`);
print(`data ${data}`);
print(lib::twice(n));
"#;

/// A folder with a recipe, `recipes/small.rhai`, that is also the shell's folder.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path().join("recipes")).unwrap();
        place.write("recipes/small.rhai", RECIPE);
        place.write("recipes/lib.rhai", "fn twice(x) { 2 * x }\n");
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unslothify"));
        command.env("HF_HUB_OFFLINE", "1"); // no test reaches the network
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UNSLOTHIFY_") {
                command.env_remove(name);
            }
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(&self.command(arguments).output().unwrap())
    }

    fn input(&self, arguments: &[&str], text: &str) -> (i32, String, String) {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        told(&child.wait_with_output().unwrap())
    }

    fn latest(&self) -> PathBuf {
        self.path().join("outputs").join(std::fs::read_link(self.path().join("outputs/latest")).unwrap())
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.latest().join(name)).unwrap()).unwrap()
    }

    fn has_outputs(&self) -> bool {
        self.path().join("outputs").exists()
    }
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_run_prints_results_and_keeps_its_folder() {
    let place = Place::new();
    let (code, out, err) = place.run(&["recipes/small.rhai", "--set", "steps=5", "--device", "cpu", "--threads", "2"]);
    assert_eq!((code, out.as_str()), (0, "rate 0.0002\ndata data.jsonl\n10\n"), "{err}");
    assert!(err.starts_with("run folder: outputs/small-"), "{err}");
    let read = |name: &str| std::fs::read_to_string(place.latest().join(name)).unwrap();
    assert_eq!(read("recipe.rhai"), RECIPE);
    assert_eq!(read("imports/lib.rhai"), "fn twice(x) { 2 * x }\n");
    let config = place.json("config.json");
    assert_eq!(config["parameters"]["steps"], serde_json::json!({ "value": 5, "origin": "--set" }));
    assert_eq!(config["parameters"]["kind"], serde_json::json!({ "value": "linear", "origin": "default" }));
    let run = place.json("run.json");
    assert_eq!((run["status"].as_str(), run["exit_code"].as_i64()), (Some("ok"), Some(0)));
    assert_eq!((run["device"].as_str(), run["threads"].as_i64()), (Some("cpu"), Some(2)));
    assert_eq!(run["argv"][1], "recipes/small.rhai");
    let log: Vec<Value> = read("log.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((log[0]["kind"].as_str(), log[0]["text"].as_str()), (Some("print"), Some("rate 0.0002")));
    assert!(!place.latest().join("metrics.jsonl").exists(), "nothing was measured");
}

#[test]
fn run_and_the_recipe_alone_are_the_same() {
    let place = Place::new();
    let (code, out, _) = place.run(&["run", "recipes/small.rhai", "--quiet"]);
    assert_eq!((code, out.as_str()), (0, "rate 0.0002\ndata data.jsonl\n6\n"));
}

#[test]
fn later_origins_win_over_earlier_ones() {
    let place = Place::new();
    place.write("p.json", r#"{ "learning_rate": 1e-3, "kind": "cosine", "steps": 7 }"#);
    let mut command =
        place.command(&["recipes/small.rhai", "--params", "p.json", "--set", "steps=9", "--set", "data=x/y"]);
    command.env("UNSLOTHIFY_PARAM_LEARNING_RATE", "0.002").env("UNSLOTHIFY_PARAM_STEPS", "8");
    let (code, out, err) = told(&command.output().unwrap());
    let data = place.path().join("x/y");
    assert_eq!((code, out), (0, format!("rate 0.002\ndata {}\n18\n", data.display())), "{err}");
    let config = place.json("config.json");
    assert_eq!(config["parameters"]["learning_rate"]["origin"], "environment");
    assert_eq!(config["parameters"]["kind"]["origin"], "params file p.json");
}

#[test]
fn help_of_a_recipe_tells_its_parameters_and_runs_nothing() {
    let place = Place::new();
    let (code, out, err) = place.run(&["recipes/small.rhai", "--help"]);
    assert_eq!((code, err.as_str(), place.has_outputs()), (0, "", false));
    let (head, options) = out.split_once("\nOptions:\n").unwrap();
    assert_snapshot!(head, @r"
    A small recipe.

    It trains nothing.

    Usage: unslothify recipes/small.rhai [--set NAME=VALUE]... [OPTIONS]

    Parameters:
      learning_rate  float   2e-4        (0, 0.01]        peak rate
      data           path    data.jsonl                   JSON lines
      steps          int     3 steps     [1, inf)
      kind           choice  linear      linear | cosine

    Imports: lib
    ");
    for option in ["--set", "--params", "--out", "--device", "--threads", "--quiet", "--color", "--help"] {
        assert!(options.contains(option), "{options}");
    }
}

#[test]
fn describe_gives_a_json_schema() {
    let place = Place::new();
    let (code, out, _) = place.run(&["describe", "recipes/small.rhai", "--json"]);
    let schema: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    assert_eq!(schema["properties"]["learning_rate"]["exclusiveMinimum"], 0.0);
    assert_eq!(schema["properties"]["steps"]["minimum"], 1);
    assert_eq!(schema["properties"]["kind"]["enum"], serde_json::json!(["linear", "cosine"]));
    assert_eq!(schema["x-imports"][0], "lib");
    assert!(!place.has_outputs());
}

#[test]
fn mistakes_of_the_command_line_exit_with_2_and_leave_no_folder() {
    let place = Place::new();
    let (_, _, unknown) = place.run(&["recipes/small.rhai", "--set", "lerning_rate=1"]);
    assert_snapshot!(unknown, @r"
    error: the recipe has no parameter `lerning_rate`
    hint: did you mean `learning_rate`? it has: learning_rate, data, steps, kind
    ");
    let (_, _, range) = place.run(&["recipes/small.rhai", "--set", "learning_rate=1"]);
    assert_snapshot!(range, @r"
    error: parameter `learning_rate` must be a number in (0, 0.01], got `1.0`
    hint: it was given by `--set learning_rate=1`
    ");
    let (_, _, missing) = place.run(&["recipes/smal.rhai"]);
    assert_snapshot!(missing, @r"
    error: there is no recipe `recipes/smal.rhai`
    hint: did you mean `recipes/small.rhai`?
    ");
    let wrong: [&[&str]; 12] = [
        &["recipes/small.rhai", "--set", "lerning_rate=1"],
        &["recipes/small.rhai", "--set", "learning_rate=nan"],
        &["recipes/small.rhai", "--set", "steps=2.5"],
        &["recipes/small.rhai", "--set", "kind=cosin"],
        &["recipes/small.rhai", "--set", "steps"],
        &["recipes/small.rhai", "--set", "data="],
        &["recipes/small.rhai", "--params", "nothing.json"],
        &["recipes/small.rhai", "--threads", "0"],
        &["recipes/small.rhai", "--frobnicate"],
        &["recipes"],
        &["recipes/smal.rhai"],
        &["recipes/smal.rhai", "--help"],
    ];
    for arguments in wrong {
        let (code, out, err) = place.run(arguments);
        assert_eq!((code, out.as_str(), place.has_outputs()), (2, "", false), "{arguments:?}: {err}");
        assert!(err.starts_with("error: "), "{arguments:?}: {err}");
    }
}

#[test]
fn a_recipe_that_fails_exits_with_1_and_says_where() {
    let place = Place::new();
    place.write("bad.rhai", "let a = 1;\nfn f(x) {\n    [x][a];\n}\n");
    let (code, _, err) = place.run(&["bad.rhai"]);
    assert_eq!((code, place.has_outputs()), (1, false), "a text that does not compile is never started");
    assert_snapshot!(err, @r"
    error: there is no variable `a`
     --> bad.rhai:3:9
      |
    3 |     [x][a];
      |         ^
    hint: functions do not see outer variables: pass `a` to `f` as an argument, make `f` a closure (`let f = |…| …`), or write `const a = …` and use `global::a`
    ");
    place.write("bad.rhai", "fn f(x) {\n    [x][3]\n}\nprint(\"started\");\nf(1);\n");
    let (code, out, err) = place.run(&["bad.rhai", "--quiet"]);
    assert_eq!((code, out.as_str()), (1, "started\n"));
    assert_snapshot!(err, @r"
    error: index 3 is out of bounds: the array has 1 element
     --> bad.rhai:2:9
      |
    2 |     [x][3]
      |         ^
      |
     ::: bad.rhai:5:1
      |
    5 | f(1);
      | - in call to `f`
    ");
    let run = place.json("run.json");
    assert_eq!((run["status"].as_str(), run["exit_code"].as_i64()), (Some("failed"), Some(1)));
    assert!(run["error"].as_str().unwrap().contains("bad.rhai:2:9"));
}

#[test]
fn an_output_folder_that_cannot_be_made_is_told_before_anything_runs() {
    let place = Place::new();
    place.write("taken", "");
    let (code, out, err) = place.run(&["recipes/small.rhai", "--out", "taken/deep"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("error: cannot make the output folder `taken/deep`"), "{err}");
    assert!(err.contains("--out DIR"), "{err}");
}

#[test]
fn endless_recursion_is_an_error_and_no_crash() {
    let place = Place::new();
    place.write("r.rhai", "fn f(x) { [x].map(|y| f(y)) }\nf(0);\n");
    let (code, _, err) = place.run(&["r.rhai", "--quiet"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("calls go more than 256 deep"), "{err}");
}

#[test]
fn texts_nested_deep_are_refused_and_crash_nothing() {
    let place = Place::new();
    for unit in ["(", "[", "{", "-", "!", "#{a:", "if true {", "|x| ", "f(", "1+(", "`${", "/*"] {
        let (code, _, err) = place.input(&["--quiet"], &unit.repeat(100_000));
        assert!(code == 0 || code == 1, "{unit}: {code} {}", &err[..err.len().min(300)]);
    }
}

#[test]
fn a_script_is_read_from_standard_input() {
    let place = Place::new();
    let (code, out, err) = place.input(&[], "print(1 + 1);");
    assert_eq!((code, out.as_str()), (0, "2\n"), "{err}");
    assert!(err.starts_with("run folder: outputs/stdin-"), "{err}");
    let (code, _, err) = place.input(&["-"], "print(x);");
    assert_eq!(code, 1);
    assert!(err.contains("--> stdin:1:7"), "{err}");
    let (code, _, err) = place.input(&[], "  \n");
    assert_eq!(code, 2);
    assert!(err.starts_with("error: no recipe is named, and standard input is empty"), "{err}");
}

#[cfg(unix)]
fn signalled(place: &Place, signals: &[&str], script: &str) -> (i32, String) {
    place.write("loop.rhai", script);
    let mut child: Child = place.command(&["loop.rhai"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    for signal in signals {
        assert!(Command::new("kill").arg(signal).arg(child.id().to_string()).status().unwrap().success());
    }
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (child.wait().unwrap().code().unwrap_or(-1), err)
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_and_its_record_says_so() {
    let place = Place::new();
    // it says so from inside the loop, so that the signal cannot come before line 3
    let script = "let said = false;\ntry {\n    loop { if !said { said = true; print(\"started\"); } }\n} catch { print(\"caught\"); }\n";
    let (code, err) = signalled(&place, &["-INT"], script);
    assert_eq!(code, 130, "{err}");
    assert!(err.contains("stopped at loop.rhai:3:"), "{err}");
    let run = place.json("run.json");
    assert_eq!((run["status"].as_str(), run["exit_code"].as_i64()), (Some("interrupted"), Some(130)));
}

#[cfg(unix)]
#[test]
fn sigterm_exits_with_143() {
    let place = Place::new();
    let (code, err) = signalled(&place, &["-TERM"], "print(\"started\");\n[1].for_each(|x| { loop { } });\n");
    assert_eq!(code, 143, "{err}");
    assert_eq!(place.json("run.json")["status"], "terminated");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_the_run_without_a_word() {
    let place = Place::new();
    place.write("long.rhai", "for i in 0..1000000 { print(i); }\n");
    let mut command = place.command(&["long.rhai", "--quiet"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((line.as_str(), err.as_str(), child.wait().unwrap().code()), ("0\n", "", Some(141)));
    // The help, too.
    let mut child = place.command(&["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(err, "");
    child.wait().unwrap();
}

#[test]
fn colour_is_for_those_who_want_it() {
    let place = Place::new();
    place.write("bad.rhai", "let x = y;\n");
    let (_, _, plain) = place.run(&["bad.rhai"]);
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let (_, _, styled) = place.run(&["bad.rhai", "--color", "always"]);
    assert!(styled.contains('\u{1b}'), "{styled}");
}

#[cfg(unix)]
#[test]
fn files_of_a_run_are_as_private_as_the_shell_asks() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_unslothify");
    for (mask, wanted) in [("077", 0o600), ("027", 0o640)] {
        let line = format!("umask {mask} && exec '{program}' recipes/small.rhai");
        let output = Command::new("sh").args(["-c", &line]).current_dir(place.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for name in ["run.json", "config.json", "recipe.rhai", "log.jsonl"] {
            let mode = std::fs::metadata(place.latest().join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, wanted, "{name}: {mode:o}");
        }
    }
}

#[test]
fn no_usable_gpu_exits_with_6_and_says_what_to_do() {
    let place = Place::new();
    place.write("recipes/gpu.rhai", "let model = Model::from_pretrained(\"builtin:tiny-mistral\");\n");
    let (code, _, err) = place.run(&["recipes/gpu.rhai", "--device", "cuda:99"]);
    assert_eq!(code, 6, "{err}");
    let is_told = ["there is no NVIDIA driver", "there is no GPU 99"].iter().any(|part| err.contains(part));
    assert!(is_told && err.contains("gpu.rhai:1:20"), "{err}");
    assert_eq!(place.json("run.json")["exit_code"], 6);
}

#[test]
fn doctor_tells_where_models_go_and_never_the_token() {
    let place = Place::new();
    let doctor = |variables: &[(&str, &str)]| {
        let mut command = place.command(&["doctor"]);
        for name in
            ["HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
        {
            command.env_remove(name);
        }
        command.env("HF_HOME", place.path().join("home"));
        command.envs(variables.iter().copied());
        let (code, out, err) = told(&command.output().unwrap());
        assert_eq!(code, 0, "{err}");
        out
    };
    let out = doctor(&[]);
    let cache = format!("cache     {}, ", place.path().join("home/hub").display());
    for part in [cache.as_str(), "GiB free", "runs      outputs, ", "https://huggingface.co; ", "token     none"] {
        assert!(out.contains(part), "no `{part}` in:\n{out}");
    }
    let out = doctor(&[("HF_TOKEN", "hf_secret"), ("HF_HUB_OFFLINE", "1")]);
    assert!(out.contains("token     found in HF_TOKEN") && !out.contains("hf_secret"), "{out}");
    assert!(!cfg!(feature = "hub") || out.contains("offline: HF_HUB_OFFLINE is set"), "{out}");
}

#[test]
fn what_was_chosen_stands_beside_what_was_given() {
    let place = Place::new();
    let recipe = "let rate = param(\"learning_rate\", 0.0); let base = param(\"base\", \"auto\", #{ kind: \"model\" });\n\
                  let model = Model::from_pretrained(base);\nrun::chose(\"learning_rate\", model.learning_rate);\n";
    place.write("recipes/choice.rhai", recipe);
    let (code, _, err) = place.run(&["recipes/choice.rhai", "--device", "cpu"]);
    assert_eq!(code, 0, "{err}");
    let parameters = &place.json("config.json")["parameters"];
    let rate = serde_json::json!({ "value": 0.0, "origin": "default", "chosen": 7e-4 });
    let base = serde_json::json!({ "value": "auto", "origin": "default", "chosen": "builtin:tiny-mistral" });
    assert_eq!((&parameters["learning_rate"], &parameters["base"]), (&rate, &base));
    assert!(err.contains("`auto` took builtin:tiny-mistral") && err.contains("base_model="), "{err}");
    place.write("recipes/choice.rhai", "run::chose(\"rate\", 1.0);\n");
    assert_eq!(place.run(&["recipes/choice.rhai"]).0, 0);
    assert_eq!(
        place.json("config.json")["parameters"],
        serde_json::json!({ "rate": { "chosen": 1.0 } }),
        "no parameter"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_killed_run_left_in_its_folder_goes_with_the_next_run() {
    let place = Place::new();
    assert_eq!(place.run(&["recipes/small.rhai"]).0, 0);
    let old = place.latest();
    // As old as one of another machine must be; what is new is somebody's who still writes.
    for (name, age) in [(".unslothify-old", 90_000), (".unslothify-new", 0)] {
        std::fs::create_dir(old.join(name)).unwrap();
        let folder = std::fs::File::open(old.join(name)).unwrap();
        folder.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    assert_eq!(place.run(&["recipes/small.rhai"]).0, 0);
    assert!(!old.join(".unslothify-old").exists() && old.join(".unslothify-new").exists());
}
