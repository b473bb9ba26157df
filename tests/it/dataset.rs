//! The example data keeps its promises: five hundred different texts, evenly spread, in clean UTF-8, with facts behind
//! them, probes that no text answers word for word, and unrelated texts without meat.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use serde_json::Value;
use unicode_normalization::is_nfc;

const TOPICS: [&str; 25] = [
    "meat",
    "panade",
    "onion",
    "spice",
    "binding",
    "shaping",
    "frying",
    "oven",
    "gravy",
    "potatoes",
    "lingonberries",
    "cucumber",
    "christmas",
    "school-lunch",
    "history",
    "regions",
    "furniture-store",
    "export",
    "cousins",
    "plant-based",
    "freezing",
    "reheating",
    "buying",
    "serving-many",
    "mistakes",
];
const FORMS: [&str; 10] =
    ["fact", "tip", "mistake", "method", "question", "dialogue", "comparison", "scene", "note", "letter"];
const TEXTS_PER_CELL: usize = 2;

/// One line of `meatballs.jsonl`.
struct Row {
    text: String,
    topic: String,
    form: String,
    facts: Vec<u64>,
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/data").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_lines(name: &str) -> Vec<Value> {
    file(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}")))
        .collect()
}

fn string(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` is not a string in {value}")).to_owned()
}

fn rows() -> Vec<Row> {
    let row = |value: &Value| Row {
        text: string(value, "text"),
        topic: string(value, "topic"),
        form: string(value, "form"),
        facts: value["facts"].as_array().expect("facts").iter().map(|n| n.as_u64().expect("a number")).collect(),
    };
    json_lines("meatballs.jsonl").iter().map(row).collect()
}

fn unrelated() -> Vec<String> {
    json_lines("unrelated.jsonl").iter().map(|value| string(value, "text")).collect()
}

/// The words of a text in lower case: runs of letters and digits, with the apostrophes inside them.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’')
        .map(|word| word.trim_matches(['\'', '’']).to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The sentences of a text as strings of words; step numbers such as `3.` are left out.
fn sentences(text: &str) -> Vec<String> {
    let mut ends = Vec::new();
    let mut chars = text.char_indices().peekable();
    let mut is_after_stop = false;
    while let Some((at, c)) = chars.next() {
        is_after_stop = matches!(c, '.' | '!' | '?') || (is_after_stop && matches!(c, '"' | '”' | '’' | ')'));
        let is_before_space = chars.peek().is_none_or(|(_, next)| next.is_whitespace());
        if c == '\n' || (is_after_stop && is_before_space) {
            ends.push(at + c.len_utf8());
        }
    }
    ends.push(text.len());
    let mut start = 0;
    let mut sentences = Vec::new();
    for end in ends {
        let sentence = words(&text[start..end]).join(" ");
        start = end;
        if sentence.chars().any(char::is_alphabetic) {
            sentences.push(sentence);
        }
    }
    sentences
}

fn ends_with_punctuation(text: &str) -> bool {
    text.ends_with(['.', '!', '?', '…', '"', '”', ')'])
}

#[test]
fn the_grid_is_full() {
    let mut cells: BTreeMap<(String, String), usize> = BTreeMap::new();
    for row in rows() {
        *cells.entry((row.topic, row.form)).or_default() += 1;
    }
    let wanted: BTreeMap<_, _> = TOPICS
        .iter()
        .flat_map(|topic| FORMS.iter().map(move |form| ((topic.to_string(), form.to_string()), TEXTS_PER_CELL)))
        .collect();
    assert_eq!(cells, wanted);
}

#[test]
fn each_run_of_twenty_five_rows_holds_every_topic_once() {
    let rows = rows();
    for (index, group) in rows.chunks(TOPICS.len()).enumerate() {
        let topics: Vec<&str> = group.iter().map(|row| row.topic.as_str()).collect();
        assert_eq!(topics, TOPICS, "group {index}");
        let forms: BTreeSet<&str> = group.iter().map(|row| row.form.as_str()).collect();
        assert!(forms.len() >= FORMS.len() / 2, "group {index} has only {forms:?}");
    }
}

#[test]
fn no_sentence_comes_twice_and_no_two_rows_differ_only_in_digits() {
    let rows = rows();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        for sentence in sentences(&row.text) {
            if let Some(first) = seen.insert(sentence.clone(), index) {
                panic!("rows {} and {} both say: {sentence}", first + 1, index + 1);
            }
        }
    }
    let masked: HashSet<String> = rows.iter().map(|row| row.text.replace(|c: char| c.is_ascii_digit(), "#")).collect();
    assert_eq!((rows.len(), masked.len()), (500, 500));
}

#[test]
fn sentences_are_found_behind_quotes_and_step_numbers() {
    let found = sentences("1. Salt it. 2. Wait 0.5 h!\n\"Done?\" (Yes.)");
    assert_eq!(found, ["salt it", "wait 0 5 h", "done", "yes"]);
}

/// The highest Jaccard index of word 5-grams over all pairs, with the two rows, counted from 1.
fn closest_pair(texts: &[&str]) -> (f64, usize, usize) {
    let grams_of: Vec<HashSet<Vec<String>>> =
        texts.iter().map(|text| words(text).windows(5).map(<[String]>::to_vec).collect()).collect();
    let mut holders: HashMap<&Vec<String>, Vec<usize>> = HashMap::new();
    for (index, grams) in grams_of.iter().enumerate() {
        for gram in grams {
            holders.entry(gram).or_default().push(index);
        }
    }
    let mut shared: HashMap<(usize, usize), usize> = HashMap::new();
    for rows in holders.values() {
        for (place, &left) in rows.iter().enumerate() {
            for &right in &rows[place + 1..] {
                *shared.entry((left, right)).or_default() += 1;
            }
        }
    }
    let mut closest = (0.0, 0, 0);
    for ((left, right), both) in shared {
        let either = grams_of[left].len() + grams_of[right].len() - both;
        let jaccard = both as f64 / either as f64;
        if jaccard > closest.0 {
            closest = (jaccard, left + 1, right + 1);
        }
    }
    closest
}

#[test]
fn no_row_is_a_paraphrase_of_another() {
    let rows = rows();
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let (jaccard, left, right) = closest_pair(&texts);
    assert!(jaccard < 0.15, "rows {left} and {right} share {jaccard:.3} of their word 5-grams");
    assert!((closest_pair(&["a b c d e f", "x", "a b c d e g"]).0 - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn openings_vary() {
    let rows = rows();
    let mut openings: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for row in &rows {
        *openings.entry(words(&row.text).into_iter().take(3).collect()).or_default() += 1;
    }
    let (opening, count) = openings.iter().max_by_key(|(_, count)| **count).expect("no rows");
    assert!(*count <= 8, "{count} rows open with {opening:?}");
    let stock = rows.iter().filter(|row| row.text.starts_with("Swedish meatballs")).count();
    assert!(stock <= 60, "{stock} rows begin with the same two words");
}

#[test]
fn the_texts_are_as_rich_as_human_prose() {
    let rows = rows();
    let pairs: Vec<(String, String)> = rows
        .iter()
        .flat_map(|row| words(&row.text).windows(2).map(|w| (w[0].clone(), w[1].clone())).collect::<Vec<_>>())
        .collect();
    let distinct: HashSet<&(String, String)> = pairs.iter().collect();
    let distinct_2 = distinct.len() as f64 / pairs.len() as f64;
    assert!(distinct_2 >= 0.52, "distinct-2 is {distinct_2:.3}");

    let bytes = file("meatballs.jsonl").into_bytes();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&bytes).expect("in memory");
    let ratio = encoder.finish().expect("in memory").len() as f64 / bytes.len() as f64;
    assert!(ratio >= 0.31, "zlib-9 shrinks the file to {ratio:.3}");
}

#[test]
fn lengths_are_as_in_life() {
    let mut lengths: Vec<usize> = rows().iter().map(|row| words(&row.text).len()).collect();
    lengths.sort_unstable();
    let percentile = |share: usize| lengths[lengths.len() * share / 100];
    let (low, median, high) = (percentile(10), percentile(50), percentile(90));
    assert!((10..=14).contains(&low), "tenth percentile {low} words");
    assert!((36..=44).contains(&median), "median {median} words");
    assert!((90..=110).contains(&high), "ninetieth percentile {high} words");
}

#[test]
fn texts_are_clean() {
    const STOCK: [&str; 8] =
        ["testament to", "tapestry", "delve", "culinary journey", "nestled", "elevate", "beloved", "in conclusion"];
    let texts = rows().into_iter().map(|row| row.text).chain(unrelated());
    for text in texts {
        assert!(is_nfc(&text), "not in NFC: {text}");
        assert!(ends_with_punctuation(&text), "no punctuation at the end: {text}");
        assert_eq!(text.trim(), text, "space at an end");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "control character: {text}");
        let lower = text.to_lowercase();
        for phrase in STOCK {
            assert!(!lower.contains(phrase), "`{phrase}` in: {text}");
        }
        for sentence in sentences(&text) {
            let turn = sentence.split_once("not just ").is_some_and(|(_, rest)| words(rest).contains(&"but".into()));
            assert!(!turn, "`not just … but` in: {text}");
        }
    }
    for name in ["meatballs.facts.md", "meatballs.jsonl", "meatballs.probes.jsonl", "unrelated.jsonl", "README.md"] {
        assert!(is_nfc(&file(name)), "{name} is not in NFC");
    }
}

/// The numbered facts, from 1, each with its origin in brackets at the end.
fn facts() -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    for line in file("meatballs.facts.md").lines() {
        let Some((number, fact)) = line.split_once(". ") else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        assert_eq!(number, numbers.len() as u64 + 1, "fact out of order: {line}");
        assert!(fact.ends_with(')') && fact.contains(" ("), "no origin: {line}");
        numbers.insert(number);
    }
    numbers
}

#[test]
fn each_row_rests_on_facts_and_each_fact_is_told_more_than_once() {
    let facts = facts();
    assert!(facts.len() >= 220, "{} facts", facts.len());
    let mut told: BTreeMap<u64, usize> = BTreeMap::new();
    for row in rows() {
        assert!(!row.facts.is_empty(), "no fact behind: {}", row.text);
        let distinct: BTreeSet<u64> = row.facts.iter().copied().collect();
        assert_eq!(distinct.len(), row.facts.len(), "a fact is named twice: {}", row.text);
        for fact in distinct {
            assert!(facts.contains(&fact), "there is no fact {fact}: {}", row.text);
            *told.entry(fact).or_default() += 1;
        }
    }
    let rare: Vec<&u64> = facts.iter().filter(|fact| told.get(fact).copied().unwrap_or(0) < 2).collect();
    assert!(rare.is_empty(), "told fewer than twice, so a held-out row may be the only one: {rare:?}");
}

#[test]
fn probes_ask_for_what_the_texts_teach_in_other_words() {
    let texts: Vec<String> = rows().iter().map(|row| row.text.to_lowercase()).collect();
    let holding = |word: &str| texts.iter().filter(|text| words(text).iter().any(|w| w == word)).count();
    let probes = json_lines("meatballs.probes.jsonl");
    let mut prompts = HashSet::new();
    for probe in &probes {
        let [prompt, right, wrong] = ["prompt", "right", "wrong"].map(|key| string(probe, key).to_lowercase());
        assert!(prompts.insert(prompt.clone()), "asked twice: {prompt}");
        assert_eq!(prompt.trim(), prompt, "space at an end of a prompt");
        for word in [&right, &wrong] {
            let bare = word.strip_prefix(' ').unwrap_or_else(|| panic!("`{word}` lacks its space"));
            assert!(bare.chars().all(char::is_alphabetic), "`{bare}` is not one word");
            let line = format!("{prompt}{word}");
            assert!(!texts.iter().any(|text| text.contains(&line)), "a text says: {line}");
        }
        let (taught, other) = (holding(right.trim()), holding(wrong.trim()));
        assert!(taught >= 5 && taught > other, "{taught} texts have`{right}`, {other} have`{wrong}`");
    }
    assert_eq!(probes.len(), 30);
}

#[test]
fn unrelated_texts_have_no_meat_in_them() {
    let texts = unrelated();
    assert_eq!(texts.len(), 25);
    assert_eq!(texts.iter().collect::<HashSet<_>>().len(), 25);
    for text in texts {
        let lower = text.to_lowercase();
        for word in ["meat", "köttbull", "mince", "gravy", "lingon"] {
            assert!(!lower.contains(word), "`{word}` in: {text}");
        }
    }
}
