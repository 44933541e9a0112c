//! A TCP segment in an IPv4 packet, changed so that its checksum is right again: as by a broken router or network card,
//! which TCP does not notice.

const IPV4_HEADER_BYTES_MIN: usize = 20;
const TCP_HEADER_BYTES_MIN: usize = 20;
const PROTOCOL_TCP: u8 = 6;
const FLAGS: usize = 13;
const RST: u8 = 4;
const CHECKSUM: usize = 16;

/// Which ports a segment goes from and to.
pub type Ports = (u16, u16);

pub struct Segment<'a> {
    /// With its header.
    tcp: &'a mut [u8],
    payload: usize,
}

impl<'a> Segment<'a> {
    /// `None`: it is not one, or only a part of one.
    pub fn of(packet: &'a mut [u8]) -> Option<Segment<'a>> {
        let (first, fragment) = (*packet.first()?, packet.get(6..8)?);
        let is_whole = fragment[0] & 0x3f == 0 && fragment[1] == 0;
        let header = usize::from(first & 0xf) * 4;
        if first >> 4 != 4 || header < IPV4_HEADER_BYTES_MIN || packet[9] != PROTOCOL_TCP || !is_whole {
            return None;
        }
        let tcp = packet.get_mut(header..)?;
        let payload = usize::from(tcp.get(12)? >> 4) * 4;
        let fits = payload >= TCP_HEADER_BYTES_MIN && payload <= tcp.len();
        fits.then_some(Segment { tcp, payload })
    }

    pub fn ports(&self) -> Ports {
        let port = |at: usize| u16::from_be_bytes([self.tcp[at], self.tcp[at + 1]]);
        (port(0), port(2))
    }

    pub fn payload(&self) -> &[u8] {
        &self.tcp[self.payload..]
    }

    /// Makes a bit of the payload another.
    pub fn flip(&mut self, bit: usize) {
        let at = self.payload + bit / 8;
        self.set(at, self.tcp[at] ^ (1 << (bit % 8)));
    }

    /// Makes it tell its receiver that the connection is gone.
    pub fn reset(&mut self) {
        self.set(FLAGS, self.tcp[FLAGS] | RST);
    }

    /// RFC 1624, equation 3. A header is made of whole words, so the sum goes by words from its beginning.
    fn set(&mut self, at: usize, byte: u8) {
        let word = |tcp: &[u8]| {
            let second = tcp.get((at & !1) + 1).copied().unwrap_or_default();
            u32::from(u16::from_be_bytes([tcp[at & !1], second]))
        };
        let before = word(self.tcp);
        self.tcp[at] = byte;
        let after = word(self.tcp);
        let checksum = u16::from_be_bytes([self.tcp[CHECKSUM], self.tcp[CHECKSUM + 1]]);
        let mut sum = u32::from(!checksum) + u32::from(!(before as u16)) + after;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        self.tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What all words of a segment add up to with the pseudo header: all ones where the checksum is right.
    fn sum(packet: &[u8]) -> u32 {
        let tcp = &packet[20..];
        let pseudo = [&packet[12..20], &[0, PROTOCOL_TCP], &(tcp.len() as u16).to_be_bytes()].concat();
        let mut sum: u32 = 0;
        for part in [&pseudo[..], tcp] {
            for word in part.chunks(2) {
                sum += u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or_default()]));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = PROTOCOL_TCP;
        packet[12..20].copy_from_slice(&[10, 77, 0, 11, 10, 77, 0, 12]);
        packet[20..24].copy_from_slice(&[0x80, 0x01, 0x09, 0x4c]);
        packet[32] = 0x50;
        packet[33] = 0x18;
        packet.extend(payload);
        let checksum = !(sum(&packet) as u16);
        packet[36..38].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    #[test]
    fn a_changed_segment_has_the_right_checksum_and_one_other_bit() {
        for payload in [&b"a snapshot"[..], b"of odd size"] {
            let sound = packet(payload);
            assert_eq!(sum(&sound), 0xffff);
            for bit in 0..payload.len() * 8 {
                let mut changed = sound.clone();
                Segment::of(&mut changed).unwrap().flip(bit);
                assert_eq!(sum(&changed), 0xffff, "bit {bit}");
                let others = |at: &usize| changed[*at] != sound[*at] && !(36..38).contains(at);
                assert_eq!((0..sound.len()).filter(others).collect::<Vec<_>>(), [40 + bit / 8]);
            }
        }
    }

    #[test]
    fn a_reset_segment_has_the_flag_and_the_right_checksum() {
        let mut changed = packet(b"odd");
        Segment::of(&mut changed).unwrap().reset();
        assert_eq!((sum(&changed), changed[33]), (0xffff, 0x1c));
    }

    #[test]
    fn what_is_no_whole_segment_is_left_alone() {
        let mut sound = packet(b"x");
        assert_eq!(Segment::of(&mut sound).unwrap().ports(), (0x8001, 2380));
        for (at, byte) in [(0, 0x65), (9, 17), (6, 0x20), (7, 1), (32, 0xf0), (32, 0x40)] {
            let mut other = sound.clone();
            other[at] = byte;
            assert!(Segment::of(&mut other).is_none(), "byte {at}");
        }
        assert!(Segment::of(&mut sound[..30]).is_none());
        assert!(Segment::of(&mut []).is_none());
    }
}
