//! Files read back by a reader that checks what bbolt checks, and what its updates take for granted.

use std::{collections::BTreeMap, io::Cursor};

use super::*;

type Buckets = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

struct Reader {
    file: Vec<u8>,
    seen: Vec<bool>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(out)
}

impl Reader {
    /// Every bucket; fails unless every page is reached exactly once.
    fn read(file: Vec<u8>) -> Buckets {
        assert_eq!(file.len() % PAGE_BYTES, 0);
        let pages = file.len() / PAGE_BYTES;
        let mut reader = Reader { file, seen: vec![false; pages] };
        let mut root = 0;
        for id in [0, 1] {
            let page = reader.take(id, META_PAGE, 0);
            let meta = &page[PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + 64];
            let fields = [0, 4, 8].map(|at| number::<4>(meta, at));
            assert_eq!(fields, [0xED0C_DAED, 2, 4096]);
            assert_eq!(number::<8>(meta, 40), pages as u64, "the high water mark is the length of the file");
            assert_eq!(number::<8>(meta, 48), id);
            assert_eq!(number::<8>(meta, 56), fnv1a(&meta[..56]));
            root = number::<8>(meta, 16);
        }
        reader.take(2, FREE_LIST, 0);
        let mut names = Vec::new();
        reader.walk(root, true, &[], None, &mut names);
        let buckets = names.into_iter().map(|(flags, name, value)| {
            assert_eq!(flags, IS_BUCKET);
            let mut elements = Vec::new();
            match number::<8>(&value, 0) {
                0 => {
                    assert!(value.len() <= 16 + INLINE_BYTES_MAX);
                    elements = leaf(&value[16..]);
                }
                root => reader.walk(root, true, &[], None, &mut elements),
            }
            assert!(elements.is_sorted_by(|a, b| a.1 < b.1));
            let plain = elements.into_iter().map(|(flags, key, value)| {
                assert_eq!(flags, PLAIN);
                (key, value)
            });
            (String::from_utf8(name).unwrap(), plain.collect())
        });
        let buckets = buckets.collect();
        assert!(reader.seen.iter().all(|seen| *seen), "every page is reached");
        buckets
    }

    fn take(&mut self, id: u64, flags: u16, overflow: usize) -> Vec<u8> {
        let page = self.file[id as usize * PAGE_BYTES..][..(1 + overflow) * PAGE_BYTES].to_vec();
        assert_eq!(number::<8>(&page, 0), id);
        assert_eq!(number::<2>(&page, 8), u64::from(flags));
        for seen in &mut self.seen[id as usize..=id as usize + overflow] {
            assert!(!*seen, "page {id} is named twice");
            *seen = true;
        }
        page
    }

    fn walk(&mut self, id: u64, is_root: bool, min: &[u8], max: Option<&[u8]>, found: &mut Vec<Found>) {
        let at = id as usize * PAGE_BYTES;
        let (flags, overflow) = (number::<2>(&self.file, at + 8) as u16, number::<4>(&self.file, at + 12) as usize);
        let page = self.take(id, flags, overflow);
        if flags == LEAF_PAGE {
            let elements = leaf(&page);
            assert!(is_root || !elements.is_empty());
            assert!(
                elements.iter().all(|(_, key, _)| key.as_slice() >= min && max.is_none_or(|max| key.as_slice() < max))
            );
            return found.extend(elements);
        }
        assert_eq!(flags, BRANCH_PAGE);
        let count = number::<2>(&page, 10) as usize;
        assert!(count >= 2, "bbolt cannot merge the child of a branch with a single one");
        let children: Vec<(Vec<u8>, u64)> = (0..count)
            .map(|i| {
                let header = PAGE_HEADER_BYTES + i * ELEMENT_HEADER_BYTES;
                let key = header + number::<4>(&page, header) as usize;
                let key = page[key..key + number::<4>(&page, header + 4) as usize].to_vec();
                (key, number::<8>(&page, header + 8))
            })
            .collect();
        for (i, (key, child)) in children.iter().enumerate() {
            self.walk(*child, false, key, children.get(i + 1).map(|next| next.0.as_slice()).or(max), found);
        }
    }
}

type Found = (u32, Vec<u8>, Vec<u8>);

fn leaf(page: &[u8]) -> Vec<Found> {
    let element = |i: usize| {
        let header = PAGE_HEADER_BYTES + i * ELEMENT_HEADER_BYTES;
        let [flags, position, key, value] = [0, 4, 8, 12].map(|at| number::<4>(page, header + at) as usize);
        let at = header + position;
        (flags as u32, page[at..at + key].to_vec(), page[at + key..at + key + value].to_vec())
    };
    (0..number::<2>(page, 10) as usize).map(element).collect()
}

/// Writes the buckets and checks that they come back; returns the length of the file.
fn check(buckets: &Buckets) -> usize {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    for (name, elements) in buckets {
        let mut bucket = writer.bucket(name);
        for (key, value) in elements {
            bucket.put(key, value).unwrap();
        }
        bucket.finish().unwrap();
    }
    let (file, length) = writer.finish().unwrap();
    let file = file.into_inner();
    assert_eq!(file.len() as u64, length);
    assert_eq!(&Reader::read(file), buckets);
    length as usize
}

fn numbered(count: u64, key_bytes: usize, value_bytes: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key = |i: u64| [&i.to_be_bytes()[..], &vec![7; key_bytes - 8]].concat();
    (0..count).map(|i| (key(i), vec![i as u8; value_bytes])).collect()
}

#[test]
fn a_file_without_buckets_and_empty_buckets_are_read() {
    assert_eq!(check(&Buckets::new()), 4 * PAGE_BYTES);
    assert_eq!(check(&Buckets::from([("a".into(), vec![]), ("b".into(), vec![])])), 4 * PAGE_BYTES);
}

#[test]
fn small_buckets_stand_inline_and_larger_ones_on_pages_of_their_own() {
    // Of an element its header, key and value count, of the page its header: 16 + 16 + 8 + 984 is a quarter page.
    assert_eq!(check(&Buckets::from([("a".into(), numbered(1, 8, 984))])), 4 * PAGE_BYTES);
    assert_eq!(check(&Buckets::from([("a".into(), numbered(1, 8, 985))])), 5 * PAGE_BYTES);
    let many: Buckets = (0..40).map(|i| (format!("bucket {i:02}"), numbered(1, 8, 900))).collect();
    assert!(check(&many) > 12 * PAGE_BYTES, "the root bucket has pages of its own, too");
}

#[test]
fn trees_of_every_height_are_read_at_every_length_around_a_full_page() {
    for count in (0..300).chain([5_000, 17_000, 17_001, 60_000]) {
        check(&Buckets::from([("key".into(), numbered(count, 17, 8)), ("meta".into(), numbered(2, 9, 3))]));
    }
}

#[test]
fn values_and_keys_longer_than_a_page_overflow() {
    check(&Buckets::from([("a".into(), numbered(9, 17, 3 * PAGE_BYTES)), ("b".into(), numbered(3, 17, 1_500_000))]));
    // Branches of such keys hold few children, but never a single one.
    for count in 1..40 {
        check(&Buckets::from([("a".into(), numbered(count, 30_000, 5))]));
    }
}
