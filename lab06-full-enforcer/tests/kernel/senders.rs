//! What TC egress can learn of who sends a packet, and that it agrees with what `cgroup_skb` egress has decided about: the
//! two of them miss nothing and decide about nothing twice (A2).

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    ptr, thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, include_bytes_aligned,
    maps::{Array, MapData, RingBuf},
    programs::{CgroupSkb, SchedClassifier},
};
use lab01_count_packets::{interface::Interface, load};
use lab03_tc_egress::attach::{Direction, TcAttach, TcHooks};
use lab04_cgroup_policy::{
    attach::{CgroupLink, Hook},
    cgroup::Hierarchy,
};
use lab06_full_enforcer_common::sender::{Sender, Sighting};
use testbed::{Cgroup, End, Host, LinkOptions, harness::falls_back, patience};

testbed::listed_tests![
    tc_egress_and_the_root_cgroup_decide_about_each_packet_once,
    packets_that_bypass_the_queueing_discipline_are_seen_by_no_hook,
];

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab06-senders"));

const PATIENCE: Duration = Duration::from_secs(20);

/// `overflowuid`: what `bpf_get_socket_uid` says where there is no socket.
const NOBODY: u32 = 65_534;

/// A router with a neighbour on each side, its programs attached to the right interface and to the root of cgroup v2.
struct Watch {
    left: End,
    /// The router's interfaces.
    near: End,
    far: End,
    right: End,
    sightings: RingBuf<MapData>,
    lost: Array<MapData, u64>,
    seen: Vec<Sighting>,
    // Dropped in this order, inside the router.
    _tc: TcHooks,
    _cgroup: CgroupLink,
    _ebpf: Ebpf,
    _inside: testbed::Inside,
}

impl Watch {
    /// Moves the thread into the router, where it stays as long as this.
    fn new() -> Self {
        let hosts = ["left", "router", "right"].map(|name| Host::new(name).unwrap());
        let [left, router, right] = &hosts;
        let near = left.join(router).unwrap();
        let chatty = LinkOptions {
            quiet: false,
            ..LinkOptions::default()
        };
        let far = router.join_with(right, chatty).unwrap();
        router.set_parameter("ipv4/ip_forward", "1").unwrap();
        let inside = router.enter().unwrap();

        let mut ebpf = load::load_object(OBJECT, &[]).unwrap();
        let program: &mut CgroupSkb = load::program(&mut ebpf, "note_at_cgroup", "cgroup_skb").unwrap();
        program
            .load()
            .map_err(|error| load::explain_program("note_at_cgroup", error))
            .unwrap();
        let mut source: Array<_, [u8; 4]> = Array::try_from(ebpf.map_mut("SOURCE").unwrap()).unwrap();
        source.set(0, far.left.ipv4.octets(), 0).unwrap();
        let root = Hierarchy::find().unwrap().open("/".as_ref()).unwrap();
        let program = ebpf.program("note_at_cgroup").unwrap();
        let cgroup = CgroupLink::attach(program.fd().unwrap().as_fd(), &root, Hook::Egress).unwrap();
        let program: &mut SchedClassifier = load::program(&mut ebpf, "note_at_tc", "TC").unwrap();
        program
            .load()
            .map_err(|error| load::explain_program("note_at_tc", error))
            .unwrap();
        let interface = Interface::find(&far.left.interface).unwrap();
        let mut tc = TcHooks::open(&interface, TcAttach::Auto).unwrap();
        tc.attach(program, Direction::Egress).unwrap();
        Self {
            left: near.left,
            near: near.right,
            far: far.left,
            right: far.right,
            sightings: RingBuf::try_from(ebpf.take_map("SIGHTINGS").unwrap()).unwrap(),
            lost: Array::try_from(ebpf.take_map("LOST").unwrap()).unwrap(),
            seen: Vec::new(),
            _tc: tc,
            _cgroup: cgroup,
            _ebpf: ebpf,
            _inside: inside,
        }
    }

    /// What was seen at TC egress so far and is wanted.
    fn at_tc(&mut self, is_wanted: impl Fn(&Sighting) -> bool) -> Vec<Sighting> {
        while let Some(item) = self.sightings.next() {
            assert_eq!(item.len(), size_of::<Sighting>());
            // SAFETY: it is as long as the structure, of which all values are valid; it may lie anywhere.
            self.seen.push(unsafe { ptr::read_unaligned(item.as_ptr().cast()) });
        }
        assert_eq!(self.lost.get(&0, 0).unwrap(), 0, "sightings were lost");
        let at_tc = self.seen.iter().filter(|sighting| sighting.hook == 1);
        at_tc.filter(|sighting| is_wanted(sighting)).copied().collect()
    }

    fn was_at_cgroup(&self, packet: &Sighting) -> bool {
        self.seen
            .iter()
            .any(|sighting| sighting.hook == 0 && is_same(sighting, packet))
    }

    /// Waits for a kind of packet, and compares what is known of each of them with what is expected; the last one.
    #[track_caller]
    fn expect(&mut self, kind: &Kind, is_wanted: impl Fn(&Sighting) -> bool) -> Sighting {
        let end = Instant::now() + patience(PATIENCE);
        let packets = loop {
            let packets = self.at_tc(&is_wanted);
            if packets.len() >= kind.packets {
                break packets;
            }
            assert!(Instant::now() < end, "{}: {} came", kind.name, packets.len());
            thread::sleep(Duration::from_millis(5));
        };
        for packet in &packets {
            let sender = Sender::ALL[packet.sender as usize];
            let at_cgroup = self.was_at_cgroup(packet);
            assert!(kind.senders.contains(&sender), "{}: {sender:?} {packet:?}", kind.name);
            // What it all is about.
            assert_eq!(
                sender.is_decided_in_cgroup() && is_ip(packet),
                at_cgroup,
                "{}: {sender:?} {packet:?}",
                kind.name
            );
            // Only what is forwarded has come in by an interface.
            let came_in_by = if kind.is_forwarded { self.near.index } else { 0 };
            assert_eq!(packet.came_in_by, came_in_by, "{}: {packet:?}", kind.name);
            assert_eq!(packet.interface, self.far.index);
            assert_eq!(
                packet.cookie != 0,
                sender != Sender::Nobody,
                "{}: {packet:?}",
                kind.name
            );
            if sender == Sender::Nobody {
                assert_eq!((packet.cgroup, packet.uid), (0, NOBODY), "{}: {packet:?}", kind.name);
            }
        }
        let packet = packets[packets.len() - 1];
        println!(
            "{:<32} {:<9} cgroup_skb {:<5} family {:<2} state {:<2} cookie {:<3} cgroup {:<10} uid {:<5} came in by {} \
             mark {} type {}",
            kind.name,
            format!("{:?}", Sender::ALL[packet.sender as usize]),
            self.was_at_cgroup(&packet),
            packet.family,
            packet.state,
            if packet.cookie == 0 { "no" } else { "yes" },
            name_of_cgroup(packet.cgroup),
            packet.uid,
            packet.came_in_by,
            packet.mark,
            packet.packet_type,
        );
        packet
    }
}

/// A kind of packet, and what is expected of all of it.
struct Kind {
    name: &'static str,
    senders: &'static [Sender],
    packets: usize,
    is_forwarded: bool,
}

const fn kind(name: &'static str, senders: &'static [Sender]) -> Kind {
    Kind {
        name,
        senders,
        packets: 1,
        is_forwarded: false,
    }
}

fn tc_egress_and_the_root_cgroup_decide_about_each_packet_once() {
    let mut watch = Watch::new();
    what_processes_send(&mut watch);
    what_tcp_sends(&mut watch);
    what_the_kernel_sends(&mut watch);
    what_is_sent_past_ip(&mut watch);
    drop(watch);
}

fn what_processes_send(watch: &mut Watch) {
    let (v4, v6) = (watch.right.ipv4, watch.right.ipv6);
    let cgroup = Cgroup::new("senders").unwrap();
    let socket = cgroup.udp_socket(&watch.far.host).unwrap();
    set_option(&socket, libc::SOL_SOCKET, libc::SO_MARK, 7);
    socket.send_to(b"hello", (v4, 5001)).unwrap();
    let packet = watch.expect(&kind("UDP", &[Sender::Inet]), udp_to(5001));
    assert_eq!((packet.cgroup, packet.mark, packet.uid), (cgroup.id().unwrap(), 7, 0));

    let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.send_to(b"hello", (v6, 5002)).unwrap();
    let packet = watch.expect(&kind("UDP over IPv6", &[Sender::Inet]), udp_to(5002));
    assert_eq!(packet.family, 10);
    socket.send_to(b"hello", (v4.to_ipv6_mapped(), 5003)).unwrap();
    let packet = watch.expect(&kind("UDP, IPv4 by an IPv6 socket", &[Sender::Inet]), udp_to(5003));
    assert_eq!((packet.family, packet.head[0] >> 4), (10, 4));

    // Decided about whole, and then cut: TC egress sees the pieces.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.send_to(&[0; 4000], (v4, 5004)).unwrap();
    let fragments = Kind {
        packets: 3,
        ..kind("UDP, fragments", &[Sender::Inet])
    };
    watch.expect(&fragments, |packet| {
        is_ipv4(packet, 17) && u16_at(packet, 6) & 0x3fff != 0
    });

    let mut echo = testbed::packets::ethernet()
        .ipv4(watch.far.ipv4, v4)
        .icmp_echo_request(0x5005, 1)
        .build();
    raw(libc::IPPROTO_ICMP, v4, &echo[34..]).unwrap();
    watch.expect(&kind("ICMP by a raw socket", &[Sender::Inet]), |packet| {
        is_ipv4(packet, 1) && u16_at(packet, 24) == 0x5005
    });
    // With a header of the sender's own.
    echo[34 + 4..34 + 6].copy_from_slice(&0x5006_u16.to_be_bytes());
    raw(libc::IPPROTO_RAW, v4, &echo[14..]).unwrap();
    watch.expect(&kind("a raw socket's own IP header", &[Sender::Inet]), |packet| {
        is_ipv4(packet, 1) && u16_at(packet, 24) == 0x5006
    });
}

fn what_tcp_sends(watch: &mut Watch) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 6001)).unwrap();
    let address: SocketAddr = (watch.far.ipv4, 6001).into();
    let mut theirs = watch.right.host.run(|| TcpStream::connect(address)).unwrap();
    let (mut ours, peer) = listener.accept().unwrap();
    let segment = |flags: u8, port: u16| {
        move |packet: &Sighting| {
            is_ipv4(packet, 6) && u16_at(packet, 20) == 6001 && u16_at(packet, 22) == port && packet.head[33] == flags
        }
    };
    let (syn_ack, fin_ack, ack) = (0x12, 0x11, 0x10);
    let port = peer.port();
    let packet = watch.expect(
        &kind("TCP SYN-ACK of a listener", &[Sender::Request]),
        segment(syn_ack, port),
    );
    assert_eq!(packet.state, 12);

    ours.write_all(b"hello").unwrap();
    theirs.read_exact(&mut [0; 5]).unwrap();
    watch.expect(&kind("TCP data", &[Sender::Inet]), segment(0x18, port));

    // Nobody holds the socket any more when the rest is sent; it still is the same.
    drop(ours);
    watch.expect(&kind("TCP FIN after close", &[Sender::Inet]), segment(fin_ack, port));
    drop(theirs);
    // Its last acknowledgement is sent by what becomes the rest of the connection; wait until it is that.
    let end = Instant::now() + patience(PATIENCE);
    while !tcp_states(6001).contains(&6) {
        assert!(Instant::now() < end, "{:?}", tcp_states(6001));
        thread::sleep(Duration::from_millis(5));
    }
    let before = watch.at_tc(segment(ack, port)).len();
    let stray = watch.right.frame_to(&watch.far).ipv4(watch.right.ipv4, watch.far.ipv4);
    let stray = stray.tcp(port, 6001).ack().sequence(1).acknowledgment(1).build();
    watch.right.host.inject(&watch.right.interface, &stray).unwrap();
    let of_the_rest = Kind {
        packets: before + 1,
        // The socket of the whole kernel for such answers, until Linux 6.13 gave them the connection's.
        ..kind("TCP ACK in TIME_WAIT", &[Sender::Inet, Sender::TimeWait])
    };
    let packet = watch.expect(&of_the_rest, segment(ack, port));
    // The rest of a connection has neither cgroup nor owner; the kernel's socket has a cgroup.
    let is_of_the_rest = packet.sender == Sender::TimeWait as u32;
    assert_eq!(
        (packet.cgroup == 0, packet.uid == NOBODY),
        (is_of_the_rest, is_of_the_rest)
    );
    if !is_of_the_rest {
        falls_back("cgroup_skb: an answer in TIME_WAIT is of the kernel's own socket before Linux 6.13");
    }

    let _ = TcpStream::connect_timeout(&(watch.right.ipv4, 6999).into(), Duration::from_secs(5));
    watch.expect(&kind("TCP SYN", &[Sender::Inet]), |packet| {
        is_ipv4(packet, 6) && u16_at(packet, 22) == 6999 && packet.head[33] == 0x02
    });

    let address: SocketAddr = (watch.far.ipv4, 6998).into();
    let refused = watch.right.host.run(|| TcpStream::connect(address)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    watch.expect(&kind("TCP RST of a closed port", &[Sender::Inet]), |packet| {
        is_ipv4(packet, 6) && u16_at(packet, 20) == 6998 && packet.head[33] & 0x04 != 0
    });
}

fn what_the_kernel_sends(watch: &mut Watch) {
    let to_router = || watch.right.frame_to(&watch.far).ipv4(watch.right.ipv4, watch.far.ipv4);
    let frames = [
        to_router().icmp_echo_request(0x7001, 1).build(),
        to_router().udp(7002, 7002).payload(b"hello").build(),
    ];
    for frame in frames {
        watch.right.host.inject(&watch.right.interface, &frame).unwrap();
    }
    watch.expect(&kind("ICMP echo reply", &[Sender::Inet]), |packet| {
        is_ipv4(packet, 1) && packet.head[20] == 0 && u16_at(packet, 24) == 0x7001
    });
    // What it quotes begins at 28.
    watch.expect(&kind("ICMP port unreachable", &[Sender::Inet]), |packet| {
        is_ipv4(packet, 1) && packet.head[20] == 3 && u16_at(packet, 28 + 22) == 7002
    });

    watch.expect(&kind("ARP", &[Sender::Nobody]), |packet| {
        packet.ethertype_be == u32::from(0x0806_u16.to_be())
    });
    watch.expect(&kind("neighbour solicitation", &[Sender::Inet]), |packet| {
        is_icmpv6(packet, 135)
    });

    let group = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    group
        .join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &watch.far.ipv4)
        .unwrap();
    watch.expect(&kind("IGMP report", &[Sender::Nobody]), |packet| is_ipv4(packet, 2));
    let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    let group = UdpSocket::bind((any, 0)).unwrap();
    let address = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x7003);
    group.join_multicast_v6(&address, watch.far.index).unwrap();
    // Behind a hop-by-hop header.
    watch.expect(&kind("MLD report", &[Sender::Inet]), |packet| {
        packet.head[0] >> 4 == 6 && packet.head[6] == 0 && packet.head[48] == 143
    });
}

fn what_is_sent_past_ip(watch: &mut Watch) {
    let frame = watch.far.frame_to(&watch.right).ipv4(watch.far.ipv4, watch.right.ipv4);
    let frame = frame.udp(8000, 8001).payload(b"hello").build();
    watch.far.host.inject(&watch.far.interface, &frame).unwrap();
    let packet = watch.expect(&kind("AF_PACKET", &[Sender::Other]), udp_to(8001));
    assert_eq!((packet.family, packet.uid), (libc::AF_PACKET as u32, 0));

    let frame = watch.left.frame_to(&watch.near).ipv4(watch.left.ipv4, watch.right.ipv4);
    let frame = frame.udp(8000, 8002).payload(b"hello").build();
    watch.left.host.inject(&watch.left.interface, &frame).unwrap();
    let forwarded = Kind {
        is_forwarded: true,
        ..kind("forwarded", &[Sender::Nobody])
    };
    watch.expect(&forwarded, udp_to(8002));
}

fn packets_that_bypass_the_queueing_discipline_are_seen_by_no_hook() {
    let mut watch = Watch::new();
    let mut capture = watch.right.host.capture(&watch.right.interface).unwrap();
    let injector = watch.far.host.injector(&watch.far.interface).unwrap();
    let frame = |port| {
        let frame = watch.far.frame_to(&watch.right).ipv4(watch.far.ipv4, watch.right.ipv4);
        frame.udp(8000, port).payload(b"hello").build()
    };
    let (first, second) = (frame(8003), frame(8004));
    injector.send(&first).unwrap();
    let bypassing = injector.bypass_traffic_control().unwrap();
    bypassing.send(&second).unwrap();
    for frame in [first, second] {
        while capture.next(patience(PATIENCE)).unwrap().expect("it arrives") != frame {}
    }
    assert_eq!(watch.at_tc(udp_to(8003)).len(), 1);
    let unseen = watch.at_tc(udp_to(8004));
    assert!(unseen.is_empty() && !watch.seen.iter().any(udp_to(8004)), "{unseen:?}");
}

/// Whether two sightings are of the same packet, or of a fragment and the whole.
fn is_same(one: &Sighting, other: &Sighting) -> bool {
    let (one_head, other_head) = (&one.head, &other.head);
    if one_head[0] >> 4 != 4 {
        return one.head_len == other.head_len && one_head == other_head;
    }
    let is_fragment = u16_at(other, 6) & 0x3fff != 0;
    let addresses = 12..20;
    let is_of_same = one_head[4..6] == other_head[4..6]
        && one_head[9] == other_head[9]
        && one_head[addresses.clone()] == other_head[addresses];
    is_of_same && (is_fragment || one_head[20..60] == other_head[20..60])
}

fn is_ip(packet: &Sighting) -> bool {
    [0x0800_u16, 0x86dd]
        .map(|ethertype| u32::from(ethertype.to_be()))
        .contains(&packet.ethertype_be)
}

fn is_ipv4(packet: &Sighting, protocol: u8) -> bool {
    packet.ethertype_be == u32::from(0x0800_u16.to_be()) && packet.head[9] == protocol
}

fn is_icmpv6(packet: &Sighting, kind: u8) -> bool {
    packet.head[0] >> 4 == 6 && packet.head[6] == 58 && packet.head[40] == kind
}

fn udp_to(port: u16) -> impl Fn(&Sighting) -> bool {
    move |packet| {
        let start = if packet.head[0] >> 4 == 6 { 40 } else { 20 };
        (is_ipv4(packet, 17) || packet.head[0] >> 4 == 6 && packet.head[6] == 17) && u16_at(packet, start + 2) == port
    }
}

fn u16_at(packet: &Sighting, offset: usize) -> u16 {
    u16::from_be_bytes([packet.head[offset], packet.head[offset + 1]])
}

/// Of whom a cgroup is.
fn name_of_cgroup(id: u64) -> &'static str {
    let hierarchy = Hierarchy::find().unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let inode = |path| fs::metadata(path).unwrap().ino();
    match id {
        0 => "none",
        id if id == inode(hierarchy.root().to_owned()) => "the root",
        id if id == inode(hierarchy.root().join(own)) => "the test's",
        _ => "another",
    }
}

/// The states of the sockets of this port, as `/proc/net/tcp` has them.
fn tcp_states(port: u16) -> Vec<u8> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let fields = table
        .lines()
        .skip(1)
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| fields[1].ends_with(&format!(":{port:04X}")))
        .map(|fields| u8::from_str_radix(fields[3], 16).unwrap())
        .collect()
}

/// Sends by a raw socket of IPv4.
pub fn raw(protocol: i32, target: Ipv4Addr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(target.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: bytes and address live until the call returns, with these lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    if sent == bytes.len().cast_signed() {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) {
    // SAFETY: the value lives until the call returns, with this length.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
