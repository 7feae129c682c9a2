//! Cables between hosts: veth pairs with deterministic addresses, quiet unless somebody sends.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use crate::{
    Error, Host, Result,
    addresses::Subnet,
    bpf::{PassProgram, XdpMode},
    ethtool,
    netlink::{self, LinkChange, VethEnd},
    packets::{self, Packet},
    wait::wait_for,
};

/// A cable between two hosts.
#[derive(Clone, Debug)]
pub struct Link {
    /// The end of the host that [`Host::join`] was called on: host number 1 of the subnet.
    pub left: End,
    /// The end of the other host: number 2.
    pub right: End,
}

/// One end of a cable: an interface of a host, and its addresses.
#[derive(Clone, Debug)]
pub struct End {
    /// The host.
    pub host: Host,
    /// The interface's name: `eth0`, `eth1`, … in the order of connection.
    pub interface: String,
    /// The kernel's index of it, in the host.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

/// How a cable is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// The largest IP packet, in bytes; 1500 by default.
    pub mtu: u32,
    /// How many receive and how many transmit queues each end has; 1 by default.
    pub queues: u32,
    /// Whether nothing is sent unless a test sends it (the default): neighbours are known and never asked for (ARP and
    /// neighbour discovery are off, and not answered either), no duplicate address detection, no router solicitations,
    /// no multicast listener reports, no link-local addresses. Else the ends behave like any machine's.
    pub quiet: bool,
    /// Whether checksums and the cutting into segments are left to the "card" (the default), which a virtual one never
    /// does: packets of sockets arrive with unfinished checksums and may be larger than the MTU. Without, they look
    /// as on a wire.
    pub offloads: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            queues: 1,
            quiet: true,
            offloads: true,
        }
    }
}

pub(crate) fn join(left: &Host, right: &Host, options: LinkOptions) -> Result<Link> {
    if left.is(right) {
        return Err(Error::Topology(format!(
            "host {} cannot be joined to itself",
            left.name()
        )));
    }
    let subnet = first_free_subnet(left, right);
    let left = Plug::new(left, subnet, 1, Side::Left);
    let right = Plug::new(right, subnet, 2, Side::Right);
    netlink::add_veth(left.host.namespace(), &left.veth_end(options), &right.veth_end(options))?;
    let link = Link {
        left: left.plugged_in(options)?,
        right: right.plugged_in(options)?,
    };
    for end in [&link.left, &link.right] {
        end.configure()?;
    }
    if options.quiet {
        link.left.know(&link.right)?;
        link.right.know(&link.left)?;
    }
    Ok(link)
}

/// A cable from a host to itself whose ends are down and have no addresses: interfaces for programs to be attached to.
pub(crate) fn unused(host: &Host) -> Result<[End; 2]> {
    let options = LinkOptions::default();
    let subnet = first_free_subnet(host, host);
    let left = Plug::new(host, subnet, 1, Side::Left);
    let right = Plug::new(host, subnet, 2, Side::Right);
    netlink::add_veth(host.namespace(), &left.veth_end(options), &right.veth_end(options))?;
    Ok([left, right].map(Plug::end))
}

fn first_free_subnet(left: &Host, right: &Host) -> Subnet {
    let taken: Vec<_> = [left, right]
        .iter()
        .flat_map(|host| host.wiring().subnets.clone())
        .collect();
    (0..=u16::MAX)
        .map(Subnet)
        .find(|subnet| !taken.contains(subnet))
        .unwrap_or(Subnet(u16::MAX))
}

/// One of the two sides of a cable.
///
/// Its ends never have the same index, each in its host: at such ones the kernel takes its time, up to a second, until
/// it says that they are up (`linkwatch_urgent_event` in `net/core/link_watch.c` takes them for a card of their own).
#[derive(Clone, Copy)]
pub(crate) enum Side {
    /// Has even indices.
    Left,
    /// Has odd indices.
    Right,
}

impl Side {
    /// The index of a host's interface of this number. Index 1 is `lo`'s.
    pub fn index(self, number: u32) -> u32 {
        2 * (number + 1) + u32::from(matches!(self, Self::Right))
    }
}

/// An interface that is about to be made.
pub(crate) struct Plug<'a> {
    pub host: &'a Host,
    interface: String,
    index: u32,
    subnet: Subnet,
    number: u8,
}

impl<'a> Plug<'a> {
    /// Reserves the next interface of `host`, as host `number` of `subnet`.
    pub fn new(host: &'a Host, subnet: Subnet, number: u8, side: Side) -> Self {
        let mut wiring = host.wiring();
        wiring.subnets.insert(subnet);
        let interface = wiring.next_interface();
        Self {
            host,
            interface: format!("eth{interface}"),
            index: side.index(interface),
            subnet,
            number,
        }
    }

    pub fn veth_end(&self, options: LinkOptions) -> VethEnd<'_> {
        VethEnd {
            name: &self.interface,
            index: self.index,
            mac: self.subnet.mac(self.number),
            namespace: self.host.namespace().as_raw_fd(),
            mtu: options.mtu,
            queues: options.queues,
        }
    }

    /// The interface, which has been made.
    fn end(self) -> End {
        End {
            host: self.host.clone(),
            index: self.index,
            mac: self.subnet.mac(self.number),
            ipv4: self.subnet.ipv4(self.number),
            ipv6: self.subnet.ipv6(self.number),
            interface: self.interface,
        }
    }

    /// The interface, which has been made; up, and without addresses yet.
    pub fn plugged_in(self, options: LinkOptions) -> Result<End> {
        let end = self.end();
        if !options.offloads {
            ethtool::switch_off(end.host.namespace(), &end.interface, &ethtool::OFFLOADS)?;
        }
        if options.quiet {
            end.hush()?;
        }
        end.set("setting an interface up", |link| link.arp(!options.quiet).up())?;
        Ok(end)
    }
}

impl End {
    /// A packet from here to `peer`, which is on the same cable or switch: the Ethernet header is filled in.
    pub fn frame_to(&self, peer: &End) -> Packet {
        packets::ethernet().from_mac(self.mac).to_mac(peer.mac)
    }

    /// Gives the interface a further address.
    ///
    /// Others on the link do not know it unless they are [told](End::knows).
    pub fn add_address(&self, address: impl Into<IpAddr>, prefix_length: u8) -> Result<()> {
        let address = address.into();
        netlink::add_address(self.host.namespace(), self.index, address, prefix_length)?;
        let mut wiring = self.host.wiring();
        wiring.settings_of(self.index).addresses.push((address, prefix_length));
        Ok(())
    }

    /// Tells this end, for good, that `address` is reachable at `mac`.
    pub fn knows(&self, address: impl Into<IpAddr>, mac: [u8; 6]) -> Result<()> {
        let address = address.into();
        netlink::add_neighbour(self.host.namespace(), self.index, address, mac)?;
        let mut wiring = self.host.wiring();
        wiring.settings_of(self.index).neighbours.push((address, mac));
        Ok(())
    }

    /// Sets the interface down.
    pub fn down(&self) -> Result<()> {
        self.set("setting an interface down", LinkChange::down)
    }

    /// Sets the interface up again, with what Linux forgets when one goes down: IPv6 addresses and neighbours. The other
    /// end has to be up.
    pub fn up(&self) -> Result<()> {
        self.set("setting an interface up", LinkChange::up)?;
        self.wait_for_the_other_end()?;
        let settings = self.host.wiring().settings_of(self.index).clone();
        for (address, prefix_length) in settings.addresses.into_iter().filter(|(address, _)| address.is_ipv6()) {
            netlink::add_address(self.host.namespace(), self.index, address, prefix_length)?;
        }
        for (address, mac) in settings.neighbours {
            netlink::add_neighbour(self.host.namespace(), self.index, address, mac)?;
        }
        self.wait_until_addresses_are_valid()
    }

    /// Deletes the interface, and with it the one at the other end of the cable.
    pub fn delete(&self) -> Result<()> {
        netlink::delete_link(self.host.namespace(), self.index)
    }

    /// Has the interface send by this queueing discipline, such as `fq`. Fails where the kernel has none of that name.
    pub fn queue_by(&self, discipline: &str) -> Result<()> {
        netlink::set_queueing_discipline(self.host.namespace(), self.index, discipline)
    }

    /// Whether the interface carries an XDP program.
    pub fn has_xdp(&self) -> Result<bool> {
        Ok(netlink::link_state(self.host.namespace(), self.index)?.xdp)
    }

    /// Attaches an XDP program that lets everything pass, natively, for as long as the host lives.
    ///
    /// A veth hands on what a program at the other end of the cable transmits (`XDP_TX`) or redirects to it only if it
    /// has a program itself (`drivers/net/veth.c`, `veth_xdp_xmit`).
    pub fn pass_xdp(&self) -> Result<()> {
        let link = PassProgram::load()?.attach(self, XdpMode::Native)?;
        self.host.wiring().xdp_links.push(link);
        Ok(())
    }

    /// Gives the interface its addresses, now that both ends are up.
    pub(crate) fn configure(&self) -> Result<()> {
        self.wait_for_the_other_end()?;
        self.add_address(self.ipv4, Subnet::IPV4_PREFIX_LENGTH)?;
        self.add_address(self.ipv6, Subnet::IPV6_PREFIX_LENGTH)?;
        self.wait_until_addresses_are_valid()
    }

    fn wait_for_the_other_end(&self) -> Result<()> {
        let interface = format!("{} of host {}", self.interface, self.host.name());
        netlink::wait_until_operational(self.host.namespace(), self.index, &interface)
    }

    /// The kernel makes IPv6 addresses valid in its own time, even if it does not look for duplicates first; until then
    /// nothing can be sent from them or to them.
    fn wait_until_addresses_are_valid(&self) -> Result<()> {
        let index = format!("{:02x}", self.index);
        wait_for(&format!("the addresses of {} to become valid", self.interface), || {
            let table = self
                .host
                .run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))
                .map_err(|error| Error::system("reading the table of IPv6 addresses", error))?;
            Ok(!table.lines().any(|line| is_tentative(line, &index)))
        })
    }

    pub(crate) fn know(&self, peer: &End) -> Result<()> {
        self.knows(peer.ipv4, peer.mac)?;
        self.knows(peer.ipv6, peer.mac)
    }

    /// Has to come before the interface is up.
    ///
    /// It will be up without neighbour resolution (`NOARP`), too: such an interface joins no multicast groups for the
    /// solicitations of its neighbours, and so sends no listener reports (net/ipv6/addrconf.c, `addrconf_join_solict`).
    fn hush(&self) -> Result<()> {
        let interface = &self.interface;
        for (parameter, value) in [
            ("accept_dad", "0"),
            ("router_solicitations", "0"),
            ("accept_ra", "0"),
            // IN6_ADDR_GEN_MODE_NONE: no link-local address, whose duplicate detection and group would be heard.
            ("addr_gen_mode", "1"),
        ] {
            self.host
                .set_parameter(&format!("ipv6/conf/{interface}/{parameter}"), value)?;
        }
        Ok(())
    }

    fn set(&self, what: &str, change: impl FnOnce(LinkChange) -> LinkChange + Send) -> Result<()> {
        netlink::set_link(self.host.namespace(), self.index, what, change)
    }
}

/// Whether a line of `/proc/net/if_inet6` (address, index, prefix length, scope, flags, name; all in hexadecimal) tells
/// of a tentative address on the interface of this index.
fn is_tentative(line: &str, index: &str) -> bool {
    const TENTATIVE: u32 = 0x40;
    let mut fields = line.split_ascii_whitespace().skip(1);
    let of_this_interface = fields.next() == Some(index);
    let flags = fields.nth(2).and_then(|flags| u32::from_str_radix(flags, 16).ok());
    of_this_interface && flags.is_some_and(|flags| flags & TENTATIVE != 0)
}

#[cfg(test)]
mod tests {
    use super::{Side, is_tentative};

    #[test]
    fn the_ends_of_a_cable_never_have_the_same_index() {
        for (left, right) in [(0, 0), (0, 1), (1, 0), (7, 7)] {
            assert_ne!(Side::Left.index(left), Side::Right.index(right));
        }
        assert_eq!((Side::Left.index(0), Side::Right.index(0)), (2, 3));
    }

    #[test]
    fn tentative_addresses_are_those_with_the_flag_on_the_same_interface() {
        let line = |flags| format!("20010db8000000010000000000000001 0a 40 00 {flags}     eth0");
        assert!(is_tentative(&line("c0"), "0a"));
        assert!(!is_tentative(&line("80"), "0a"));
        assert!(!is_tentative(&line("c0"), "0b"));
    }
}
