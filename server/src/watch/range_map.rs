//! What is kept for ranges of keys, found by a key: by hash where the range is one key, else by the interval tree.

use std::collections::HashMap;

use bytes::Bytes;
use proto::KeyRange;

use super::interval::{End, IntervalTree};

/// A value for each distinct range. Many watchers of one range share its entry.
#[derive(Debug)]
pub struct RangeMap<V> {
    singles: HashMap<Bytes, Slot>,
    spans: IntervalTree<Slot>,
    /// Freed slots are empty and named in `free`.
    values: Vec<Option<V>>,
    free: Vec<Slot>,
}

/// Names a range of the map until it is removed.
pub type Slot = usize;

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        RangeMap { singles: HashMap::new(), spans: IntervalTree::default(), values: Vec::new(), free: Vec::new() }
    }
}

impl<V> RangeMap<V> {
    /// The value of this range, which is made where there is none.
    pub fn entry(&mut self, range: &KeyRange) -> &mut V
    where
        V: Default,
    {
        let slot = match self.slot(range) {
            Some(slot) => slot,
            None => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.values.push(None);
                    self.values.len() - 1
                });
                self.values[slot] = Some(V::default());
                match range {
                    KeyRange::Single(key) => {
                        self.singles.insert(key.clone(), slot);
                    }
                    KeyRange::Span { start, end } => self.spans.insert(start.clone(), tree_end(end), slot),
                }
                slot
            }
        };
        self.get_mut(slot)
    }

    pub fn find(&mut self, range: &KeyRange) -> Option<&mut V> {
        self.slot(range).map(|slot| self.get_mut(slot))
    }

    /// # Panics
    /// When the slot's range was removed.
    pub fn get(&self, slot: Slot) -> &V {
        self.values[slot].as_ref().expect("a slot in use holds a value")
    }

    pub fn remove(&mut self, range: &KeyRange) -> Option<V> {
        let slot = match range {
            KeyRange::Single(key) => self.singles.remove(key),
            KeyRange::Span { start, end } => self.spans.remove(start, &tree_end(end)),
        }?;
        self.free.push(slot);
        self.values[slot].take()
    }

    /// Takes every value out.
    pub fn drain(&mut self) -> Vec<V> {
        std::mem::take(self).values.into_iter().flatten().collect()
    }

    /// For each range that holds one of `items` by its key: these items, in order.
    pub fn matching<'a, I>(
        &self,
        items: impl IntoIterator<Item = &'a I>,
        key: impl Fn(&I) -> &[u8],
    ) -> Vec<(Slot, Vec<&'a I>)> {
        let mut found: Vec<(Slot, Vec<&'a I>)> = Vec::new();
        let mut places: HashMap<Slot, usize> = HashMap::new();
        for item in items {
            let key = key(item);
            let mut add = |slot: Slot| {
                let place = *places.entry(slot).or_insert_with(|| {
                    found.push((slot, Vec::new()));
                    found.len() - 1
                });
                found[place].1.push(item);
            };
            if let Some(&slot) = self.singles.get(key) {
                add(slot);
            }
            self.spans.stab(key, &mut |&slot| add(slot));
        }
        found
    }

    fn slot(&self, range: &KeyRange) -> Option<Slot> {
        match range {
            KeyRange::Single(key) => self.singles.get(key),
            KeyRange::Span { start, end } => self.spans.get(start, &tree_end(end)),
        }
        .copied()
    }

    fn get_mut(&mut self, slot: Slot) -> &mut V {
        self.values[slot].as_mut().expect("a slot in use holds a value")
    }
}

fn tree_end(end: &Option<Bytes>) -> End {
    end.clone().map_or(End::Never, End::Before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from(key), Bytes::from(end))
    }

    fn matching(map: &RangeMap<Vec<&'static str>>, keys: &[&'static str]) -> Vec<(&'static str, Vec<&'static str>)> {
        let found = map.matching(keys, |key| key.as_bytes());
        let mut found: Vec<_> =
            found.into_iter().map(|(slot, keys)| (map.get(slot)[0], keys.into_iter().copied().collect())).collect();
        found.sort();
        found
    }

    #[test]
    fn keys_find_single_keys_prefixes_and_open_ends() {
        let mut map: RangeMap<Vec<&'static str>> = RangeMap::default();
        map.entry(&range("a", "")).push("a");
        map.entry(&range("a", "b")).push("a..b");
        map.entry(&range("b", "\0")).push("b..");
        assert_eq!(
            matching(&map, &["a", "aa", "c", "a"]),
            [("a", vec!["a", "a"]), ("a..b", vec!["a", "aa", "a"]), ("b..", vec!["c"])]
        );
        map.entry(&range("a", "b")).push("again");
        assert_eq!(map.remove(&range("a", "b")), Some(vec!["a..b", "again"]));
        assert_eq!(map.remove(&range("a", "b")), None);
        map.entry(&range("0", "9")).push("0..9");
        assert_eq!(matching(&map, &["aa", "1", "a"]), [("0..9", vec!["1"]), ("a", vec!["a"])]);
        assert_eq!(map.drain().len(), 3);
        assert_eq!(matching(&map, &["a", "1", "c"]), []);
    }
}
