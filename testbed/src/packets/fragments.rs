//! Real fragments: those of one datagram, which can be put together again.

use etherparse::{EtherType, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, ether_type, ip_number};

use super::layer::behind_ethernet;

/// Cuts the datagram in `frame` into fragments of at most `mtu` bytes each, as a router (IPv4) or the sender (IPv6)
/// would. IPv6 extension headers go into the fragments' payload. A datagram that fits comes back as it is.
pub fn split(frame: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let datagram = behind_ethernet(frame);
    if datagram.len() <= mtu {
        return vec![frame.to_vec()];
    }
    let ethernet = &frame[..frame.len() - datagram.len()];
    let ether_type = EtherType(u16::from_be_bytes([
        ethernet[ethernet.len() - 2],
        ethernet[ethernet.len() - 1],
    ]));
    let fragment: Box<Fragmenter>;
    let (content, room) = match ether_type {
        ether_type::IPV4 => {
            let (header, content) =
                Ipv4Header::from_slice(datagram).unwrap_or_else(|error| panic!("no IPv4 header to split: {error}"));
            let room = mtu - header.header_len();
            fragment = Box::new(move |piece| ipv4_fragment(header.clone(), piece, id));
            (content, room)
        }
        ether_type::IPV6 => {
            let (header, content) =
                Ipv6Header::from_slice(datagram).unwrap_or_else(|error| panic!("no IPv6 header to split: {error}"));
            fragment = Box::new(move |piece| ipv6_fragment(header.clone(), piece, id));
            (content, mtu - Ipv6Header::LEN - Ipv6FragmentHeader::LEN)
        }
        other => panic!("only IP datagrams are split, not {other:?}"),
    };
    let piece_length = room / 8 * 8;
    assert!(piece_length > 0, "an MTU of {mtu} has no room for a fragment");
    let count = content.len().div_ceil(piece_length);
    let pieces = content.chunks(piece_length).enumerate();
    pieces
        .map(|(number, bytes)| {
            let piece = Piece {
                bytes,
                offset_bytes: number * piece_length,
                is_last: number + 1 == count,
            };
            [ethernet, &fragment(&piece)].concat()
        })
        .collect()
}

type Fragmenter = dyn Fn(&Piece) -> Vec<u8>;

struct Piece<'a> {
    bytes: &'a [u8],
    offset_bytes: usize,
    is_last: bool,
}

impl Piece<'_> {
    fn offset(&self) -> etherparse::IpFragOffset {
        etherparse::IpFragOffset::try_new((self.offset_bytes / 8) as u16)
            .unwrap_or_else(|error| panic!("no fragment offset: {error}"))
    }
}

fn ipv4_fragment(mut header: Ipv4Header, piece: &Piece, id: u32) -> Vec<u8> {
    header.identification = id as u16;
    header.dont_fragment = false;
    header.more_fragments = !piece.is_last;
    header.fragment_offset = piece.offset();
    header
        .set_payload_len(piece.bytes.len())
        .unwrap_or_else(|error| panic!("a fragment is too long: {error}"));
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes(), piece.bytes].concat()
}

fn ipv6_fragment(mut header: Ipv6Header, piece: &Piece, id: u32) -> Vec<u8> {
    let fragment = Ipv6FragmentHeader::new(header.next_header, piece.offset(), !piece.is_last, id);
    header.next_header = ip_number::IPV6_FRAG;
    header
        .set_payload_length(Ipv6FragmentHeader::LEN + piece.bytes.len())
        .unwrap_or_else(|error| panic!("a fragment is too long: {error}"));
    [&header.to_bytes()[..], &fragment.to_bytes()[..], piece.bytes].concat()
}
