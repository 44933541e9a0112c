//! Intervals of keys, found by a key that lies in them.
//!
//! A treap: a search tree by (start, end) that random priorities keep in balance. Every node also knows the greatest
//! end below it, so that a search leaves out each subtree that ends before the key:
//!
//! ```text
//!                [c, m)  max m
//!               /             \
//!      [a, d)  max k        [f, g)  max g        key k: not [c,m)'s left (max k ends before k), [c,m) itself, and
//!           \                                    not the right (max g)
//!         [b, k)  max k
//! ```

use std::cmp::Ordering;

use bytes::Bytes;

/// Where an interval stops: before a key, or never.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Before(Bytes),
    Never,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => end.as_ref() > key,
            End::Never => true,
        }
    }
}

/// A value for each of many distinct intervals.
#[derive(Debug)]
pub struct IntervalTree<T> {
    root: Link<T>,
    seed: u64,
}

type Link<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    start: Bytes,
    end: End,
    value: T,
    /// The greatest end in this subtree.
    max_end: End,
    priority: u64,
    left: Link<T>,
    right: Link<T>,
}

impl<T> Default for IntervalTree<T> {
    fn default() -> Self {
        IntervalTree { root: None, seed: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl<T> IntervalTree<T> {
    /// The value of exactly this interval.
    pub fn get(&self, start: &[u8], end: &End) -> Option<&T> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match node.order(start, end) {
                Ordering::Less => &node.right,
                Ordering::Equal => return Some(&node.value),
                Ordering::Greater => &node.left,
            };
        }
        None
    }

    /// # Panics
    /// When the interval is there already.
    pub fn insert(&mut self, start: Bytes, end: End, value: T) {
        assert!(self.get(&start, &end).is_none(), "an interval is inserted once");
        let (left, right) = split(self.root.take(), &start, &end);
        let priority = self.next_priority();
        let max_end = end.clone();
        let node = Box::new(Node { start, end, value, max_end, priority, left: None, right: None });
        self.root = merge(merge(left, Some(node)), right);
    }

    pub fn remove(&mut self, start: &[u8], end: &End) -> Option<T> {
        remove(&mut self.root, start, end)
    }

    /// Calls `found` with the value of every interval that holds `key`, in order of the intervals.
    pub fn stab(&self, key: &[u8], found: &mut impl FnMut(&T)) {
        stab(&self.root, key, found);
    }

    /// xorshift64*: balance needs no better randomness, and the same watches always make the same tree.
    fn next_priority(&mut self) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl<T> Node<T> {
    /// How this node's interval stands to another.
    fn order(&self, start: &[u8], end: &End) -> Ordering {
        self.start.as_ref().cmp(start).then_with(|| self.end.cmp(end))
    }

    fn update(&mut self) {
        let below = [&self.left, &self.right].into_iter().flatten().map(|child| &child.max_end).max();
        self.max_end = below.map_or(&self.end, |below| below.max(&self.end)).clone();
    }
}

/// Into what is before the interval, and what is not.
fn split<T>(link: Link<T>, start: &[u8], end: &End) -> (Link<T>, Link<T>) {
    let Some(mut node) = link else { return (None, None) };
    if node.order(start, end) == Ordering::Less {
        let (left, right) = split(node.right.take(), start, end);
        node.right = left;
        node.update();
        (Some(node), right)
    } else {
        let (left, right) = split(node.left.take(), start, end);
        node.left = right;
        node.update();
        (left, Some(node))
    }
}

/// All of `left` is before all of `right`.
fn merge<T>(left: Link<T>, right: Link<T>) -> Link<T> {
    match (left, right) {
        (None, link) | (link, None) => link,
        (Some(mut left), Some(mut right)) => Some(if left.priority > right.priority {
            left.right = merge(left.right.take(), Some(right));
            left.update();
            left
        } else {
            right.left = merge(Some(left), right.left.take());
            right.update();
            right
        }),
    }
}

fn remove<T>(link: &mut Link<T>, start: &[u8], end: &End) -> Option<T> {
    let node = link.as_mut()?;
    let removed = match node.order(start, end) {
        Ordering::Less => remove(&mut node.right, start, end),
        Ordering::Greater => remove(&mut node.left, start, end),
        Ordering::Equal => {
            let node = *link.take()?;
            *link = merge(node.left, node.right);
            return Some(node.value);
        }
    };
    node.update();
    removed
}

fn stab<T>(link: &Link<T>, key: &[u8], found: &mut impl FnMut(&T)) {
    let Some(node) = link.as_ref().filter(|node| node.max_end.is_after(key)) else { return };
    stab(&node.left, key, found);
    if node.start.as_ref() <= key {
        if node.end.is_after(key) {
            found(&node.value);
        }
        stab(&node.right, key, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(key: Option<u16>) -> End {
        key.map_or(End::Never, |key| End::Before(Bytes::copy_from_slice(&key.to_be_bytes())))
    }

    fn depth<T>(link: &Link<T>) -> usize {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    /// The intervals a list of them would find.
    fn expected(all: &[(u16, Option<u16>)], key: u16) -> Vec<(u16, Option<u16>)> {
        let mut found: Vec<_> =
            all.iter().copied().filter(|&(start, end)| start <= key && end.is_none_or(|end| key < end)).collect();
        found.sort_by_key(|&(from, to)| (from, end(to)));
        found
    }

    #[test]
    fn a_key_finds_the_intervals_that_hold_it_through_insertions_and_removals() {
        let mut tree = IntervalTree::default();
        let mut all: Vec<(u16, Option<u16>)> = Vec::new();
        let mut random = 7u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for step in 0..4000 {
            if draw(3) > 0 || all.is_empty() {
                let start = draw(200) as u16;
                let stop = (draw(8) > 0).then(|| start + 1 + draw(60) as u16);
                if !all.contains(&(start, stop)) {
                    all.push((start, stop));
                    tree.insert(Bytes::copy_from_slice(&start.to_be_bytes()), end(stop), (start, stop));
                }
            } else {
                let (start, stop) = all.swap_remove(draw(all.len() as u64) as usize);
                assert_eq!(tree.remove(&start.to_be_bytes(), &end(stop)), Some((start, stop)));
                assert_eq!(tree.remove(&start.to_be_bytes(), &end(stop)), None);
            }
            if step % 10 == 0 {
                let key = draw(300) as u16;
                let mut found = Vec::new();
                tree.stab(&key.to_be_bytes(), &mut |&value| found.push(value));
                assert_eq!(found, expected(&all, key), "key {key}");
            }
        }
    }

    #[test]
    fn intervals_inserted_in_order_make_no_list_of_the_tree() {
        let mut tree = IntervalTree::default();
        for start in 0..10_000u16 {
            tree.insert(Bytes::copy_from_slice(&start.to_be_bytes()), end(Some(start + 1)), start);
        }
        assert!(depth(&tree.root) < 60, "{}", depth(&tree.root));
        let mut found = Vec::new();
        tree.stab(&5000u16.to_be_bytes(), &mut |&value| found.push(value));
        assert_eq!(found, [5000]);
    }
}
