//! A switch: several hosts on one subnet.

use std::{io, os::fd::AsRawFd as _, sync::Mutex};

use crate::{
    End, Error, Host, LinkOptions, Result,
    addresses::Subnet,
    cgroup, ethtool,
    link::{Plug, Side},
    namespace::Namespace,
    netlink::{self, LinkChange, VethEnd},
};

/// A switch, to which hosts are connected: a bridge in a network namespace of its own.
///
/// Like a [`Host`], it vanishes with the process, and is quiet: the hosts know each other, and the switch knows behind
/// which port each of them is, so that no host sees what is meant for another.
#[derive(Debug)]
pub struct Switch {
    namespace: Namespace,
    bridge: u32,
    subnet: Subnet,
    ends: Mutex<Vec<End>>,
}

impl Switch {
    /// A switch for the subnet 192.0.2.0/24, `2001:db8:0:1::/64`.
    pub fn new() -> Result<Self> {
        Self::on_subnet(Subnet(0))
    }

    /// A switch for another subnet, for hosts that are already in the first.
    pub fn on_subnet(subnet: Subnet) -> Result<Self> {
        cgroup::sweep_once();
        let namespace = Namespace::new()?;
        // The switch itself does not take part in the traffic.
        netlink::set_parameter(&namespace, "ipv6/conf/all/disable_ipv6", "1")?;
        netlink::set_parameter(&namespace, "ipv6/conf/default/disable_ipv6", "1")?;
        keep_netfilter_out(&namespace)?;
        netlink::add_bridge(&namespace, "switch")?;
        let bridge = namespace
            .run(|| nix::net::if_::if_nametoindex("switch"))
            .map_err(|errno| Error::system("finding the bridge", errno))?;
        netlink::set_link(&namespace, bridge, "setting the bridge up", LinkChange::up)?;
        Ok(Self {
            namespace,
            bridge,
            subnet,
            ends: Mutex::default(),
        })
    }

    /// Connects a host: the first gets number 1 of the subnet, the second number 2, ….
    pub fn connect(&self, host: &Host) -> Result<End> {
        self.connect_with(host, LinkOptions::default())
    }

    /// As [`Switch::connect`], with other than the default options.
    pub fn connect_with(&self, host: &Host, options: LinkOptions) -> Result<End> {
        let mut ends = self.ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if host.wiring().subnets.contains(&self.subnet) {
            return Err(Error::Topology(format!(
                "host {} is in the switch's subnet {}/{} already: make the switch by Switch::on_subnet",
                host.name(),
                self.subnet.ipv4(0),
                Subnet::IPV4_PREFIX_LENGTH,
            )));
        }
        let number = u8::try_from(ends.len() + 1)
            .ok()
            .filter(|number| *number < u8::MAX)
            .ok_or_else(|| Error::Topology("a switch has 254 ports, and all are taken".into()))?;
        let plug = Plug::new(host, self.subnet, number, Side::Right);
        let port_name = format!("port{number}");
        let port = VethEnd {
            name: &port_name,
            index: Side::Left.index(number.into()),
            mac: [2, 0, 1, 0, 0, number],
            namespace: self.namespace.as_raw_fd(),
            mtu: options.mtu,
            queues: options.queues,
        };
        netlink::add_veth(&self.namespace, &port, &plug.veth_end(options))?;
        let port = port.index;
        ethtool::switch_off(&self.namespace, &port_name, &ethtool::VLAN_INSERTION)?;
        netlink::add_bridge_port(&self.namespace, self.bridge, port, self.subnet.mac(number))?;

        let end = plug.plugged_in(options)?;
        end.configure()?;
        netlink::wait_until_operational(&self.namespace, port, &format!("port {number} of a switch"))?;
        if options.quiet {
            for other in ends.iter() {
                other.know(&end)?;
                end.know(other)?;
            }
        }
        ends.push(end.clone());
        Ok(end)
    }
}

/// Where `br_netfilter` is loaded, a bridge drops IP packets that a router would drop; a switch does not look at them.
fn keep_netfilter_out(namespace: &Namespace) -> Result<()> {
    for protocol in ["iptables", "ip6tables", "arptables"] {
        match netlink::set_parameter(namespace, &format!("bridge/bridge-nf-call-{protocol}"), "0") {
            Err(Error::System { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
            set => set?,
        }
    }
    Ok(())
}
