//! The building's plan, checked: who may use whom, how long a file may be, what an operation's folder holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Room, and the rooms it may use. A room that is missing here fails the test.
const ROOMS: &[(&str, &[&str])] = &[
    ("philox", &[]),
    ("io", &[]),
    ("quant", &[]),
    ("schedule", &[]),
    ("kernels", &["quant", "philox", "io"]),
    ("weights", &["quant", "io"]),
    ("hub", &["weights", "io"]),
    ("tokenizer", &["weights", "io"]),
    ("optim", &["kernels"]),
    ("data", &["tokenizer", "philox", "io"]),
    ("engine", &["kernels", "weights", "quant", "philox"]),
    ("generate", &["tokenizer", "philox"]),
    ("export", &["engine", "kernels", "weights", "tokenizer", "io"]),
    ("train", &["engine", "kernels", "weights", "data", "optim", "tokenizer", "hub", "generate", "export", "io"]),
    ("recipe", &["io"]),
    ("run", &["io", "recipe"]),
    (
        "script",
        &[
            "train",
            "generate",
            "export",
            "data",
            "hub",
            "tokenizer",
            "optim",
            "schedule",
            "recipe",
            "run",
            "io",
            "philox",
        ],
    ),
    ("cli", &["script", "recipe", "run", "io"]),
];

/// Words only some files may say, and who.
const RESERVED: &[(&str, &[&str])] = &[
    ("std::fs", &["src/io.rs", "src/io/"]),
    // What touches the disk without saying so.
    (".exists()", &["src/io.rs", "src/io/"]),
    (".is_file()", &["src/io.rs", "src/io/"]),
    (".is_dir()", &["src/io.rs", "src/io/"]),
    (".read_dir()", &["src/io.rs", "src/io/"]),
    (".canonicalize()", &["src/io.rs", "src/io/"]),
    ("candle_", &["src/train/glue.rs", "src/script/modules/", "src/generate/"]),
    ("anyhow", &["src/cli/", "src/main.rs"]),
    ("rhai::", &["src/script/", "src/recipe/", "src/cli/"]),
    ("unsafe_code", &["src/io.rs", "src/io/", "src/kernels/"]),
];

const LONGEST_FILE: usize = 500;

/// `src/kernels/` entries that are not operations.
const NOT_OPERATIONS: &[&str] = &["cpu", "cuda", "reference", "testing"];

/// Operations without a kernel of their own: their products are cuBLASLt's.
const NO_KERNEL: &[&str] = &[];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| path.extension().is_some_and(|e| e == *ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// The first part of a path under `src/`: `src/engine/lora.rs` and `src/io.rs` belong to `engine` and `io`.
fn room(path: &str) -> String {
    let inside = path.trim_start_matches("src/");
    inside.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/") || path.contains("/testing")
}

/// Code lines: comments and everything after the first `#[cfg(test)]` module left out.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let is_test_module =
        |i: usize| lines[i].trim() == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|l| l.ends_with('{'));
    let end = (0..lines.len()).find(|&i| is_test_module(i)).unwrap_or(lines.len());
    let shown = lines[..end].iter().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    shown.map(|(i, line)| (i + 1, (*line).to_owned())).collect()
}

/// The lines with each `use` that rustfmt has broken over several in one, under the number of its first.
fn statements(lines: Vec<(usize, String)>) -> Vec<(usize, String)> {
    let mut joined: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (number, line) in lines {
        let start = line.trim_start();
        match joined.last_mut() {
            Some((_, statement)) if is_open => *statement += start,
            _ => {
                let visible = start.strip_prefix("pub").map_or(start, |rest| rest.trim_start_matches("(super)"));
                is_open = visible.trim_start_matches("(crate)").trim_start().starts_with("use ");
                joined.push((number, line.clone()));
            }
        }
        is_open &= !line.contains(';');
    }
    joined
}

/// The parts of `{a, b::{c, d}} …` that commas of its own level part.
fn parts(list: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for letter in list.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => parts.push(String::new()),
            _ if depth == 1 => parts.last_mut().unwrap().push(letter),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    parts
}

/// Every `crate::NAME`, and the names in `use crate::{a, b::c}`.
fn uses(line: &str) -> Vec<String> {
    line.split("crate::")
        .skip(1)
        .flat_map(|rest| {
            let names = if rest.starts_with('{') { parts(rest) } else { vec![rest.to_owned()] };
            names
                .into_iter()
                .map(|name| name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn rooms_use_only_rooms_below_them() {
    let table: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for path in files("src", &["rs"]) {
        let name = relative(&path);
        if is_test(&name) || name == "src/lib.rs" || name == "src/main.rs" {
            continue;
        }
        let from = room(&name);
        let Some(allowed) = table.get(from.as_str()) else {
            wrong.push(format!("{name}: room `{from}` is not in the table of tests/it/layers.rs"));
            continue;
        };
        for (number, line) in statements(code(&path)) {
            for to in uses(&line) {
                if table.contains_key(to.as_str()) && to != from && !allowed.contains(&to.as_str()) {
                    wrong.push(format!("{name}:{number}: `{from}` may not use `{to}`"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_names_no_room_twice_and_has_no_cycle() {
    for (index, (name, uses)) in ROOMS.iter().enumerate() {
        assert!(ROOMS[..index].iter().all(|(other, _)| other != name), "{name} twice");
        for used in *uses {
            assert!(ROOMS[..index].iter().any(|(other, _)| other == used), "{name} uses {used}, which stands above it");
        }
    }
}

#[test]
fn reserved_words_stay_in_their_files() {
    let mut wrong = Vec::new();
    for path in files("src", &["rs"]) {
        let name = relative(&path);
        if is_test(&name) {
            continue;
        }
        for (number, line) in code(&path) {
            for (word, places) in RESERVED {
                if line.contains(word) && !places.iter().any(|place| name.starts_with(place)) {
                    wrong.push(format!("{name}:{number}: `{word}` belongs to {}", places.join(", ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let mut long = Vec::new();
    for folder in ["src", "tests", "stdlib", "recipes", "benches", "examples"] {
        if !root().join(folder).is_dir() {
            continue;
        }
        for path in files(folder, &["rs", "cu", "rhai"]) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            if lines > LONGEST_FILE {
                long.push(format!("{}: {lines}", relative(&path)));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_operation_has_contract_reference_cpu_gpu_and_tests() {
    let mut missing = Vec::new();
    let mut operations = 0;
    for entry in fs::read_dir(root().join("src/kernels")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if !folder.is_dir() || NOT_OPERATIONS.contains(&name.as_str()) {
            continue;
        }
        operations += 1;
        let mut wanted = vec!["mod.rs", "reference.rs", "cpu.rs", "cuda.rs", "tests.rs"];
        if !NO_KERNEL.contains(&name.as_str()) {
            wanted.push("kernel.cu");
        }
        for file in wanted {
            if !folder.join(file).is_file() {
                missing.push(format!("src/kernels/{name}/{file}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(operations >= 8, "only {operations} operations: has the room moved?");
}

#[test]
fn recipes_stay_under_80_lines() {
    for path in files("recipes", &["rhai"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 80, "{}: {lines} lines", relative(&path));
    }
}

#[test]
fn the_scanner_sees_what_it_must() {
    assert_eq!(uses("use crate::engine::{Engine, Mode};"), ["engine"]);
    assert_eq!(uses("use crate::{data::Dataset, io};"), ["data", "io"]);
    assert_eq!(uses("use crate::{script::{run, io}, hub};"), ["script", "hub"]);
    assert_eq!(uses("let x = crate::optim::clip(a, crate::run::log());"), ["optim", "run"]);
    let split = ["use crate::{", "    data::Dataset, io,", "    run::{Folder, Record},", "};", "let x = 1;"];
    let split: Vec<_> = split.iter().enumerate().map(|(i, line)| (i + 1, (*line).to_owned())).collect();
    let joined = statements(split);
    assert_eq!((joined.len(), uses(&joined[0].1)), (2, vec!["data".into(), "io".into(), "run".into()]));
    assert_eq!(joined[1].0, 5);
    assert_eq!(room("src/io.rs"), "io");
    assert_eq!(room("src/script/modules/model.rs"), "script");
}
