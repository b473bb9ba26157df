#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Map, Value, json};

use super::*;

#[test]
fn two_runs_in_one_second_get_two_folders() {
    let out = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..3)
        .map(|_| Folder::create_stamped(out.path(), "meatballs", "20261123-064512").unwrap())
        .map(|folder| folder.path().file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["meatballs-20261123-064512", "meatballs-20261123-064512-2", "meatballs-20261123-064512-3"]);
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(out.path().join("latest")).unwrap().to_string_lossy(), names[2]);
}

#[test]
fn runs_started_together_never_share_a_folder() {
    let out = tempfile::tempdir().unwrap();
    let paths: Vec<_> = std::thread::scope(|scope| {
        let make = || Folder::create_stamped(out.path(), "x", "1").unwrap().path().to_path_buf();
        let started: Vec<_> = (0..16).map(|_| scope.spawn(make)).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let different: std::collections::BTreeSet<_> = paths.iter().collect();
    assert_eq!(different.len(), 16);
}

#[test]
fn a_file_in_the_way_is_an_error_with_its_path() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("taken");
    std::fs::write(&file, "x").unwrap();
    let error = Folder::create(&file, "x").unwrap_err();
    assert!(error.to_string().starts_with("cannot make the output folder `"), "{error}");
    assert!(error.to_string().contains("taken"), "{error}");
}

#[test]
fn a_metrics_row_starts_with_the_known_names_in_order() {
    let out = tempfile::tempdir().unwrap();
    let folder = Folder::create(out.path(), "x").unwrap();
    let journal = Journal::open(&folder).unwrap();
    let row = json!({ "mine": 1, "loss": 2.5, "step": 1, "epoch": 0.5 });
    journal.metrics(row.as_object().unwrap()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    assert_eq!(text, "{\"step\":1,\"epoch\":0.5,\"loss\":2.5,\"mine\":1}\n");
}

#[test]
fn a_log_line_is_on_the_disk_when_the_call_returns() {
    let out = tempfile::tempdir().unwrap();
    let folder = Folder::create(out.path(), "x").unwrap();
    let journal = Journal::open(&folder).unwrap();
    journal.event("print", "hej \"du\"\nrad 2").unwrap();
    let text = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    let line: Map<String, Value> = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(line["kind"], "print");
    assert_eq!(line["text"], "hej \"du\"\nrad 2");
}

#[test]
fn the_record_tells_the_end() {
    let out = tempfile::tempdir().unwrap();
    let folder = Folder::create(out.path(), "x").unwrap();
    let record = Record::new("x.rhai".into(), vec!["unslothify".into(), "x.rhai".into()], "cpu".into(), Some(2));
    record.write(&folder, Status::Running, None, None).unwrap();
    record.write(&folder, Status::Interrupted, Some(130), None).unwrap();
    let text = std::fs::read_to_string(folder.path().join("run.json")).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["status"], "interrupted");
    assert_eq!(told["exit_code"], 130);
    assert!(told["seconds"].is_number());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "no temporary file stays: {left:?}");
}
