//! Huffman-coded strings of header fields (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length are consecutive, in the order of their symbols, and shorter ones come
//! first. The lengths alone therefore give the codes.

use std::sync::LazyLock;

/// Bits of each byte's code (appendix B).
#[rustfmt::skip]
const BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const BITS_MAX: usize = 30;

/// The codes of one length: the first of them, and where their symbols begin in [`Codes::symbols`].
#[derive(Clone, Copy, Default)]
struct Length {
    first_code: u32,
    first_symbol: usize,
    count: u32,
}

struct Codes {
    lengths: [Length; BITS_MAX + 1],
    symbols: Vec<u8>,
}

static CODES: LazyLock<Codes> = LazyLock::new(|| {
    let mut codes = Codes { lengths: [Length::default(); BITS_MAX + 1], symbols: Vec::with_capacity(256) };
    let mut code = 0;
    for bits in 1..=BITS_MAX {
        code <<= 1;
        let first_symbol = codes.symbols.len();
        codes.symbols.extend((0..=255_u8).filter(|byte| usize::from(BITS[usize::from(*byte)]) == bits));
        let count = (codes.symbols.len() - first_symbol) as u32;
        codes.lengths[bits] = Length { first_code: code, first_symbol, count };
        code += count;
    }
    codes
});

/// `None`: the bits are no code, or are padded with something else than fewer than eight ones.
pub fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let codes = &*CODES;
    let mut text = Vec::with_capacity(coded.len() * 2);
    let (mut code, mut bits) = (0_u32, 0);
    for bit in coded.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        (code, bits) = (code << 1 | u32::from(bit), bits + 1);
        let length = codes.lengths.get(bits)?;
        // Codes of this length are below those that longer codes begin with.
        if code < length.first_code + length.count {
            text.push(codes.symbols[length.first_symbol + (code - length.first_code) as usize]);
            (code, bits) = (0, 0);
        }
    }
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_the_rfc_are_decoded() {
        let decode = |coded: &[u8]| String::from_utf8(super::decode(coded).unwrap()).unwrap();
        // Appendix C.4.
        assert_eq!(
            decode(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
            "www.example.com"
        );
        assert_eq!(decode(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]), "no-cache");
        assert_eq!(decode(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf]), "custom-value");
        assert_eq!(decode(&[]), "");
    }

    #[test]
    fn padding_other_than_a_few_ones_is_refused() {
        // "0" is 00000; the rest of the byte is padding.
        assert_eq!(decode(&[0b0000_0111]), Some(b"0".to_vec()));
        assert_eq!(decode(&[0b0000_0110]), None);
        assert_eq!(decode(&[0b0000_0111, 0xff]), None);
        assert_eq!(decode(&[0xff; 5]), None);
    }
}
