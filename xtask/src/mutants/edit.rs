//! A mutant as a change of source text that can be switched on, and the text with all of them in it.

use std::ops::Range;

use super::Mutant;

/// What an edit makes of its range.
#[derive(Clone, Debug)]
pub enum Piece {
    Text(String),
    /// Source text, with the edits that are within.
    Source(Range<usize>),
    /// Whether this mutant is the one that is switched on.
    On,
}

/// One mutant in the text. Of two edits of one range, the first one is around the second.
#[derive(Clone, Debug)]
pub struct Edit {
    pub mutant: Mutant,
    pub range: Range<usize>,
    pub pieces: Vec<Piece>,
}

/// Text that was made, and where in it each edit's text stands, the inner ones after those around them.
#[derive(Debug, Default)]
pub struct Rendered {
    pub text: String,
    pub places: Vec<(Range<usize>, usize)>,
}

/// The text with these edits, each with its number. `edits` are within or beside each other, never across.
pub fn render(source: &str, edits: &[(usize, &Edit)]) -> Rendered {
    let mut sorted = edits.to_vec();
    sorted.sort_by_key(|(_, edit)| (edit.range.start, std::cmp::Reverse(edit.range.end)));
    let mut rendered = Rendered::default();
    render_range(source, 0..source.len(), &sorted, &mut rendered);
    rendered
}

fn render_range(source: &str, range: Range<usize>, edits: &[(usize, &Edit)], out: &mut Rendered) {
    let mut at = range.start;
    for (index, (number, edit)) in edits.iter().enumerate() {
        if edit.range.start < at || edit.range.end > range.end {
            continue;
        }
        out.text.push_str(&source[at..edit.range.start]);
        let begin = out.text.len();
        let place = out.places.len();
        out.places.push((begin..begin, *number));
        for piece in &edit.pieces {
            match piece {
                Piece::Text(text) => out.text.push_str(text),
                Piece::On => out.text.push_str(&format!("crate::mutant::on({number})")),
                Piece::Source(part) => {
                    let within = edits[index + 1..].partition_point(|(_, edit)| edit.range.start <= part.end);
                    render_range(source, part.clone(), &edits[index + 1..][..within], out);
                }
            }
        }
        out.places[place].0.end = out.text.len();
        at = edit.range.end;
    }
    out.text.push_str(&source[at..range.end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_nest_and_the_places_of_their_text_are_known() {
        let mutant =
            Mutant { file: "a.rs".into(), line: 1, function: "f".to_owned(), change: "one of another".to_owned() };
        let edit = |range: Range<usize>| {
            let pieces =
                vec![Piece::Text("[".to_owned()), Piece::On, Piece::Source(range.clone()), Piece::Text("]".to_owned())];
            Edit { mutant: mutant.clone(), range, pieces }
        };
        let edits = [edit(0..5), edit(0..5), edit(4..5), edit(6..6)];
        let numbered: Vec<(usize, &Edit)> = edits.iter().enumerate().collect();
        let rendered = render("a + b;", &numbered);
        assert_eq!(rendered.text.replace("crate::mutant::on", "#"), "[#(0)[#(1)a + [#(2)b]]];[#(3)]");
        let texts: Vec<&str> = rendered.places.iter().map(|(range, _)| &rendered.text[range.clone()]).collect();
        assert!(texts[1].starts_with("[crate::mutant::on(1)a") && texts[2] == "[crate::mutant::on(2)b]", "{texts:?}");
    }
}
