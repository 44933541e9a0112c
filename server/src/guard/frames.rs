//! The frame headers of one direction of an HTTP/2 connection, whatever pieces the bytes come in (RFC 9113, 4.1).

use proto::http2::frame::{GOAWAY, HEAD_BYTES};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

/// Where in a frame the bytes so far have ended.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEAD_BYTES],
    /// Bytes of the header that have come.
    come: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl Frames {
    /// Tells of each frame whose header is complete with these bytes.
    pub fn follow(&mut self, mut bytes: &[u8], mut frame: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let passed = self.payload.min(bytes.len());
                self.payload -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = (HEAD_BYTES - self.come).min(bytes.len());
            self.header[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
            self.come += taken;
            bytes = &bytes[taken..];
            if self.come == HEAD_BYTES {
                let [a, b, c, kind, flags, s, t, u, v] = self.header;
                self.come = 0;
                self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
                frame(Head { kind, flags, stream: u32::from_be_bytes([s & 0x7f, t, u, v]) });
            }
        }
    }

    /// Whether the bytes so far are whole frames.
    pub fn is_between(&self) -> bool {
        self.come == 0 && self.payload == 0
    }
}

/// A frame that ends the connection.
pub fn goaway(last_stream: u32, code: u32, debug: &str) -> Vec<u8> {
    let length = u32::try_from(8 + debug.len()).expect("a short text").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], GOAWAY, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(debug.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heads(pieces: &[&[u8]]) -> (Vec<Head>, bool) {
        let (mut frames, mut heads) = (Frames::default(), Vec::new());
        for piece in pieces {
            frames.follow(piece, |head| heads.push(head));
        }
        (heads, frames.is_between())
    }

    #[test]
    fn a_goaway_is_one_frame() {
        let frame = goaway(5, 11, "too_many_pings");
        let expected = Head { kind: GOAWAY, flags: 0, stream: 0 };
        assert_eq!(heads(&[&frame]), (vec![expected], true));
        assert_eq!(heads(&[&frame[..20]]), (vec![expected], false));
        assert_eq!(heads(&[&frame[..8]]), (vec![], false));
    }

    proptest! {
        #[test]
        fn any_bytes_are_the_same_frames_in_whatever_pieces(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..400),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            pieces.push(&bytes[from..]);
            prop_assert_eq!(heads(&pieces), heads(&[&bytes]));
        }
    }
}
