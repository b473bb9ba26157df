//! Stop strings: text is handed out only when it can no longer become part of one.

/// Holds back what may turn into a stop string.
#[derive(Debug)]
pub(super) struct Stops<'a> {
    stops: &'a [String],
    held: String,
}

/// What can be shown now, and whether a stop string ended the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub text: String,
    pub ended: bool,
}

impl<'a> Stops<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece; a stop string and all after it is never shown.
    pub fn push(&mut self, piece: &str) -> Shown {
        self.held.push_str(piece);
        let found = self.stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| self.held.find(stop.as_str()));
        if let Some(at) = found.min() {
            self.held.truncate(at);
            return Shown { text: std::mem::take(&mut self.held), ended: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Shown { text: std::mem::replace(&mut self.held, rest), ended: false }
    }

    /// What was held back and did not become a stop string.
    pub fn finish(self) -> String {
        self.held
    }
}

/// Bytes at the end of `text` that a `stop` could begin with.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).skip(1);
    ends.filter(|&len| text.ends_with(&stop[..len])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut held = Stops::new(&stops);
        let mut shown = Vec::new();
        for piece in pieces {
            let next = held.push(piece);
            shown.push(next.text);
            if next.ended {
                return (shown, true);
            }
        }
        shown.push(held.finish());
        (shown, false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let (shown, ended) = run(&["\n\nQ:"], &["One", "\n", "\nQ", ":", " two"]);
        assert!(ended);
        assert_eq!(shown.concat(), "One");
    }

    #[test]
    fn text_that_only_began_like_a_stop_string_is_shown_after_all() {
        let (shown, ended) = run(&["\n\n"], &["a\n", "b\n"]);
        assert!(!ended);
        assert_eq!(shown, ["a", "\nb", "\n"]);
    }

    #[test]
    fn the_earliest_stop_wins_and_letters_stay_whole() {
        let (shown, ended) = run(&["bär", "köttbullar"], &["stekta kött", "bullar och bär"]);
        assert!(ended);
        assert_eq!(shown.concat(), "stekta ");
        assert_eq!(run(&[], &["å", "ä"]).0.concat(), "åä");
    }
}
