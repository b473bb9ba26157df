#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::*;
use crate::philox::Philox;
use crate::tokenizer::Tokenizer;

const SPACES: &str = include_str!("../../tests/fixtures/tokenizer_spaces.json");
const BYTE_LEVEL: &str = include_str!("../../tests/fixtures/tokenizer_byte_level.json");

fn open(file: &str, eos: Option<&str>) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
    if let Some(eos) = eos {
        std::fs::write(folder.path().join("tokenizer_config.json"), json!({ "eos_token": eos }).to_string()).unwrap();
    }
    Tokenizer::open(folder.path()).unwrap()
}

fn spaces() -> Tokenizer {
    open(SPACES, Some("</s>"))
}

fn read(bytes: impl AsRef<[u8]>) -> Result<Dataset> {
    Dataset::from_json_bytes(bytes.as_ref(), "x.jsonl")
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// Texts of `lengths` letters, all distinct.
fn texts(lengths: &[usize]) -> Dataset {
    let text = |(i, n): (usize, &usize)| format!("{i}{}", "x y".chars().cycle().take(*n).collect::<String>());
    Dataset::from_texts(lengths.iter().enumerate().map(text).collect())
}

fn tokenized(lengths: &[usize]) -> Tokenized {
    texts(lengths).tokenize(&spaces(), &TokenizeOptions::default()).unwrap()
}

fn options(batch_size: usize, accumulate: usize) -> BatchOptions {
    BatchOptions { batch_size, accumulate, seed: 5, ..Default::default() }
}

#[test]
fn rows_are_read_with_their_lines() {
    let data = read("\u{feff}{\"text\": \"å\", \"n\": 1}\r\n\r\n   \n{\"text\": \"b\"}\n").unwrap();
    assert_eq!(data.len(), 2);
    assert_eq!(data.get(0).unwrap().values, *json!({ "text": "å", "n": 1 }).as_object().unwrap());
    assert_eq!(data.get(1).unwrap().id.to_string(), "`x.jsonl` line 4");
    assert_eq!(read("{\"text\": \"no line feed at the end\"}").unwrap().len(), 1);
}

#[test]
fn each_fault_of_a_file_is_told_with_its_line() {
    for (bytes, wanted) in [
        (
            &b"{\"text\": \"a\"}\n\n{\"text\": \"\xc3\xa5\" oops}\n"[..],
            "`x.jsonl` line 3, column 14: not JSON: expected `,` or `}`",
        ),
        (b"{\"text\": \"a\"\n", "`x.jsonl` line 1, column 12: not JSON: EOF while parsing an object"),
        (b"{\n\"text\": \"a\"\n}\n", "`x.jsonl` line 1, column"),
        (b"{} {}\n", "`x.jsonl` line 1, column 4: not JSON: trailing characters"),
        (b"\"a\"\n", "`x.jsonl` line 1 holds a string, not an object"),
        (b"{\"text\": \"a\"}\nnull\n", "`x.jsonl` line 2 holds null, not an object"),
        (b"{\"text\": \"a\"}\n[1]\n", "`x.jsonl` line 2 holds a list, not an object"),
        (b"[{\"text\": \"a\"},\n{\"text\": \"b\"}]\n", "`x.jsonl` is one JSON list, not JSON lines"),
        (b"[1]", "is one JSON list"),
        (
            b"{\"text\": \"a\"}\n{\"text\": \"\xc3\xa5\xff\"}\n",
            "`x.jsonl` line 2 is not UTF-8 text: byte 0xff in column 12",
        ),
        (b"", "`x.jsonl` is empty"),
        (b"\xEF\xBB\xBF", "`x.jsonl` is empty"),
        (b"\n \r\n\t\n", "`x.jsonl` holds only blank lines"),
        (b"{\"text\": \"\\ud800\"}\n", "line 1, column"),
        (b"{\"text\": 1e999}\n", "number out of range"),
        (b"\x00\x01\x02", "line 1, column 1: not JSON"),
    ] {
        let error = message(read(bytes));
        assert!(error.contains(wanted), "{:?}: {error}", String::from_utf8_lossy(bytes));
    }
    assert!(message(read("[".repeat(5000))).contains("list"));
    assert!(message(read(format!("{{\"a\": {}", "[".repeat(5000)))).contains("recursion limit"));
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(jsonl::MAX_LINE));
    assert!(message(read(long)).contains("more than the 67108864 read in one line"));
}

#[test]
fn what_is_no_regular_file_is_an_error_and_no_hang() {
    for path in ["/dev/zero", "/", "/nowhere/x.jsonl"] {
        let error = message(Dataset::from_json(std::path::Path::new(path)));
        assert!(error.contains(path), "{error}");
    }
}

#[test]
fn faults_of_a_field_name_the_row_and_what_is_there() {
    let tokenize = |rows: &str| message(read(rows).unwrap().tokenize(&spaces(), &TokenizeOptions::default()));
    assert_eq!(
        tokenize("{\"text\":\"a\"}\n{\"txt\": \"a\", \"topic\": 1}"),
        "`x.jsonl` line 2 has no field `text`, did you mean `txt`?; it has: txt, topic"
    );
    assert_eq!(tokenize("{}"), "`x.jsonl` line 1 has no field `text`; it has: none");
    assert_eq!(tokenize("{\"text\": 5}"), "`x.jsonl` line 1: field `text` holds a number, not text");
    assert!(tokenize("{\"text\": \"\"}").contains("line 1: field `text` is empty"));
    let many: Map<String, Value> = (0..30).map(|i| (format!("field {i}"), json!(1))).collect();
    assert!(tokenize(&Value::Object(many).to_string()).ends_with("field 11 and 18 more"));
    let none = Dataset::default().tokenize(&spaces(), &TokenizeOptions::default());
    assert_eq!(message(none), "there are no rows to tokenise");
}

#[test]
fn every_text_begins_once_and_ends_with_a_trained_token() {
    let tokenizer = spaces();
    let data = Dataset::from_texts(vec!["meat".to_owned(), "</s>".to_owned(), "<s>".to_owned()]);
    let made = data.tokenize(&tokenizer, &TokenizeOptions::default()).unwrap();
    for example in made.examples().iter() {
        let (n, ids) = (example.ids.len(), &example.ids);
        assert_eq!((ids[0], ids[n - 1]), (1, 2));
        assert!(ids[1..n - 1].iter().all(|id| *id > 4));
        assert_eq!(example.targets[..n - 1], ids[1..].iter().map(|id| *id as i32).collect::<Vec<_>>());
        assert_eq!((example.targets[n - 1], example.targets[n - 2]), (-100, 2));
        assert_eq!(example.target_tokens(), n - 1);
    }
    let bare = TokenizeOptions { add_eos: false, ..Default::default() };
    let made = data.tokenize(&tokenizer, &bare).unwrap();
    assert!(made.examples().iter().all(|example| !example.ends && !example.ids.contains(&2)));
    assert_eq!(made.report().eos_trained, 0);
    let no_eos = open(SPACES, None);
    assert!(message(data.tokenize(&no_eos, &TokenizeOptions::default())).contains("`add_eos: false`"));
    assert!(data.tokenize(&no_eos, &bare).is_ok());
}

#[test]
fn a_text_without_targets_is_an_error_with_its_line() {
    let bare = TokenizeOptions { add_eos: false, ..Default::default() };
    let error =
        message(read("{\"text\": \"aa b\"}\n{\"text\": \"a\"}").unwrap().tokenize(&open(BYTE_LEVEL, None), &bare));
    assert!(error.starts_with("`x.jsonl` line 2 becomes 1 token(s), none of which is a target"), "{error}");
}

#[test]
fn over_long_texts_are_an_error_unless_said_otherwise() {
    let tokenizer = spaces();
    let data = texts(&[3, 90, 4, 80, 70, 60, 2]);
    let run =
        |overflow| data.tokenize(&tokenizer, &TokenizeOptions { max_length: Some(20), overflow, ..Default::default() });
    let error = message(run(Overflow::Error));
    assert!(error.starts_with("4 texts are longer than `max_length` (20 tokens): `texts` line 2 ("), "{error}");
    assert!(error.contains("`texts` line 4 (") && error.contains("`texts` line 5 (") && !error.contains("line 6"));
    assert!(error.contains(" and 1 more; raise `max_length`"), "{error}");

    let whole = data.tokenize(&tokenizer, &TokenizeOptions::default()).unwrap();
    let dropped = run(Overflow::Drop).unwrap();
    assert_eq!((dropped.len(), dropped.report().dropped), (3, 4));
    assert_eq!(dropped.get(1).unwrap().row.line, 3);

    let cut = run(Overflow::Truncate).unwrap();
    let report = cut.report();
    assert_eq!((cut.len(), report.cut, report.eos_trained), (7, 4, 3));
    assert_eq!(report.cut_tokens, whole.tokens() - cut.tokens());
    assert_eq!(cut.get(1).unwrap().ids, whole.get(1).unwrap().ids[..20]);

    let split = run(Overflow::Split).unwrap();
    let report = split.report();
    assert_eq!((report.rows, report.split, report.eos_trained), (7, 4, 7));
    assert!(split.examples().iter().all(|example| example.ids.len() <= 20 && example.ids[0] == 1));
    for row in 1..=7 {
        let parts = split.examples().iter().filter(|example| example.row.line == row);
        let body: Vec<u32> = parts.flat_map(|example| example.ids[1..].to_vec()).collect();
        assert_eq!(body, whole.get(row - 1).unwrap().ids[1..], "row {row}");
    }

    let one = texts(&[90]);
    let tight = TokenizeOptions { max_length: Some(20), overflow: Overflow::Drop, ..Default::default() };
    assert!(message(one.tokenize(&tokenizer, &tight)).starts_with("all 1 texts are longer"));
    for got in [0, 1, 3] {
        let short = TokenizeOptions { max_length: Some(got), ..Default::default() };
        assert!(message(one.tokenize(&tokenizer, &short)).starts_with(&format!("`max_length` is {got}")));
    }
    // Without a begin token every part still has a target.
    let plain = open(BYTE_LEVEL, Some("<|endoftext|>"));
    for (max_length, letters) in (4..9).flat_map(|limit| (1..40).map(move |n| (limit, n))) {
        let options = TokenizeOptions { max_length: Some(max_length), overflow: Overflow::Split, ..Default::default() };
        let split = texts(&[letters]).tokenize(&plain, &options).unwrap();
        assert!(split.examples().iter().all(|e| (2..=max_length).contains(&e.ids.len())));
    }
}

#[test]
fn exactly_a_twentieth_of_500_is_held_out() {
    let data = tokenized(&[5; 500]);
    let (train, test) = data.split(TestSize::Share(0.05), 1337).unwrap();
    assert_eq!((train.len(), test.len()), (475, 25));
    let lines = |part: &Tokenized| part.examples().iter().map(|example| example.row.line).collect::<Vec<_>>();
    let (a, b) = (lines(&train), lines(&test));
    assert!(a.is_sorted() && b.is_sorted());
    assert_eq!(a.iter().chain(&b).collect::<BTreeSet<_>>().len(), 500);
    assert_eq!(lines(&data.split(TestSize::Rows(25), 1337).unwrap().1), b);
    assert_ne!(lines(&data.split(TestSize::Rows(25), 1338).unwrap().1), b);
    for share in [0.0, 1.0, -0.1, 2.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(data.split(TestSize::Share(share), 0), Err(Error::TestShare { .. })));
    }
    for rows in [0, 500, 501] {
        assert!(matches!(data.split(TestSize::Rows(rows), 0), Err(Error::TestSize { .. })));
    }
    assert_eq!(tokenized(&[5; 3]).split(TestSize::Share(0.05), 0).unwrap().1.len(), 1);
    assert!(tokenized(&[5]).split(TestSize::Share(0.5), 0).is_err());
    let options = TokenizeOptions { max_length: Some(12), overflow: Overflow::Split, ..Default::default() };
    let pieces = texts(&[40; 30]).tokenize(&spaces(), &options).unwrap();
    let (train, test) = pieces.split(TestSize::Rows(7), 3).unwrap();
    let trained: BTreeSet<usize> = lines(&train).into_iter().collect();
    assert!(lines(&test).iter().all(|line| !trained.contains(line)));
    assert_eq!((train.report().rows, test.report().rows), (23, 7));
}

/// 500 rows of 20 sentences, as this kind of script is often started with.
#[test]
fn repeated_texts_are_counted_and_found_among_the_held_out() {
    let data = Dataset::from_texts((0..500).map(|i| format!("Sentence {} on meatballs", i % 20)).collect());
    let made = data.tokenize(&spaces(), &TokenizeOptions::default()).unwrap();
    let report = made.report();
    assert_eq!((report.rows, report.duplicates, report.duplicated_texts), (500, 480, 20));
    assert_eq!((report.eos_trained, report.padded, report.held_out_copies), (500, 0, None));
    let shown = report.to_string();
    assert!(shown.contains("copies    480 duplicates of 20 texts\n"), "{shown}");
    assert!(shown.contains("endings   500 of 500 end with a trained `</s>`\n"), "{shown}");
    assert!(shown.contains("padding   0 tokens"), "{shown}");
    let (_, test) = made.split(TestSize::Share(0.05), 1).unwrap();
    assert_eq!(test.report().held_out_copies, Some(25));
    assert!(test.report().to_string().ends_with("held out  25 of 25 are copies of training texts"));
    let (_, test) = tokenized(&[9; 60]).split(TestSize::Rows(9), 1).unwrap();
    assert_eq!(test.report().held_out_copies, Some(0));
}

#[test]
fn a_report_is_aligned_and_fits_80_columns() {
    let made = tokenized(&[1, 5, 9, 13, 50, 2, 7, 11, 30, 4]);
    let report = made.report();
    let mut lengths: Vec<usize> = made.examples().iter().map(|example| example.ids.len()).collect();
    lengths.sort_unstable();
    assert_eq!(
        (report.shortest, report.median, report.p90, report.longest),
        (lengths[0], lengths[4], lengths[8], lengths[9])
    );
    assert_eq!(report.tokens, lengths.iter().sum::<usize>());
    assert_eq!(report.target_tokens, report.tokens - 10);
    let (n, length) = (12_345_678_901, 1_234_567);
    let full = Report {
        rows: n,
        examples: n + 1,
        tokens: n,
        target_tokens: n,
        shortest: length,
        median: length,
        p90: length,
        longest: length,
        duplicates: n,
        duplicated_texts: n,
        eos_trained: n,
        eos: Some("<|endoftext|>".to_owned()),
        padded: 0,
        cut: n,
        cut_tokens: n,
        dropped: n,
        split: n,
        unknown: n,
        held_out_copies: Some(n),
    };
    for report in [&report, &full] {
        for line in report.to_string().lines() {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(line.as_bytes()[9] == b' ' && line.as_bytes()[10] != b' ', "{line}");
        }
    }
    let small =
        Report { rows: 500, tokens: 27_904, eos: Some("</s>".to_owned()), eos_trained: 500, ..Default::default() };
    assert_eq!(small.summary(), "500 texts, 27 904 tokens; 0 duplicates, 0 padded, 500 end with a trained </s>");
}

#[test]
fn steps_are_counted_as_transformers_counts_them() {
    for (rows, steps) in [(475, 60), (500, 63), (8, 1), (9, 2), (1, 1)] {
        let batches = tokenized(&vec![3; rows]).batches(&options(2, 4)).unwrap();
        assert_eq!((batches.steps(), batches.epoch(0).len()), (steps, steps), "{rows} rows");
        let last = batches.epoch(0).pop().unwrap();
        let texts: usize = last.micro.iter().map(MicroBatch::len).sum();
        assert_eq!(texts, if rows % 8 == 0 { 8 } else { rows % 8 });
    }
    let batches = tokenized(&[3; 20]).batches(&options(2, 4)).unwrap();
    let indices: Vec<usize> = (0..3).flat_map(|epoch| batches.epoch(epoch)).map(|step| step.index).collect();
    assert_eq!(indices, (0..9).collect::<Vec<_>>());
}

/// The texts of a step: their ids, cut apart where the batch says.
fn cut(step: &Step) -> Vec<(usize, Vec<u32>)> {
    let mut out = Vec::new();
    for micro in &step.micro {
        assert_eq!(micro.ids.len(), micro.targets.len());
        assert_eq!((micro.cu_seqlens[0], *micro.cu_seqlens.last().unwrap() as usize), (0, micro.ids.len()));
        assert_eq!((micro.cu_seqlens.len(), micro.step_targets), (micro.len() + 1, step.target_tokens));
        for (window, row) in micro.cu_seqlens.windows(2).zip(&micro.rows) {
            let range = window[0] as usize..window[1] as usize;
            // No text predicts into the next one.
            assert_eq!(micro.targets[range.end - 1], -100);
            out.push((row.line, micro.ids[range].to_vec()));
        }
    }
    out
}

#[test]
fn every_split_of_eight_rows_has_the_same_rows_and_totals() {
    let random = Philox::new(11, 0);
    for case in 0..20 {
        let lengths: Vec<usize> = (0..8).map(|i| 1 + random.u32_at(case * 8 + i) as usize % 40).collect();
        let made = tokenized(&lengths);
        let whole = made.batches(&options(8, 1)).unwrap().epoch(3).remove(0);
        for (batch_size, accumulate) in [(1, 8), (2, 4), (4, 2), (8, 1), (8, 5), (3, 3), (1, 100)] {
            let mut steps = made.batches(&options(batch_size, accumulate)).unwrap().epoch(3);
            assert_eq!(steps.len(), 1);
            let step = steps.remove(0);
            assert_eq!(cut(&step), cut(&whole));
            assert_eq!((step.tokens, step.target_tokens), (made.tokens(), made.target_tokens()));
            assert_eq!(step.target_tokens, step.tokens - 8);
            for limit in [0, 30, 60, usize::MAX] {
                let merged = step.clone().merged(limit);
                assert_eq!(cut(&merged), cut(&step));
                assert!(merged.micro.iter().all(|micro| micro.len() <= batch_size || micro.ids.len() <= limit));
            }
            assert_eq!(step.merged(usize::MAX).micro.len(), 1);
        }
    }
}

#[test]
fn an_epochs_order_is_a_permutation_and_its_own() {
    for n in [1, 2, 7, 475] {
        let batches = tokenized(&vec![3; n]).batches(&options(2, 4)).unwrap();
        let order = |epoch| batches.order(epoch).into_iter().flatten().collect::<Vec<_>>();
        for epoch in 0..4 {
            assert_eq!(order(epoch).into_iter().collect::<BTreeSet<_>>(), (0..n).collect::<BTreeSet<_>>());
            assert_eq!(order(epoch), order(epoch));
            assert_eq!(batches.epoch(epoch), batches.epoch(epoch));
        }
        if n > 10 {
            assert!(order(0) != order(1) && order(1) != order(2));
            let other = BatchOptions { seed: 6, ..options(2, 4) };
            assert_ne!(tokenized(&vec![3; n]).batches(&other).unwrap().order(0).concat(), order(0));
        }
    }
    let still = BatchOptions { shuffle: false, ..options(1, 1) };
    let batches = tokenized(&[3; 9]).batches(&still).unwrap();
    assert_eq!(batches.order(4).concat(), (0..9).collect::<Vec<_>>());
}

#[test]
fn packing_never_cuts_loses_or_overfills() {
    let random = Philox::new(2, 2);
    for case in 0..30 {
        let n = 1 + random.u32_at(case) as usize % 60;
        let lengths: Vec<usize> =
            (0..n).map(|i| 1 + random.u32_at(1000 + case * 100 + i as u64) as usize % 30).collect();
        let made = tokenized(&lengths);
        let limit = made.report().longest + random.u32_at(500 + case) as usize % 40;
        let options = BatchOptions { packing: true, max_tokens: Some(limit), ..options(1, 2) };
        let batches = made.batches(&options).unwrap();
        let bins = batches.report().bins.unwrap();
        for epoch in 0..3 {
            let steps = batches.epoch(epoch);
            assert_eq!((steps.len(), batches.order(epoch).len()), (batches.steps(), bins));
            assert!(steps.iter().flat_map(|step| &step.micro).all(|micro| micro.ids.len() <= limit));
            let mut packed: Vec<(usize, Vec<u32>)> = steps.iter().flat_map(cut).collect();
            packed.sort();
            let wanted: Vec<_> = made.examples().iter().map(|e| (e.row.line, e.ids.clone())).collect();
            assert_eq!(packed, wanted);
        }
        assert!(bins >= made.tokens().div_ceil(limit) && bins <= n);
    }
}

#[test]
fn a_packing_report_says_what_it_leads_to() {
    let made = tokenized(&[10; 40]);
    let longest = made.report().longest;
    let packed = BatchOptions { packing: true, max_tokens: Some(longest * 4), ..options(1, 2) };
    let report = made.batches(&packed).unwrap().report().to_string();
    assert!(
        report.starts_with("batches   40 texts in ") && report.contains("unpacked it would be 20 steps"),
        "{report}"
    );
    assert!(report.lines().all(|line| line.len() <= 80));
    assert_eq!(
        made.batches(&options(2, 4)).unwrap().report().to_string(),
        "batches   40 texts in 5 steps of 2 x 4 texts"
    );
    let tight = BatchOptions { max_tokens: Some(longest - 1), ..packed };
    let error = message(made.batches(&tight));
    assert!(error.contains("longer than a bin of `max_tokens`") && error.contains("`texts` line"), "{error}");
    for bad in [
        BatchOptions { max_tokens: None, ..packed },
        BatchOptions { max_tokens: Some(0), ..packed },
        BatchOptions { packing: false, ..packed },
        options(0, 1),
        options(1, 0),
    ] {
        assert!(matches!(made.batches(&bad), Err(Error::Batch { .. })), "{bad:?}");
    }
    assert_eq!(made.batches(&options(usize::MAX, usize::MAX)).unwrap().epoch(0).len(), 1);
    assert!(matches!(made.take(0).batches(&options(1, 1)), Err(Error::NoRows { .. })));
}

#[test]
fn rows_can_be_taken_shuffled_filtered_and_mapped() {
    let data = texts(&[1; 50]);
    let lines = |data: &Dataset| data.iter().map(|row| row.id.line).collect::<Vec<_>>();
    assert_eq!(lines(&data.take(3)), [1, 2, 3]);
    assert_eq!(data.take(99).len(), 50);
    let shuffled = data.shuffle(4);
    assert_ne!(lines(&shuffled), lines(&data));
    assert_eq!(lines(&shuffled), lines(&data.shuffle(4)));
    assert_eq!(lines(&shuffled).into_iter().collect::<BTreeSet<_>>().len(), 50);
    let even = data.filter(|row| Ok::<_, ()>(row.id.line % 2 == 0)).unwrap();
    assert_eq!((even.len(), lines(&even)[0]), (25, 2));
    let mapped = even.map(|row| Ok::<_, ()>(Map::from_iter([("n".to_owned(), json!(row.id.line))]))).unwrap();
    assert_eq!((mapped.get(0).unwrap().values["n"].clone(), mapped.get(0).unwrap().id.line), (json!(2), 2));
    assert_eq!(data.filter(|_| Err::<bool, _>("no")).unwrap_err(), "no");
}

#[test]
fn many_rows_keep_their_order_and_can_be_stopped() {
    let data = Dataset::from_texts((0..20_000).map(|i| format!("number {i}")).collect());
    let mut seen = Vec::new();
    let made = data.tokenize_with(&spaces(), &TokenizeOptions::default(), &mut |done| {
        seen.push(done);
        true
    });
    assert!(made.unwrap().examples().iter().enumerate().all(|(i, example)| example.row.line == i + 1));
    assert_eq!((seen.len(), *seen.last().unwrap()), (5, 20_000));
    let stopped = data.tokenize_with(&spaces(), &TokenizeOptions::default(), &mut |_| false);
    assert!(matches!(stopped, Err(Error::Cancelled { rows: 4096 })));
}
