//! Writes a bbolt file from buckets whose keys come in order, in one pass and in little memory.
//!
//! The pages are the two meta pages, an empty list of free pages, then leaf and branch pages, each written once it is
//! full. Of each tree only the page at its right edge is in memory, one for each level.

use std::io::{self, Seek, SeekFrom, Write};

use super::{
    BRANCH_PAGE, BUCKET_HEADER_BYTES, ELEMENT_HEADER_BYTES, FREE_LIST, IS_BUCKET, LEAF_PAGE, MAGIC, META_PAGE,
    PAGE_HEADER_BYTES, PLAIN, VERSION, fnv1a,
};

const PAGE_BYTES: usize = 4096;
const FIRST_DATA_PAGE: u64 = 3;
const FREE_LIST_PAGE: u64 = 2;
/// A bucket that is not larger stands within the page that names it.
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// bbolt takes a branch that is not the root for damaged when it has a single child.
const BRANCH_CHILDREN_MIN: usize = 2;

/// A file in the making. Without [`Writer::finish`] it is no bbolt file.
pub struct Writer<W> {
    pages: Pages<W>,
    root: Tree,
}

/// A bucket in the making. Without [`Bucket::finish`] it is not in the file.
pub struct Bucket<'a, W> {
    file: &'a mut Writer<W>,
    name: Vec<u8>,
    tree: Tree,
}

impl<W: Write + Seek> Writer<W> {
    pub fn new(mut out: W) -> io::Result<Self> {
        // The first pages are written last: they name the others.
        out.seek(SeekFrom::Start(FIRST_DATA_PAGE * PAGE_BYTES as u64))?;
        Ok(Writer { pages: Pages { out, next: FIRST_DATA_PAGE }, root: Tree::new(IS_BUCKET) })
    }

    /// Begins a bucket. Its name must lie behind those of the buckets before.
    pub fn bucket(&mut self, name: &str) -> Bucket<'_, W> {
        Bucket { file: self, name: name.into(), tree: Tree::new(PLAIN) }
    }

    /// Writes what names the rest; returns the file and its length in bytes.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let root = self.root.write(&mut self.pages)?;
        let Pages { mut out, next } = self.pages;
        out.seek(SeekFrom::Start(0))?;
        for transaction in [0, 1] {
            out.write_all(&page(transaction, META_PAGE, 0, &meta(root, next, transaction)))?;
        }
        out.write_all(&page(FREE_LIST_PAGE, FREE_LIST, 0, &[]))?;
        out.flush()?;
        Ok((out, next * PAGE_BYTES as u64))
    }
}

impl<W: Write> Bucket<'_, W> {
    /// Adds a key, which must lie behind those before.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.tree.put(key, value, &mut self.file.pages)
    }

    pub fn finish(self) -> io::Result<()> {
        let Bucket { file, name, tree } = self;
        let (root, inline) = match tree.inline() {
            Some(page) => (0, page),
            None => (tree.write(&mut file.pages)?, Vec::new()),
        };
        // The bucket's header, with a sequence number that etcd does not use; behind it the page, when inline.
        let mut value = Vec::with_capacity(BUCKET_HEADER_BYTES + inline.len());
        value.extend(root.to_le_bytes());
        value.extend(0u64.to_le_bytes());
        value.extend(inline);
        file.root.put(&name, &value, &mut file.pages)
    }
}

/// Where pages go, one behind the other.
struct Pages<W> {
    out: W,
    next: u64,
}

impl<W: Write> Pages<W> {
    /// Writes a node as a page with as many overflow pages as it needs; returns its id.
    fn write(&mut self, node: &Node) -> io::Result<u64> {
        let id = self.next;
        let page = page(id, node.page_flags(), node.elements.len(), &node.encode());
        self.out.write_all(&page)?;
        self.next += (page.len() / PAGE_BYTES) as u64;
        Ok(id)
    }
}

/// A B+tree that grows at its right edge.
struct Tree {
    element_flags: u32,
    /// From the leaf up.
    edge: Vec<Node>,
    last_key: Vec<u8>,
}

impl Tree {
    fn new(element_flags: u32) -> Self {
        Tree { element_flags, edge: vec![Node::default()], last_key: Vec::new() }
    }

    fn put<W: Write>(&mut self, key: &[u8], value: &[u8], pages: &mut Pages<W>) -> io::Result<()> {
        assert!(key > self.last_key.as_slice(), "keys come in ascending order, and none is empty");
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        let element = Element { flags: self.element_flags, key: key.into(), value: value.into(), child: 0 };
        self.add(0, element, pages)
    }

    /// Adds to the node at the edge of `level`, after writing it when it is full.
    fn add<W: Write>(&mut self, level: usize, element: Element, pages: &mut Pages<W>) -> io::Result<()> {
        if level == self.edge.len() {
            self.edge.push(Node { is_branch: true, ..Node::default() });
        }
        if self.edge[level].is_full_for(&element) {
            let next = self.edge[level].split_off_next();
            let full = std::mem::replace(&mut self.edge[level], next);
            self.pass_up(level, &full, pages)?;
        }
        self.edge[level].push(element);
        Ok(())
    }

    /// Writes a node and names it on the level above.
    fn pass_up<W: Write>(&mut self, level: usize, node: &Node, pages: &mut Pages<W>) -> io::Result<()> {
        let child = pages.write(node)?;
        let key = node.elements[0].key.clone();
        self.add(level + 1, Element { flags: PLAIN, key, value: Vec::new(), child }, pages)
    }

    /// The only page, when it is small enough to stand within another.
    fn inline(&self) -> Option<Vec<u8>> {
        let [leaf] = self.edge.as_slice() else { return None };
        let fits = PAGE_HEADER_BYTES + leaf.bytes <= INLINE_BYTES_MAX;
        fits.then(|| [&header(0, leaf.page_flags(), leaf.elements.len(), 0)[..], &leaf.encode()].concat())
    }

    /// Writes what is left; returns the page of the root.
    fn write<W: Write>(mut self, pages: &mut Pages<W>) -> io::Result<u64> {
        let mut level = 0;
        while level + 1 < self.edge.len() {
            let node = std::mem::take(&mut self.edge[level]);
            self.pass_up(level, &node, pages)?;
            level += 1;
        }
        pages.write(&self.edge[level])
    }
}

#[derive(Default)]
struct Node {
    is_branch: bool,
    elements: Vec<Element>,
    /// Of all elements, encoded.
    bytes: usize,
}

struct Element {
    flags: u32,
    key: Vec<u8>,
    /// Of a leaf.
    value: Vec<u8>,
    /// Of a branch: the page.
    child: u64,
}

impl Element {
    fn bytes(&self) -> usize {
        ELEMENT_HEADER_BYTES + self.key.len() + self.value.len()
    }
}

impl Node {
    fn page_flags(&self) -> u16 {
        if self.is_branch { BRANCH_PAGE } else { LEAF_PAGE }
    }

    fn is_full_for(&self, element: &Element) -> bool {
        // A branch gives its last child to the next one, and both must be left with enough.
        let min = if self.is_branch { BRANCH_CHILDREN_MIN + 1 } else { 1 };
        self.elements.len() >= min && PAGE_HEADER_BYTES + self.bytes + element.bytes() > PAGE_BYTES
    }

    /// What the node to the right begins with.
    fn split_off_next(&mut self) -> Node {
        let mut next = Node { is_branch: self.is_branch, ..Node::default() };
        if self.is_branch {
            let last = self.elements.pop().expect("a full branch has children");
            self.bytes -= last.bytes();
            next.push(last);
        }
        next
    }

    fn push(&mut self, element: Element) {
        self.bytes += element.bytes();
        self.elements.push(element);
    }

    /// Headers of all elements, then their keys and values. Positions count from the element's own header.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes);
        let mut data = ELEMENT_HEADER_BYTES * self.elements.len();
        for element in &self.elements {
            let position = length(data - out.len());
            if self.is_branch {
                out.extend(position.to_le_bytes());
                out.extend(length(element.key.len()).to_le_bytes());
                out.extend(element.child.to_le_bytes());
            } else {
                for field in [element.flags, position, length(element.key.len()), length(element.value.len())] {
                    out.extend(field.to_le_bytes());
                }
            }
            data += element.key.len() + element.value.len();
        }
        for element in &self.elements {
            out.extend_from_slice(&element.key);
            out.extend_from_slice(&element.value);
        }
        out
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a key or value is shorter than a request")
}

/// A page with its overflow pages, filled up with zeros.
fn page(id: u64, flags: u16, count: usize, content: &[u8]) -> Vec<u8> {
    let pages = (PAGE_HEADER_BYTES + content.len()).div_ceil(PAGE_BYTES);
    let mut out = Vec::with_capacity(pages * PAGE_BYTES);
    out.extend(header(id, flags, count, pages - 1));
    out.extend_from_slice(content);
    out.resize(pages * PAGE_BYTES, 0);
    out
}

fn header(id: u64, flags: u16, count: usize, overflow: usize) -> [u8; PAGE_HEADER_BYTES] {
    let mut out = [0; PAGE_HEADER_BYTES];
    out[..8].copy_from_slice(&id.to_le_bytes());
    out[8..10].copy_from_slice(&flags.to_le_bytes());
    let count = u16::try_from(count).expect("a page has no room for so many elements");
    out[10..12].copy_from_slice(&count.to_le_bytes());
    out[12..].copy_from_slice(&length(overflow).to_le_bytes());
    out
}

/// Both meta pages name the same root; the newer transaction is the one that bbolt takes.
fn meta(root: u64, page_count: u64, transaction: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    for field in [MAGIC, VERSION, length(PAGE_BYTES), 0] {
        out.extend(field.to_le_bytes());
    }
    for field in [root, 0, FREE_LIST_PAGE, page_count, transaction] {
        out.extend(field.to_le_bytes());
    }
    out.extend(fnv1a(&out).to_le_bytes());
    out
}

#[cfg(test)]
mod tests;
