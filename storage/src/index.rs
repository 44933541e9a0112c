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
//! while the one writer goes on. A write copies the nodes on its path that a reader still holds, and no others. So the
//! keys of a node stand in one piece of memory: pointers to them would all have to be followed to copy it.

use std::{cmp::Ordering, sync::Arc};

use proto::{KeyRange, Revision};

/// Most keys in a leaf, and most children of an inner node.
const WIDTH: usize = 32;
/// A node with fewer is merged into its neighbour when both fit into one.
const SPARSE: usize = WIDTH / 4;

/// A living key's current version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub mod_revision: Revision,
    pub create_revision: i64,
    pub version: i64,
    /// 0: no lease.
    pub lease: i64,
}

/// Keys in ascending order, one behind the other.
#[derive(Debug, Clone, Default)]
struct Keys {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
}

/// A node of keys, and what belongs to each.
#[derive(Debug, Clone)]
struct Table<T> {
    keys: Keys,
    values: Vec<T>,
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Table<Entry>),
    /// A child's key is not greater than any key below it, and greater than every key before.
    Inner(Table<Child>),
}

#[derive(Debug, Clone)]
struct Child {
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
        Index { root: Arc::new(Node::Leaf(Table::new())) }
    }
}

impl Index {
    /// Builds an index of keys in ascending order, none twice.
    pub fn from_sorted<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = (K, Entry)>) -> Self {
        let mut leaf = Table::new();
        let mut level = Vec::new();
        for (key, entry) in keys {
            leaf.push(key.as_ref(), entry);
            if leaf.len() == WIDTH {
                level.push(Child::of(Node::Leaf(std::mem::replace(&mut leaf, Table::new()))));
            }
        }
        if leaf.len() > 0 || level.is_empty() {
            level.push(Child::of(Node::Leaf(leaf)));
        }
        while level.len() > 1 {
            let mut above = Vec::with_capacity(level.len().div_ceil(WIDTH));
            let mut below = level.into_iter().peekable();
            while below.peek().is_some() {
                let mut inner = Table::new();
                below.by_ref().take(WIDTH).for_each(|child| inner.push_child(child));
                above.push(Child::of(Node::Inner(inner)));
            }
            level = above;
        }
        Index { root: level.remove(0).node }
    }

    pub fn len(&self) -> usize {
        self.root.count()
    }

    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.keys.search(key).ok().map(|at| &leaf.values[at]),
                Node::Inner(inner) => node = &inner.values[inner.below(key)].node,
            }
        }
    }

    /// Sets the entry of `key`; returns the one before.
    pub fn insert(&mut self, key: &[u8], entry: Entry) -> Option<Entry> {
        let root = Arc::make_mut(&mut self.root);
        let (before, split) = root.insert(key, entry);
        if let Some(right) = split {
            let left = std::mem::replace(root, Node::Leaf(Table::new()));
            let mut inner = Table::new();
            inner.push_child(Child::of(left));
            inner.push_child(right);
            *root = Node::Inner(inner);
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
                Node::Leaf(leaf) => return rank + leaf.keys.search(key).unwrap_or_else(|at| at),
                Node::Inner(inner) => {
                    let at = inner.below(key);
                    rank += inner.values[..at].iter().map(|child| child.count).sum::<usize>();
                    node = &inner.values[at].node;
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
                Node::Leaf(leaf) => {
                    iter.path.push((node, leaf.keys.search(range.start()).unwrap_or_else(|at| at)));
                    return iter;
                }
                Node::Inner(inner) => {
                    let at = inner.below(range.start());
                    iter.path.push((node, at + 1));
                    node = &inner.values[at].node;
                }
            }
        }
    }
}

impl Keys {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, at: usize) -> &[u8] {
        &self.bytes[self.start(at)..self.start(at + 1)]
    }

    /// Where the key at `at` begins.
    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let at = (low + high) / 2;
            match self.get(at).cmp(key) {
                Ordering::Less => low = at + 1,
                Ordering::Greater => high = at,
                Ordering::Equal => return Ok(at),
            }
        }
        Err(low)
    }

    fn insert(&mut self, at: usize, key: &[u8]) {
        let start = self.start(at);
        self.ends.insert(at, start as u32);
        self.replace(at, key);
    }

    fn remove(&mut self, at: usize) {
        self.replace(at, &[]);
        self.ends.remove(at);
    }

    fn replace(&mut self, at: usize, key: &[u8]) {
        let (start, end) = (self.start(at), self.start(at + 1));
        self.bytes.splice(start..end, key.iter().copied());
        for moved in &mut self.ends[at..] {
            *moved = *moved - (end - start) as u32 + key.len() as u32;
        }
    }

    fn split_off(&mut self, at: usize) -> Keys {
        let start = self.start(at);
        let mut ends = self.ends.split_off(at);
        ends.iter_mut().for_each(|end| *end -= start as u32);
        Keys { bytes: self.bytes.split_off(start), ends }
    }

    fn append(&mut self, other: &Keys) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|end| start + end));
    }
}

impl<T> Table<T> {
    fn new() -> Self {
        Table { keys: Keys::default(), values: Vec::new() }
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    /// Adds what comes behind all.
    fn push(&mut self, key: &[u8], value: T) {
        self.insert(self.len(), key, value);
    }

    fn insert(&mut self, at: usize, key: &[u8], value: T) {
        self.keys.insert(at, key);
        self.values.insert(at, value);
    }

    fn remove(&mut self, at: usize) -> T {
        self.keys.remove(at);
        self.values.remove(at)
    }

    fn split_off(&mut self, at: usize) -> Self {
        Table { keys: self.keys.split_off(at), values: self.values.split_off(at) }
    }

    fn append(&mut self, other: Self) {
        self.keys.append(&other.keys);
        self.values.extend(other.values);
    }
}

impl Table<Child> {
    /// The child below which `key` stands, or would.
    fn below(&self, key: &[u8]) -> usize {
        match self.keys.search(key) {
            Ok(at) => at,
            Err(at) => at.saturating_sub(1),
        }
    }

    /// Adds a child that comes behind all.
    fn push_child(&mut self, child: Child) {
        self.insert_child(self.len(), child);
    }

    fn insert_child(&mut self, at: usize, child: Child) {
        self.keys.insert(at, child.node.first());
        self.values.insert(at, child);
    }
}

impl Node {
    fn count(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.len(),
            Node::Inner(inner) => inner.values.iter().map(|child| child.count).sum(),
        }
    }

    fn width(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.len(),
            Node::Inner(inner) => inner.len(),
        }
    }

    /// Its first key.
    fn first(&self) -> &[u8] {
        match self {
            Node::Leaf(leaf) => leaf.keys.get(0),
            Node::Inner(inner) => inner.keys.get(0),
        }
    }

    /// Inserts below this node; the second result is its new right neighbour when it had to be split.
    fn insert(&mut self, key: &[u8], entry: Entry) -> (Option<Entry>, Option<Child>) {
        let before = match self {
            Node::Leaf(leaf) => match leaf.keys.search(key) {
                Ok(at) => return (Some(std::mem::replace(&mut leaf.values[at], entry)), None),
                Err(at) => {
                    leaf.insert(at, key, entry);
                    None
                }
            },
            Node::Inner(inner) => {
                let at = inner.below(key);
                if key < inner.keys.get(at) {
                    inner.keys.replace(at, key);
                }
                let child = &mut inner.values[at];
                let (before, split) = Arc::make_mut(&mut child.node).insert(key, entry);
                child.count += before.is_none() as usize;
                if let Some(right) = split {
                    child.count -= right.count;
                    inner.insert_child(at + 1, right);
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
            Node::Leaf(leaf) => Node::Leaf(leaf.split_off(at)),
            Node::Inner(inner) => Node::Inner(inner.split_off(at)),
        })
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        match self {
            Node::Leaf(leaf) => leaf.keys.search(key).ok().map(|at| leaf.remove(at)),
            Node::Inner(inner) => {
                let at = inner.below(key);
                let child = &mut inner.values[at];
                let removed = Arc::make_mut(&mut child.node).remove(key)?;
                child.count -= 1;
                if child.node.width() < SPARSE {
                    merge(inner, at);
                }
                Some(removed)
            }
        }
    }
}

/// Joins the child at `at` with a neighbour when both fit into one node; drops it when it is empty.
fn merge(children: &mut Table<Child>, at: usize) {
    if children.values[at].count == 0 && children.len() > 1 {
        children.remove(at);
        return;
    }
    let left = at.saturating_sub(1);
    let width = |at: usize| children.values[at].node.width();
    if left + 1 >= children.len() || width(left) + width(left + 1) > WIDTH {
        return;
    }
    let right = children.remove(left + 1);
    let joined = &mut children.values[left];
    joined.count += right.count;
    match (Arc::make_mut(&mut joined.node), Arc::unwrap_or_clone(right.node)) {
        (Node::Leaf(leaf), Node::Leaf(more)) => leaf.append(more),
        (Node::Inner(inner), Node::Inner(more)) => inner.append(more),
        _ => unreachable!("neighbours stand at the same height"),
    }
}

impl Child {
    fn of(node: Node) -> Self {
        Child { count: node.count(), node: Arc::new(node) }
    }
}

/// Entries of a range in key order.
pub(crate) struct Iter<'a> {
    /// From the root down to a leaf, each with the next place to look at.
    path: Vec<(&'a Node, usize)>,
    range: &'a KeyRange,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], &'a Entry);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (node, at) = self.path.last_mut()?;
            match *node {
                Node::Leaf(leaf) if *at < leaf.len() => {
                    let (key, entry) = (leaf.keys.get(*at), &leaf.values[*at]);
                    *at += 1;
                    if self.range.contains(key) {
                        return Some((key, entry));
                    }
                    self.path.clear();
                }
                Node::Inner(inner) if *at < inner.len() => {
                    let child = &*inner.values[*at].node;
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

    type Key = Vec<u8>;

    /// Of different lengths.
    fn key(n: u16) -> Key {
        let mut key = n.to_be_bytes().to_vec();
        key.resize(2 + usize::from(n % 5), b'x');
        key
    }

    fn assert_equal(index: &Index, model: &BTreeMap<Key, Entry>) {
        let all = KeyRange::all();
        assert!(index.range(&all).eq(model.iter().map(|(key, entry)| (key.as_slice(), entry))));
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
                    prop_assert_eq!(index.insert(&key(n), entry(i as i64)), model.insert(key(n), entry(i as i64)));
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
                let expected: Vec<_> =
                    model.iter().map(|(k, e)| (k.as_slice(), e)).filter(|(k, _)| range.contains(k)).collect();
                prop_assert_eq!(index.count(&range), expected.len());
                prop_assert_eq!(index.range(&range).collect::<Vec<_>>(), expected);
            }
        }
    }
}
