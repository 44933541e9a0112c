//! Reads a bbolt file that may be larger than memory, and believes nothing of it that it has not checked.
//!
//! Of each tree the pages on the way from the root to the leaf at hand are in memory. What is checked: the meta pages
//! with their checksums; of each page on the way its number, its kind, that it lies within the file, and that its
//! elements lie within it; that keys ascend, within a page and from page to page. Since they do, no page can be reached
//! twice. A fault names the file, the page and the byte.

use std::{
    cell::Cell,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{
    BRANCH_PAGE, BUCKET_HEADER_BYTES, ELEMENT_HEADER_BYTES, IS_BUCKET, LEAF_PAGE, MAGIC, META_PAGE, PAGE_HEADER_BYTES,
    PLAIN, VERSION, fnv1a,
};

const META_BYTES: usize = 64;
const PAGE_BYTES_MIN: u64 = 1 << 10;
const PAGE_BYTES_MAX: u64 = 64 << 10;
/// The first two pages are meta pages.
const FIRST_DATA_PAGE: u64 = 2;
/// A tree of two children a page that fills a disk of 2^64 bytes is not higher.
const DEPTH_MAX: usize = 64;
/// A page with its overflow pages. etcd's requests are 1.5 MiB unless told otherwise, and a page holds a few at most.
const NODE_BYTES_MAX: u64 = 192 << 20;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum BboltError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: damaged at byte {offset}, page {page}: {detail}")]
    Damaged { path: PathBuf, page: u64, offset: u64, detail: String },
}

/// A bbolt file that nobody writes to.
pub struct Reader {
    file: File,
    path: PathBuf,
    page_bytes: u64,
    root: u64,
    page_count: u64,
    pages_read: Cell<u64>,
}

/// Where a key begins in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    page: u64,
    offset: u64,
}

/// What stands under a key.
pub enum Item<'a> {
    Value(&'a [u8]),
    Bucket(Bucket<'a>),
}

/// Keys and values, in order of keys.
pub struct Bucket<'a> {
    reader: &'a Reader,
    root: Root<'a>,
}

enum Root<'a> {
    Page(u64),
    /// The page itself.
    Inline(Node<'a>),
}

/// A page with its overflow pages.
#[derive(Clone, Copy)]
struct Node<'a> {
    bytes: &'a [u8],
    /// The page that it begins in, and its first byte, in the file.
    page: u64,
    offset: u64,
}

/// The keys that a page may hold, as the page above it says.
#[derive(Clone, Copy)]
struct Bounds<'a> {
    from: &'a [u8],
    to: Option<&'a [u8]>,
}

struct Meta {
    page_bytes: u64,
    root: u64,
    page_count: u64,
    transaction: u64,
}

impl Reader {
    /// Reads the meta pages. `length` bytes of the file belong to it; what may follow is not looked at.
    pub fn open(file: File, path: &Path, length: u64) -> Result<Reader, BboltError> {
        let fault = |offset, detail| BboltError::Damaged { path: path.into(), page: 0, offset, detail };
        let first = read_meta(&file, path, length, 0);
        let sizes = std::iter::successors(Some(PAGE_BYTES_MIN), |size| Some(size * 2));
        // Where the first is unreadable, the size of a page is not known, and the second is looked for.
        let second = match &first {
            Ok(meta) => read_meta(&file, path, length, meta.page_bytes),
            Err(_) => sizes
                .take_while(|size| *size <= PAGE_BYTES_MAX)
                .map(|size| read_meta(&file, path, length, size))
                .find(Result::is_ok)
                .unwrap_or_else(|| Err(fault(0, "no second meta page is found either".into()))),
        };
        let meta = match (first, second) {
            (Ok(first), Ok(second)) if first.transaction > second.transaction => first,
            (_, Ok(second)) => second,
            (Ok(first), Err(_)) => first,
            (Err(first), Err(_)) => return Err(first),
        };
        let Meta { page_bytes, root, page_count, .. } = meta;
        if page_count.checked_mul(page_bytes).is_none_or(|bytes| bytes > length) {
            let detail = format!(
                "the file ends here, but should have {page_count} pages of {page_bytes} bytes: the rest is missing"
            );
            return Err(BboltError::Damaged { path: path.into(), page: length / page_bytes, offset: length, detail });
        }
        Ok(Reader { file, path: path.into(), page_bytes, root, page_count, pages_read: Cell::new(0) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of all pages, used and free.
    pub fn bytes(&self) -> u64 {
        self.page_count * self.page_bytes
    }

    /// Of the pages read so far.
    pub fn bytes_read(&self) -> u64 {
        self.pages_read.get() * self.page_bytes
    }

    /// The bucket that holds the others.
    pub fn root(&self) -> Bucket<'_> {
        Bucket { reader: self, root: Root::Page(self.root) }
    }

    /// A fault in what is kept at a place.
    pub fn fault(&self, place: Place, detail: impl Into<String>) -> BboltError {
        self.damaged(place.page, place.offset, detail)
    }

    fn damaged(&self, page: u64, offset: u64, detail: impl Into<String>) -> BboltError {
        BboltError::Damaged { path: self.path.clone(), page, offset, detail: detail.into() }
    }

    /// Reads a page with its overflow pages.
    fn read(&self, id: u64, named_at: (u64, u64), buffer: &mut Vec<u8>) -> Result<(), BboltError> {
        let (page, offset) = named_at;
        if id < FIRST_DATA_PAGE || id >= self.page_count {
            let detail = format!("page {id} is named here, but pages go from {FIRST_DATA_PAGE} to {}", self.page_count);
            return Err(self.damaged(page, offset, detail));
        }
        let at = id * self.page_bytes;
        buffer.resize(self.page_bytes as usize, 0);
        self.read_at(buffer, at)?;
        let found = u64_at(buffer, 0);
        if found != id {
            return Err(self.damaged(id, at, format!("the page says that it is page {found}")));
        }
        let overflow = u64::from(u32_at(buffer, 12));
        if overflow >= self.page_count - id {
            let detail = format!("{overflow} overflow pages do not fit into the file's {} pages", self.page_count);
            return Err(self.damaged(id, at + 12, detail));
        }
        let bytes = (1 + overflow) * self.page_bytes;
        if bytes > NODE_BYTES_MAX {
            return Err(self.damaged(
                id,
                at + 12,
                format!("{overflow} overflow pages are more than any content needs"),
            ));
        }
        buffer.resize(bytes as usize, 0);
        self.read_at(&mut buffer[self.page_bytes as usize..], at + self.page_bytes)?;
        self.pages_read.set(self.pages_read.get() + 1 + overflow);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), BboltError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| BboltError::Io { path: self.path.clone(), error })
    }

    /// Visits what stands in the tree below page `id`, which is named at a page and byte of the file.
    fn walk<E: From<BboltError>>(
        &self,
        id: u64,
        named_at: (u64, u64),
        depth: usize,
        bounds: Option<Bounds<'_>>,
        visit: &mut dyn FnMut(Place, &[u8], Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (page, offset) = named_at;
        if depth > DEPTH_MAX {
            return Err(self.damaged(page, offset, "the tree is higher than any can be").into());
        }
        let mut buffer = Vec::new();
        self.read(id, named_at, &mut buffer)?;
        let node = Node { bytes: &buffer, page: id, offset: id * self.page_bytes };
        match node.flags() {
            LEAF_PAGE => self.visit_leaf(node, bounds, visit),
            BRANCH_PAGE => self.visit_branch(node, depth, bounds, visit),
            flags => {
                let detail = format!("the page is neither a leaf nor a branch: its flags are {flags:#x}");
                Err(self.damaged(id, node.offset + 8, detail).into())
            }
        }
    }

    fn visit_leaf<E: From<BboltError>>(
        &self,
        node: Node<'_>,
        bounds: Option<Bounds<'_>>,
        visit: &mut dyn FnMut(Place, &[u8], Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let count = self.checked_count(node)?;
        if count == 0 && bounds.is_some() {
            return Err(self.damaged(node.page, node.offset + 10, "a leaf that is not the root is empty").into());
        }
        let mut last = None;
        for i in 0..count {
            let header = PAGE_HEADER_BYTES + i * ELEMENT_HEADER_BYTES;
            let [flags, position, key, value] = [0, 4, 8, 12].map(|at| u32_at(node.bytes, header + at));
            let content = self.content(node, count, header, position, [key, value])?;
            let (key, value) = content.split_at(key as usize);
            self.check_order(node, header, key, last, bounds)?;
            last = Some(key);
            let item = match flags {
                PLAIN => Item::Value(value),
                IS_BUCKET => Item::Bucket(self.bucket(node, header + position as usize + key.len(), value)?),
                flags => {
                    let detail = format!("an element is neither a value nor a bucket: its flags are {flags:#x}");
                    return Err(self.damaged(node.page, node.offset + header as u64, detail).into());
                }
            };
            visit(Place { page: node.page, offset: node.offset + (header + position as usize) as u64 }, key, item)?;
        }
        Ok(())
    }

    fn visit_branch<E: From<BboltError>>(
        &self,
        node: Node<'_>,
        depth: usize,
        bounds: Option<Bounds<'_>>,
        visit: &mut dyn FnMut(Place, &[u8], Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let count = self.checked_count(node)?;
        if count == 0 {
            return Err(self.damaged(node.page, node.offset + 10, "a branch is empty").into());
        }
        let child = |i: usize| -> Result<(&[u8], u64, usize), BboltError> {
            let header = PAGE_HEADER_BYTES + i * ELEMENT_HEADER_BYTES;
            let [position, key] = [0, 4].map(|at| u32_at(node.bytes, header + at));
            Ok((self.content(node, count, header, position, [key, 0])?, u64_at(node.bytes, header + 8), header))
        };
        let mut last = None;
        for i in 0..count {
            let (key, id, header) = child(i)?;
            self.check_order(node, header, key, last, bounds)?;
            last = Some(key);
            let next = if i + 1 < count { Some(child(i + 1)?.0) } else { bounds.and_then(|bounds| bounds.to) };
            let named_at = (node.page, node.offset + header as u64 + 8);
            self.walk(id, named_at, depth + 1, Some(Bounds { from: key, to: next }), visit)?;
        }
        Ok(())
    }

    /// The number of elements, whose headers lie within the page.
    fn checked_count(&self, node: Node<'_>) -> Result<usize, BboltError> {
        let count = usize::from(u16::from_le_bytes([node.bytes[10], node.bytes[11]]));
        if PAGE_HEADER_BYTES + count * ELEMENT_HEADER_BYTES > node.bytes.len() {
            let detail = format!("{count} elements do not fit into the page's {} bytes", node.bytes.len());
            return Err(self.damaged(node.page, node.offset + 10, detail));
        }
        Ok(count)
    }

    /// The key and value of the element whose header stands at `header`, and which lie `position` bytes behind it.
    fn content<'a>(
        &self,
        node: Node<'a>,
        count: usize,
        header: usize,
        position: u32,
        lengths: [u32; 2],
    ) -> Result<&'a [u8], BboltError> {
        let begin = header as u64 + u64::from(position);
        let end = begin + lengths.iter().copied().map(u64::from).sum::<u64>();
        let first = (PAGE_HEADER_BYTES + count * ELEMENT_HEADER_BYTES) as u64;
        if begin < first || end > node.bytes.len() as u64 {
            let detail = format!(
                "an element's key and value stand at {begin} to {end} of the page, which has room from {first} to {}",
                node.bytes.len()
            );
            return Err(self.damaged(node.page, node.offset + header as u64, detail));
        }
        Ok(&node.bytes[begin as usize..end as usize])
    }

    fn check_order(
        &self,
        node: Node<'_>,
        header: usize,
        key: &[u8],
        last: Option<&[u8]>,
        bounds: Option<Bounds<'_>>,
    ) -> Result<(), BboltError> {
        let detail = if last.is_some_and(|last| key <= last) {
            "a key is not greater than the one before it"
        } else if bounds.is_some_and(|bounds| key < bounds.from) {
            "a key is less than the page above says"
        } else if bounds.and_then(|bounds| bounds.to).is_some_and(|to| key >= to) {
            "a key belongs to the next page by what the page above says"
        } else {
            return Ok(());
        };
        Err(self.damaged(node.page, node.offset + header as u64, detail))
    }

    /// The bucket whose header and, where it is inline, page are `value`, `at` bytes from the beginning of the node.
    fn bucket<'a>(&'a self, node: Node<'_>, at: usize, value: &'a [u8]) -> Result<Bucket<'a>, BboltError> {
        let offset = node.offset + at as u64;
        if value.len() < BUCKET_HEADER_BYTES {
            return Err(self.damaged(node.page, offset, "a bucket's header is cut short"));
        }
        let (header, inline) = value.split_at(BUCKET_HEADER_BYTES);
        let root = match u64_at(header, 0) {
            0 if inline.len() < PAGE_HEADER_BYTES => {
                return Err(self.damaged(node.page, offset, "an inline bucket's page is cut short"));
            }
            0 => {
                let node = Node { bytes: inline, page: node.page, offset: offset + BUCKET_HEADER_BYTES as u64 };
                if node.flags() != LEAF_PAGE {
                    let detail = format!("an inline bucket's page is no leaf: its flags are {:#x}", node.flags());
                    return Err(self.damaged(node.page, node.offset + 8, detail));
                }
                Root::Inline(node)
            }
            page if page < FIRST_DATA_PAGE || page >= self.page_count => {
                let detail = format!("the bucket's root is page {page}, but the file has {}", self.page_count);
                return Err(self.damaged(node.page, offset, detail));
            }
            page => Root::Page(page),
        };
        Ok(Bucket { reader: self, root })
    }
}

impl Bucket<'_> {
    /// Visits every key with its place and what stands under it, until `visit` refuses one.
    pub fn each<E: From<BboltError>>(
        &self,
        mut visit: impl FnMut(Place, &[u8], Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.root {
            // The page is named by a header or a meta page that was looked at already.
            Root::Page(page) => self.reader.walk(page, (page, page * self.reader.page_bytes), 0, None, &mut visit),
            Root::Inline(node) => self.reader.visit_leaf(node, None, &mut visit),
        }
    }
}

impl Node<'_> {
    fn flags(&self) -> u16 {
        u16::from_le_bytes([self.bytes[8], self.bytes[9]])
    }
}

/// A meta page that can be believed.
fn read_meta(file: &File, path: &Path, length: u64, at: u64) -> Result<Meta, BboltError> {
    let mut bytes = [0; PAGE_HEADER_BYTES + META_BYTES];
    let page = u64::from(at > 0);
    let fault = |offset: usize, detail: String| BboltError::Damaged {
        path: path.into(),
        page,
        offset: at + offset as u64,
        detail,
    };
    if length < at + bytes.len() as u64 {
        return Err(BboltError::Damaged {
            path: path.into(),
            page,
            offset: length,
            detail: "the file ends within a meta page".into(),
        });
    }
    file.read_exact_at(&mut bytes, at).map_err(|error| BboltError::Io { path: path.into(), error })?;
    let (header, meta) = bytes.split_at(PAGE_HEADER_BYTES);
    let (magic, version) = (u32_at(meta, 0), u32_at(meta, 4));
    if magic != MAGIC {
        let detail = format!("this is no file of bbolt's: it has {magic:#x} in place of {MAGIC:#x}");
        return Err(fault(PAGE_HEADER_BYTES, detail));
    }
    if version != VERSION {
        return Err(fault(
            PAGE_HEADER_BYTES + 4,
            format!("format version {version} is not known here, only {VERSION}"),
        ));
    }
    if u64_at(meta, 56) != fnv1a(&meta[..56]) {
        return Err(fault(PAGE_HEADER_BYTES + 56, "the meta page's checksum does not match".into()));
    }
    if u16::from_le_bytes([header[8], header[9]]) & META_PAGE == 0 || u64_at(header, 0) != page {
        return Err(fault(0, "the page does not say that it is this meta page".into()));
    }
    let meta = Meta {
        page_bytes: u64::from(u32_at(meta, 8)),
        root: u64_at(meta, 16),
        page_count: u64_at(meta, 40),
        transaction: u64_at(meta, 48),
    };
    if !meta.page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&meta.page_bytes) {
        return Err(fault(PAGE_HEADER_BYTES + 8, format!("pages of {} bytes cannot be", meta.page_bytes)));
    }
    if meta.root < FIRST_DATA_PAGE || meta.root >= meta.page_count {
        let detail = format!("the root bucket is page {} of {}", meta.root, meta.page_count);
        return Err(fault(PAGE_HEADER_BYTES + 16, detail));
    }
    Ok(meta)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
