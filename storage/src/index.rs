//! The key index: every living key with its current version's numbers, in memory.
//!
//! A B+tree whose inner nodes know how many keys stand below each child, so the number of keys in a range is the
//! difference of two ranks: log n, however wide the range is.
//!
//! ```text
//!               [ "f": 3 keys | "m": 2 keys | 4 keys ]
//!              /              |              \
//!      ["a" "c" "e"]      ["f" "h"]      ["m" "p" "q" "z"]
//! ```
//!
//! Nodes are shared and copied on write: a reader clones the root, which is a pointer, and reads that state undisturbed
//! while the one writer goes on. A write copies the nodes on its path that a reader still holds, and no others.

use std::{cmp::Ordering, sync::Arc};

use proto::{KeyRange, Revision};

/// Most keys in a leaf, and most children of an inner node.
const WIDTH: usize = 32;
/// A node with fewer is merged into its neighbour when both fit into one.
const SPARSE: usize = WIDTH / 4;

pub(crate) type Key = Arc<[u8]>;

/// A living key's current version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub mod_revision: Revision,
    pub create_revision: i64,
    pub version: i64,
    /// 0: no lease.
    pub lease: i64,
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Vec<(Key, Entry)>),
    Inner(Vec<Child>),
}

#[derive(Debug, Clone)]
struct Child {
    /// Not greater than any key below, greater than every key before.
    first: Key,
    count: usize,
    node: Arc<Node>,
}

/// See the [module](self). Cloning shares everything.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    root: Arc<Node>,
}

impl Default for Index {
    fn default() -> Self {
        Index { root: Arc::new(Node::Leaf(Vec::new())) }
    }
}

impl Index {
    /// Builds an index of keys in ascending order, none twice.
    pub fn from_sorted(keys: impl IntoIterator<Item = (Key, Entry)>) -> Self {
        let mut leaf = Vec::with_capacity(WIDTH);
        let mut level: Vec<Child> = Vec::new();
        for pair in keys {
            leaf.push(pair);
            if leaf.len() == WIDTH {
                level.push(Child::of(Node::Leaf(std::mem::replace(&mut leaf, Vec::with_capacity(WIDTH)))));
            }
        }
        if !leaf.is_empty() || level.is_empty() {
            if level.is_empty() {
                return Index { root: Arc::new(Node::Leaf(leaf)) };
            }
            level.push(Child::of(Node::Leaf(leaf)));
        }
        while level.len() > 1 {
            level = level.chunks(WIDTH).map(|children| Child::of(Node::Inner(children.to_vec()))).collect();
        }
        Index { root: level.remove(0).node }
    }

    pub fn len(&self) -> usize {
        self.root.count()
    }

    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.find(key).map(|(_, entry)| entry)
    }

    /// The entry with the key as the index holds it, which is cheap to clone.
    pub fn find(&self, key: &[u8]) -> Option<(&Key, &Entry)> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(pairs) => {
                    let at = search(pairs, key).ok()?;
                    return Some((&pairs[at].0, &pairs[at].1));
                }
                Node::Inner(children) => node = &children[child_of(children, key)].node,
            }
        }
    }

    /// Sets the entry of `key`; returns the one before.
    pub fn insert(&mut self, key: Key, entry: Entry) -> Option<Entry> {
        let root = Arc::make_mut(&mut self.root);
        let (before, split) = root.insert(key, entry);
        if let Some(right) = split {
            let left = std::mem::replace(root, Node::Leaf(Vec::new()));
            *root = Node::Inner(vec![Child::of(left), right]);
        }
        before
    }

    /// Removes `key`; returns its entry.
    pub fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        self.get(key)?;
        let root = Arc::make_mut(&mut self.root);
        let removed = root.remove(key);
        if let Node::Inner(children) = root
            && children.len() == 1
        {
            self.root = children.remove(0).node;
        }
        removed
    }

    /// The number of keys in `range`.
    pub fn count(&self, range: &KeyRange) -> usize {
        match range {
            KeyRange::Single(key) => self.get(key).is_some() as usize,
            KeyRange::Span { start, end } => {
                let end = end.as_ref().map_or_else(|| self.len(), |end| self.rank(end));
                end.saturating_sub(self.rank(start))
            }
        }
    }

    /// The number of keys below `key`.
    fn rank(&self, key: &[u8]) -> usize {
        let mut node = &*self.root;
        let mut rank = 0;
        loop {
            match node {
                Node::Leaf(pairs) => return rank + search(pairs, key).unwrap_or_else(|at| at),
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    rank += children[..at].iter().map(|child| child.count).sum::<usize>();
                    node = &children[at].node;
                }
            }
        }
    }

    /// The entries in `range`, in key order.
    pub fn range<'a>(&'a self, range: &'a KeyRange) -> Iter<'a> {
        let mut iter = Iter { path: Vec::new(), range };
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(pairs) => {
                    iter.path.push((node, search(pairs, range.start()).unwrap_or_else(|at| at)));
                    return iter;
                }
                Node::Inner(children) => {
                    let at = child_of(children, range.start());
                    iter.path.push((node, at + 1));
                    node = &children[at].node;
                }
            }
        }
    }
}

impl Node {
    fn count(&self) -> usize {
        match self {
            Node::Leaf(pairs) => pairs.len(),
            Node::Inner(children) => children.iter().map(|child| child.count).sum(),
        }
    }

    fn width(&self) -> usize {
        match self {
            Node::Leaf(pairs) => pairs.len(),
            Node::Inner(children) => children.len(),
        }
    }

    /// Inserts below this node; the second result is its new right neighbour when it had to be split.
    fn insert(&mut self, key: Key, entry: Entry) -> (Option<Entry>, Option<Child>) {
        let before = match self {
            Node::Leaf(pairs) => match search(pairs, &key) {
                Ok(at) => return (Some(std::mem::replace(&mut pairs[at].1, entry)), None),
                Err(at) => {
                    pairs.insert(at, (key, entry));
                    None
                }
            },
            Node::Inner(children) => {
                let at = child_of(children, &key);
                let child = &mut children[at];
                if key < child.first {
                    child.first = key.clone();
                }
                let (before, split) = Arc::make_mut(&mut child.node).insert(key, entry);
                child.count += before.is_none() as usize;
                if let Some(right) = split {
                    child.count -= right.count;
                    children.insert(at + 1, right);
                }
                before
            }
        };
        (before, (self.width() > WIDTH).then(|| self.split()))
    }

    fn split(&mut self) -> Child {
        // Keys often come in ascending order; a right half that is nearly empty keeps such leaves nearly full.
        let at = self.width() * 3 / 4;
        Child::of(match self {
            Node::Leaf(pairs) => Node::Leaf(pairs.split_off(at)),
            Node::Inner(children) => Node::Inner(children.split_off(at)),
        })
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        match self {
            Node::Leaf(pairs) => search(pairs, key).ok().map(|at| pairs.remove(at).1),
            Node::Inner(children) => {
                let at = child_of(children, key);
                let removed = Arc::make_mut(&mut children[at].node).remove(key)?;
                children[at].count -= 1;
                if children[at].node.width() < SPARSE {
                    merge(children, at);
                }
                Some(removed)
            }
        }
    }
}

/// Joins the child at `at` with a neighbour when both fit into one node; drops it when it is empty.
fn merge(children: &mut Vec<Child>, at: usize) {
    if children[at].count == 0 && children.len() > 1 {
        children.remove(at);
        return;
    }
    let left = if at > 0 { at - 1 } else { at };
    if left + 1 >= children.len() || children[left].node.width() + children[left + 1].node.width() > WIDTH {
        return;
    }
    let right = children.remove(left + 1);
    let joined = &mut children[left];
    joined.count += right.count;
    match (Arc::make_mut(&mut joined.node), Arc::unwrap_or_clone(right.node)) {
        (Node::Leaf(pairs), Node::Leaf(more)) => pairs.extend(more),
        (Node::Inner(below), Node::Inner(more)) => below.extend(more),
        _ => unreachable!("neighbours stand at the same height"),
    }
}

impl Child {
    fn of(node: Node) -> Self {
        let first = match &node {
            Node::Leaf(pairs) => pairs.first().map(|(key, _)| key.clone()),
            Node::Inner(children) => children.first().map(|child| child.first.clone()),
        };
        Child { first: first.expect("a child is never empty"), count: node.count(), node: Arc::new(node) }
    }
}

fn search(pairs: &[(Key, Entry)], key: &[u8]) -> Result<usize, usize> {
    pairs.binary_search_by(|(k, _)| k.as_ref().cmp(key))
}

/// The child below which `key` stands, or would.
fn child_of(children: &[Child], key: &[u8]) -> usize {
    children.partition_point(|child| child.first.as_ref().cmp(key) != Ordering::Greater).saturating_sub(1)
}

/// Entries of a range in key order.
pub(crate) struct Iter<'a> {
    /// From the root down to a leaf, each with the next place to look at.
    path: Vec<(&'a Node, usize)>,
    range: &'a KeyRange,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Key, &'a Entry);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (node, at) = self.path.last_mut()?;
            match *node {
                Node::Leaf(pairs) if *at < pairs.len() => {
                    let (key, entry) = &pairs[*at];
                    *at += 1;
                    if self.range.contains(key) {
                        return Some((key, entry));
                    }
                    self.path.clear();
                }
                Node::Inner(children) if *at < children.len() => {
                    let child = &*children[*at].node;
                    *at += 1;
                    self.path.push((child, 0));
                }
                _ => {
                    self.path.pop();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(n: i64) -> Entry {
        Entry { mod_revision: Revision::new(n, 0), create_revision: n, version: 1, lease: 0 }
    }

    fn key(n: u16) -> Key {
        n.to_be_bytes().as_slice().into()
    }

    fn assert_equal(index: &Index, model: &BTreeMap<Key, Entry>) {
        let all = KeyRange::all();
        assert!(index.range(&all).eq(model.iter()));
        assert_eq!(index.len(), model.len());
    }

    proptest! {
        #[test]
        fn an_index_equals_a_sorted_map_and_its_snapshots_never_change(
            start in 0u16..400,
            steps in proptest::collection::vec((any::<bool>(), 0u16..300), 1..600),
            spans in proptest::collection::vec((0u16..310, 0u16..310), 20),
        ) {
            let mut model: BTreeMap<Key, Entry> = (0..start).map(|n| (key(n), entry(n as i64))).collect();
            let mut index = Index::from_sorted(model.clone());
            let mut snapshots = Vec::new();
            for (i, (put, n)) in steps.into_iter().enumerate() {
                if i % 50 == 0 {
                    snapshots.push((index.clone(), model.clone()));
                }
                if put {
                    prop_assert_eq!(index.insert(key(n), entry(i as i64)), model.insert(key(n), entry(i as i64)));
                } else {
                    prop_assert_eq!(index.remove(&key(n)), model.remove(&key(n)));
                }
                prop_assert_eq!(index.get(&key(n)), model.get(&key(n)));
            }
            snapshots.push((index, model));
            for (index, model) in &snapshots {
                assert_equal(index, model);
            }
            let (index, model) = snapshots.last().expect("the last state was pushed");
            for (a, b) in spans {
                let range = KeyRange::new(key(a).to_vec().into(), key(b).to_vec().into());
                let expected: Vec<_> = model.iter().filter(|(k, _)| range.contains(k)).collect();
                prop_assert_eq!(index.count(&range), expected.len());
                prop_assert_eq!(index.range(&range).collect::<Vec<_>>(), expected);
            }
        }
    }
}
