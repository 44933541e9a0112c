//! Fewer operations that show the same: what a reader has to look at.
//!
//! Two things may be left out of a history without making a linearizable one any other: all that happens after a
//! moment, when what runs then becomes an operation of unknown outcome, and an operation that changes nothing. A write
//! must stay, since others may have seen what it wrote. So a smaller history without an order proves that the whole has
//! none.

use super::model::Judged;

/// How often it may be asked whether a part is still enough: each is a search.
const QUESTIONS_MAX: usize = 200;

/// A part of these operations, which have no order, that has none either.
pub fn shrink(operations: &[Judged], mut is_enough: impl FnMut(&[Judged]) -> bool) -> Vec<Judged> {
    let mut left = QUESTIONS_MAX;
    let mut ask = |part: &[Judged]| {
        left = left.saturating_sub(1);
        left > 0 && is_enough(part)
    };
    let mut ends: Vec<usize> = operations.iter().filter_map(|operation| operation.ended).collect();
    ends.sort_unstable();
    // The last one is known to be enough.
    let shortest = ends.partition_point(|end| !ask(&until(operations, *end)));
    let part = ends.get(shortest).map_or_else(|| operations.to_vec(), |end| until(operations, *end));
    without_reads(part, ask)
}

/// What is known when the operation has ended that ends here.
fn until(operations: &[Judged], end: usize) -> Vec<Judged> {
    let begun = operations.iter().filter(|operation| operation.invoked <= end).cloned();
    begun
        .map(|operation| match operation.ended {
            Some(ended) if ended > end => Judged { ended: None, response: None, ..operation },
            _ => operation,
        })
        .collect()
}

/// Leaves out many reads at once first, then fewer.
fn without_reads(mut part: Vec<Judged>, mut ask: impl FnMut(&[Judged]) -> bool) -> Vec<Judged> {
    let mut many = part.len();
    while many > 0 {
        let mut from = 0;
        while from < part.len() {
            let to = (from + many).min(part.len());
            let (before, after) = (&part[..from], &part[to..]);
            let kept = part[from..to].iter().filter(|operation| !operation.changes_nothing());
            let fewer: Vec<Judged> = before.iter().chain(kept).chain(after).cloned().collect();
            let removed = part.len() - fewer.len();
            if removed > 0 && ask(&fewer) {
                part = fewer;
                from = to - removed;
            } else {
                from = to;
            }
        }
        many /= 2;
    }
    part
}
