//! The bytes of a file. Only pages that were written take memory, so that preallocated space is free.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

pub const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

#[derive(Debug, Clone, Default)]
pub struct Contents {
    len: u64,
    /// By their number. Shared with the contents that this is a copy of, until either is written.
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Contents {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Sets the length. What is cut off reads as zeros, should the file grow again.
    pub fn set_len(&mut self, len: u64) {
        self.len = len;
        let whole = len / PAGE_BYTES;
        let mut cut = self.pages.split_off(&whole);
        if let Some(mut last) = cut.remove(&whole).filter(|_| !len.is_multiple_of(PAGE_BYTES)) {
            Arc::make_mut(&mut last)[(len % PAGE_BYTES) as usize..].fill(0);
            self.pages.insert(whole, last);
        }
    }

    /// Fills `out`. Bytes after the end are zeros.
    pub fn read(&self, out: &mut [u8], offset: u64) {
        for (page, part) in pieces(offset, out.len() as u64, PAGE_BYTES) {
            let out = &mut out[(part.start - offset) as usize..(part.end - offset) as usize];
            match self.pages.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[within(page, &part)]),
                None => out.fill(0),
            }
        }
    }

    pub fn read_vec(&self, range: Range<u64>) -> Vec<u8> {
        let mut out = vec![0; (range.end - range.start) as usize];
        self.read(&mut out, range.start);
        out
    }

    /// Writes `bytes`, beyond the end too.
    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        for (page, part) in pieces(offset, bytes.len() as u64, PAGE_BYTES) {
            let bytes = &bytes[(part.start - offset) as usize..(part.end - offset) as usize];
            let target = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(target)[within(page, &part)].copy_from_slice(bytes);
        }
        self.extend(offset + bytes.len() as u64);
    }

    /// Takes the page with this number over from `other`.
    pub fn take_page(&mut self, page: u64, other: &Contents) {
        match other.pages.get(&page) {
            Some(bytes) => self.pages.insert(page, bytes.clone()),
            None => self.pages.remove(&page),
        };
    }

    pub fn flip_bit(&mut self, offset: u64, bit: u32) {
        let mut byte = [0];
        self.read(&mut byte, offset);
        self.write(&[byte[0] ^ (1 << bit)], offset);
    }

    /// The number of the `n`th page that was written, counted around.
    pub fn nth_page(&self, n: usize) -> Option<u64> {
        self.pages.keys().nth(n % self.pages.len().max(1)).copied()
    }
}

fn within(page: u64, part: &Range<u64>) -> Range<usize> {
    let begin = page * PAGE_BYTES;
    (part.start - begin) as usize..(part.end - begin) as usize
}

/// Cuts `len` bytes from `offset` on at the multiples of `unit`: the units that are touched, each with the part of it.
pub fn pieces(offset: u64, len: u64, unit: u64) -> impl Iterator<Item = (u64, Range<u64>)> {
    let end = offset + len;
    let units = if len == 0 { 0..0 } else { offset / unit..(end - 1) / unit + 1 };
    units.map(move |number| (number, offset.max(number * unit)..end.min((number + 1) * unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_across_pages() {
        let mut contents = Contents::default();
        let bytes: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        contents.write(&bytes, 5_000);
        assert_eq!(contents.len(), 15_000);
        assert_eq!(contents.read_vec(5_000..15_000), bytes);
        assert_eq!(contents.read_vec(0..5_000), vec![0; 5_000]);
    }

    #[test]
    fn what_is_cut_off_is_zeros_when_the_file_grows_again() {
        let mut contents = Contents::default();
        contents.write(&[7; 9_000], 0);
        contents.set_len(4_100);
        contents.extend(9_000);
        assert_eq!(contents.read_vec(0..4_100), vec![7; 4_100]);
        assert_eq!(contents.read_vec(4_100..9_000), vec![0; 4_900]);
        contents.set_len(4_096);
        contents.extend(9_000);
        assert_eq!(contents.read_vec(4_090..4_100), [[7; 6].as_slice(), &[0; 4]].concat());
    }

    #[test]
    fn pieces_are_cut_at_the_units() {
        let all: Vec<_> = pieces(500, 600, 512).collect();
        assert_eq!(all, [(0, 500..512), (1, 512..1024), (2, 1024..1100)]);
        assert_eq!(pieces(512, 512, 512).collect::<Vec<_>>(), [(1, 512..1024)]);
        assert_eq!(pieces(512, 0, 512).count(), 0);
    }
}
