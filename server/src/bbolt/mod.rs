//! bbolt's file format, written and read.
//!
//! ```text
//! page 0, 1   meta: where the root bucket is, how many pages there are; the newer of the valid ones counts
//! page …      leaf pages hold keys and values, branch pages the first key of each page below, one lists free pages
//! ```
//!
//! A page that is too small for its content goes on in overflow pages right behind it. A value may be a bucket: a header
//! that names the page of its root, or, in a small one, is followed by that page. Numbers are little-endian.
//! Source: bbolt, `internal/common` (page, inode, bucket, meta) and `node.go`.

mod read;
mod write;

pub use read::{BboltError, Bucket as ReadBucket, Item, Place, Reader};
pub use write::{Bucket, Writer};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER_BYTES: usize = 16;
const ELEMENT_HEADER_BYTES: usize = 16;
const BUCKET_HEADER_BYTES: usize = 16;

const BRANCH_PAGE: u16 = 0x01;
const LEAF_PAGE: u16 = 0x02;
const META_PAGE: u16 = 0x04;
const FREE_LIST: u16 = 0x10;
const IS_BUCKET: u32 = 0x01;
const PLAIN: u32 = 0;

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
