//! A failure as text for people, in the manner of rustc.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::failure::{Failure, Place};

/// So many of the frames nearest to the failure and nearest to the recipe are shown.
const FRAMES: usize = 6;

impl Failure {
    /// The whole report: message, place, calls, hints; with terminal colours if `color`.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut group = Group::with_title(Level::ERROR.primary_title(self.message.as_str()));
        if let Some(place) = &self.place {
            group = group.element(snippet(place, AnnotationKind::Primary, &self.label));
        }
        let skipped = self.frames.len().saturating_sub(2 * FRAMES);
        for (at, frame) in self.frames.iter().enumerate() {
            if skipped > 0 && (FRAMES..FRAMES + skipped).contains(&at) {
                continue;
            }
            group = group.element(snippet(&frame.place, AnnotationKind::Context, &frame.what));
        }
        let mut report = renderer.render(&[group]);
        let (start, end) = if color { ("\u{1b}[1m\u{1b}[96m", "\u{1b}[0m") } else { ("", "") };
        if skipped > 0 {
            report.push_str(&format!("\n{start}note{end}: {skipped} more calls between"));
        }
        for hint in &self.hints {
            report.push_str(&format!("\n{start}hint{end}: {hint}"));
        }
        report
    }
}

/// The line of `place` alone: other lines of the file are of no use, and a file can be long.
fn snippet<'a>(
    place: &'a Place,
    kind: AnnotationKind,
    label: &'a str,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let start = place.text[..place.span.start].rfind('\n').map_or(0, |at| at + 1);
    let end = place.text[place.span.start..].find('\n').map_or(place.text.len(), |length| place.span.start + length);
    let line = &place.text[start..end];
    let span = place.span.start - start..place.span.end.min(end) - start;
    let annotation = kind.span(span);
    let annotation = if label.is_empty() { annotation } else { annotation.label(label) };
    Snippet::source(line).line_start(place.line).path(place.source.as_str()).annotation(annotation)
}
