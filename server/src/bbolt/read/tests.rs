//! Files of the writer beside, whole and damaged. Files of etcd's: `server/tests/import.rs`.

use std::{collections::BTreeMap, io::Write as _};

use proptest::prelude::*;

use super::*;
use crate::bbolt::Writer;

const PAGE: usize = 4096;

type Buckets = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

fn written(buckets: &Buckets) -> Vec<u8> {
    let mut writer = Writer::new(io::Cursor::new(Vec::new())).unwrap();
    for (name, content) in buckets {
        let mut bucket = writer.bucket(name);
        content.iter().for_each(|(key, value)| bucket.put(key, value).unwrap());
        bucket.finish().unwrap();
    }
    writer.finish().unwrap().0.into_inner()
}

fn read(bytes: &[u8]) -> Result<Buckets, BboltError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let reader = Reader::open(file, Path::new("db"), bytes.len() as u64)?;
    let mut buckets = Buckets::new();
    reader.root().each(|place, name, item| {
        let Item::Bucket(bucket) = item else { return Err(reader.fault(place, "no bucket")) };
        let mut content = BTreeMap::new();
        bucket.each(|place, key, item| {
            let Item::Value(value) = item else { return Err(reader.fault(place, "no value")) };
            content.insert(key.to_vec(), value.to_vec());
            Ok::<_, BboltError>(())
        })?;
        buckets.insert(String::from_utf8_lossy(name).into_owned(), content);
        Ok(())
    })?;
    Ok(buckets)
}

/// Small and large values, and a tree with branches.
fn sample() -> Buckets {
    let numbered = |count: u64, bytes: usize| -> BTreeMap<Vec<u8>, Vec<u8>> {
        (0..count).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; bytes])).collect()
    };
    Buckets::from([
        ("auth".into(), numbered(2, 8)),
        ("empty".into(), BTreeMap::new()),
        ("key".into(), numbered(2_000, 100)),
        ("large".into(), numbered(3, 3 * PAGE)),
    ])
}

fn page_of(bytes: &[u8], flags: u16) -> usize {
    (2..bytes.len() / PAGE).find(|page| bytes[page * PAGE + 8..][..2] == flags.to_le_bytes()).unwrap()
}

/// The page, byte and words of a refusal.
fn refusal(bytes: &[u8]) -> (u64, u64, String) {
    match read(bytes) {
        Err(BboltError::Damaged { page, offset, detail, .. }) => (page, offset, detail),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("damage was not noticed"),
    }
}

fn with(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Both meta pages, with checksums that match.
fn with_meta(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for meta in [PAGE_HEADER_BYTES, PAGE + PAGE_HEADER_BYTES] {
        out[meta + at..meta + at + new.len()].copy_from_slice(new);
        let checksum = fnv1a(&out[meta..meta + 56]);
        out[meta + 56..meta + 64].copy_from_slice(&checksum.to_le_bytes());
    }
    out
}

#[test]
fn what_was_written_is_read() {
    assert_eq!(read(&written(&sample())).unwrap(), sample());
    assert_eq!(read(&written(&Buckets::new())).unwrap(), Buckets::new());
}

#[test]
fn the_newer_valid_meta_page_counts_wherever_it_stands() {
    let bytes = written(&sample());
    for meta in [0, PAGE] {
        let damaged = with(bytes.clone(), meta + PAGE_HEADER_BYTES + 20, &[0xff]);
        assert_eq!(read(&damaged).unwrap(), sample(), "the other meta page is whole");
    }
    // The first names an empty root, but is older.
    let older = with_meta(&bytes, 16, &2u64.to_le_bytes());
    let newer = [&older[..PAGE], &bytes[PAGE..]].concat();
    assert_eq!(read(&newer).unwrap(), sample());
}

#[test]
fn faults_of_the_meta_pages_are_named() {
    let bytes = written(&sample());
    let (page, offset, detail) = refusal(&[0; 5 * PAGE]);
    assert_eq!((page, offset), (0, 16));
    assert!(detail.contains("no file of bbolt's"), "{detail}");
    assert!(refusal(&with_meta(&bytes, 4, &[3])).2.contains("format version 3"));
    assert!(refusal(&with_meta(&bytes, 8, &1000u32.to_le_bytes())).2.contains("pages of 1000 bytes"));
    assert!(refusal(&with_meta(&bytes, 16, &u64::MAX.to_le_bytes())).2.contains("the root bucket is page"));
    let (_, offset, detail) = refusal(&with_meta(&bytes, 40, &(1u64 << 60).to_le_bytes()));
    assert_eq!(offset, bytes.len() as u64);
    assert!(detail.contains("the file ends here"), "{detail}");
    let both = with(with(bytes, 40, &[0xee]), PAGE + 40, &[0xee]);
    assert!(refusal(&both).2.contains("checksum"));
}

#[test]
fn faults_of_pages_are_named_by_page_and_byte() {
    let bytes = written(&sample());
    let (leaf, branch) = (page_of(&bytes, LEAF_PAGE), page_of(&bytes, BRANCH_PAGE));
    let header = |page: usize, element: usize| page * PAGE + PAGE_HEADER_BYTES + element * ELEMENT_HEADER_BYTES;
    let cases: [(usize, usize, &[u8], &str); 11] = [
        (leaf, leaf * PAGE, &[0xfe], "the page says that it is page"),
        (leaf, leaf * PAGE + 8, &[0x40], "neither a leaf nor a branch"),
        (leaf, leaf * PAGE + 10, &[0, 0], "is empty"),
        (leaf, leaf * PAGE + 10, &[0xff, 0xff], "do not fit"),
        (leaf, leaf * PAGE + 12, &[0xff, 0xff], "overflow pages"),
        (leaf, header(leaf, 0), &[9], "neither a value nor a bucket"),
        (leaf, header(leaf, 3) + 4, &[0xff, 0xff], "stand at"),
        (leaf, header(leaf, 3) + 4, &[0; 2], "stand at"),
        (leaf, header(leaf, 1) + 8, &[0xff, 0xff, 0xff, 0xff], "stand at"),
        (branch, header(branch, 0) + 8, &[0xff; 8], "is named here"),
        (branch, branch * PAGE + 10, &[0, 0], "a branch is empty"),
    ];
    for (page, at, new, words) in cases {
        let (found, offset, detail) = refusal(&with(bytes.clone(), at, new));
        assert!(detail.contains(words), "{words}: {detail}");
        assert_eq!(found, page as u64, "{detail}");
        assert_eq!(offset / PAGE as u64, page as u64, "{detail}");
    }
}

#[test]
fn keys_out_of_order_and_pages_in_a_circle_are_damage() {
    let bytes = written(&sample());
    let (leaf, branch) = (page_of(&bytes, LEAF_PAGE), page_of(&bytes, BRANCH_PAGE));
    let header = leaf * PAGE + PAGE_HEADER_BYTES;
    let key = header + u32_at(&bytes, header + 4) as usize;
    assert!(
        refusal(&with(bytes.clone(), key, &[0xff])).2.contains("is not greater")
            || refusal(&with(bytes.clone(), key, &[0xff])).2.contains("belongs to the next page")
    );
    let child = branch * PAGE + PAGE_HEADER_BYTES + 8;
    let circle = refusal(&with(bytes.clone(), child, &(branch as u64).to_le_bytes())).2;
    assert!(circle.contains("higher than any"), "{circle}");
    let twice: [u8; 8] = bytes[child..child + 8].try_into().unwrap();
    let (_, _, detail) = refusal(&with(bytes, child + ELEMENT_HEADER_BYTES, &twice));
    assert!(detail.contains("less than the page above says"), "{detail}");
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    let bytes = written(&sample());
    let cuts = (0..bytes.len()).step_by(509).chain((0..bytes.len()).step_by(PAGE)).chain([bytes.len() - 1]);
    for cut in cuts {
        assert!(matches!(read(&bytes[..cut]), Err(BboltError::Damaged { .. })), "cut at {cut}");
    }
}

#[test]
fn buckets_within_buckets_are_read() {
    let mut nested = vec![0; BUCKET_HEADER_BYTES + PAGE_HEADER_BYTES + ELEMENT_HEADER_BYTES];
    nested[BUCKET_HEADER_BYTES + 8] = LEAF_PAGE as u8;
    nested[BUCKET_HEADER_BYTES + 10] = 1;
    let element = BUCKET_HEADER_BYTES + PAGE_HEADER_BYTES;
    (nested[element + 4], nested[element + 8], nested[element + 12]) = (ELEMENT_HEADER_BYTES as u8, 1, 1);
    nested.extend(b"kv");
    // Large enough for a page of its own, whose first element is made a bucket.
    let content = BTreeMap::from([(b"inner".to_vec(), nested), (b"z".to_vec(), vec![0; PAGE / 2])]);
    let mut bytes = written(&Buckets::from([("outer".into(), content)]));
    let leaf = page_of(&bytes, LEAF_PAGE);
    bytes[leaf * PAGE + PAGE_HEADER_BYTES] = IS_BUCKET as u8;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let reader = Reader::open(file, Path::new("db"), bytes.len() as u64).unwrap();
    let mut found = Vec::new();
    let outer = |_: Place, name: &[u8], item: Item<'_>| match item {
        Item::Value(_) => Ok(()),
        Item::Bucket(inner) => inner.each(|_, key, item| {
            let Item::Value(value) = item else { panic!("no deeper buckets were made") };
            found.push((name.to_vec(), key.to_vec(), value.to_vec()));
            Ok::<_, BboltError>(())
        }),
    };
    let mut outer = Some(outer);
    reader
        .root()
        .each(|_, _, item| match item {
            Item::Bucket(bucket) => bucket.each(outer.take().expect("there is one bucket")),
            Item::Value(_) => panic!("the root holds buckets"),
        })
        .unwrap();
    assert_eq!(found, [(b"inner".to_vec(), b"k".to_vec(), b"v".to_vec())]);
}

proptest! {
    #[test]
    fn a_changed_file_never_makes_the_reader_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = written(&sample());
        for (at, new) in changes {
            let at = at.index(bytes.len());
            bytes[at] = new;
        }
        // Whether it is noticed depends on where the change is: values have no checksum.
        drop(read(&bytes));
    }

    #[test]
    fn a_changed_header_never_makes_the_reader_panic(
        changes in proptest::collection::vec((0usize..60, 0usize..64, any::<u64>()), 1..6),
    ) {
        let mut bytes = written(&sample());
        for (page, word, new) in changes {
            let at = page % (bytes.len() / PAGE) * PAGE + word * 8;
            bytes[at..at + 8].copy_from_slice(&new.to_le_bytes());
        }
        drop(read(&bytes));
    }
}
