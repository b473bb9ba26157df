//! Which texts share a bin: best-fit decreasing.

use std::collections::BTreeMap;

/// Bins of at most `capacity` tokens that hold every text once, none cut; none if a text is longer than a bin.
///
/// Texts are placed longest first, each into the fullest bin it still fits. `order` decides between texts of equal
/// length; the number of bins depends on the lengths alone.
pub(super) fn best_fit_decreasing(lengths: &[usize], order: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let length = |text: usize| lengths.get(text).copied().unwrap_or(0);
    let mut texts = order.to_vec();
    texts.sort_by_key(|text| std::cmp::Reverse(length(*text))); // stable: equal lengths keep `order`
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Room left to the bins that have it, oldest last.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for text in texts {
        let needed = length(text);
        let fullest = by_room.range(needed..).next().map(|(room, _)| *room);
        let (bin, room) = match fullest {
            Some(room) => {
                let bin = by_room.get_mut(&room).and_then(Vec::pop);
                if by_room.get(&room).is_some_and(Vec::is_empty) {
                    by_room.remove(&room);
                }
                match bin.and_then(|bin| bins.get_mut(bin).map(|texts| (bin, texts))) {
                    Some((bin, texts)) => {
                        texts.push(text);
                        (bin, room - needed)
                    }
                    None => unreachable!("a room is listed only with a bin"),
                }
            }
            None => {
                bins.push(vec![text]);
                (bins.len() - 1, capacity.saturating_sub(needed))
            }
        };
        by_room.entry(room).or_default().push(bin);
    }
    bins
}
