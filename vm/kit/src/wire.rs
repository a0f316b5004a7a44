// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client's and a server's namespace, joined by a veth pair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use crate::capture::Capture;
use crate::endpoint::Family;
use crate::link::{End, Links, Mac, Netem};
use crate::netns::Netns;
use crate::wait;

/// The name both ends of the cable have in their namespaces.
pub const INTERFACE: &str = "wire0";

const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: Mac = [2, 0, 0, 0, 0, 2];
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Two namespaces joined by a cable, with IPv4 and IPv6 addresses.
///
/// The neighbours know each other from the start, so that no ARP and no neighbour discovery is in
/// the measurements.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Where the clients are.
    pub client: Netns,
    /// Where the server is.
    pub server: Netns,
    delay: Duration,
}

impl Wire {
    /// Lays a cable with no delay of its own.
    pub fn new() -> Result<Self> {
        Self::with_rtt(Duration::ZERO)
    }

    /// Lays a cable that a segment and its answer need `rtt` to cross, half of it each way.
    pub fn with_rtt(rtt: Duration) -> Result<Self> {
        let wire = Self {
            client: Netns::without_loopback()?,
            server: Netns::without_loopback()?,
            delay: rtt / 2,
        };
        let links = [wire.client.links()?, wire.server.links()?];
        let [near, far] = [CLIENT_MAC, SERVER_MAC].map(|mac| End {
            name: INTERFACE,
            mac,
        });
        let [client, server] = &links;
        client.add_veth(&near, &far, wire.server.as_fd())?;
        let client_ips: [IpAddr; 2] = [CLIENT_V4.into(), CLIENT_V6.into()];
        let server_ips: [IpAddr; 2] = [SERVER_V4.into(), SERVER_V6.into()];
        for (ns, links, own, peer, peer_mac) in [
            (&wire.client, client, client_ips, server_ips, SERVER_MAC),
            (&wire.server, server, server_ips, client_ips, CLIENT_MAC),
        ] {
            let index = ns.interface_index(INTERFACE)?;
            links.loopback_up()?;
            for ip in own {
                links.add_address(index, ip)?;
            }
            links.up(index)?;
            for ip in peer {
                links.add_neighbour(index, ip, peer_mac)?;
            }
            if !rtt.is_zero() {
                links.set_netem(index, wire.calm())?;
            }
        }
        wire.wait_until_it_carries()?;
        Ok(wire)
    }

    /// Waits until a datagram has crossed the cable each way.
    ///
    /// The kernel lets an interface send only some time after its other end came up, and drops what
    /// comes before: a first SYN lost would be sent again after a second, and spoil what is
    /// measured.
    fn wait_until_it_carries(&self) -> Result<()> {
        let socket = |ns: &Netns| {
            ns.run(|| {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("UDP socket")?;
                socket.set_nonblocking(true)?;
                let port = socket.local_addr()?.port();
                Ok((socket, port))
            })
        };
        let (client, client_port) = socket(&self.client)?;
        let (server, server_port) = socket(&self.server)?;
        let addresses = [
            (CLIENT_V4.to_ipv6_mapped(), SERVER_V4.to_ipv6_mapped()),
            (CLIENT_V6, SERVER_V6),
        ];
        for (client_ip, server_ip) in addresses {
            for (from, to, address) in [
                (&client, &server, (server_ip, server_port)),
                (&server, &client, (client_ip, client_port)),
            ] {
                let mut last = Ok(0);
                let crossed = wait::until(Duration::from_secs(20), || {
                    last = from.send_to(b"?", address);
                    wait::readable(to, Duration::from_millis(20))
                })?;
                ensure!(
                    crossed,
                    "nothing crosses the cable to {}: {last:?}",
                    address.0
                );
                while to.recv(&mut [0; 8]).is_ok() {}
            }
        }
        Ok(())
    }

    /// Returns what netem does at each end of the cable by itself.
    fn calm(&self) -> Netem {
        Netem {
            delay: self.delay,
            loss: 0,
            duplicate: 0,
            reorder: 0,
        }
    }

    /// Has the cable, both ways, lose `percent` of a hundred packets, carry as many twice, and
    /// delay all but as many for a moment, so that those overtake others.
    pub fn disturb(&self, percent: u8) -> Result<()> {
        const MOMENT: Duration = Duration::from_millis(5);
        for ns in [&self.client, &self.server] {
            let netem = Netem {
                delay: self.delay + MOMENT,
                loss: percent,
                duplicate: percent,
                reorder: percent,
            };
            ns.links()?
                .set_netem(ns.interface_index(INTERFACE)?, netem)?;
        }
        Ok(())
    }

    /// Has the cable lose all that the server sends from now on, until [`Loss::end`].
    ///
    /// A capture does not see what is lost, nor does the server's TCP notice.
    pub fn lose_from_server(&self) -> Result<Loss<'_>> {
        let links = self.server.links()?;
        let index = self.server.interface_index(INTERFACE)?;
        let netem = Netem {
            loss: 100,
            ..self.calm()
        };
        links.set_netem(index, netem)?;
        let before = links.lost(index)?;
        Ok(Loss {
            wire: self,
            links,
            index,
            before,
        })
    }

    /// Returns the server's address for clients of a family.
    pub fn server_ip(&self, family: Family) -> IpAddr {
        family.pick(SERVER_V4, SERVER_V6)
    }

    /// Returns the server's address and port for clients of a family.
    pub fn server_address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.server_ip(family), port)
    }

    /// Gives both ends a link-local address each, and returns the client's and the server's.
    pub fn add_link_local(&self) -> Result<(Ipv6Addr, Ipv6Addr)> {
        let client = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
        let server = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xb);
        for (ns, own, peer, peer_mac) in [
            (&self.client, client, server, SERVER_MAC),
            (&self.server, server, client, CLIENT_MAC),
        ] {
            let links = ns.links()?;
            let index = ns.interface_index(INTERFACE)?;
            links.add_address(index, own.into())?;
            links.add_neighbour(index, peer.into(), peer_mac)?;
        }
        Ok((client, server))
    }

    /// Returns the clients' address of a family.
    pub fn client_ip(&self, family: Family) -> IpAddr {
        family.pick(CLIENT_V4, CLIENT_V6)
    }

    /// Starts to watch the server's end of the cable.
    pub fn watch_server(&self) -> Result<Capture> {
        Capture::start(&self.server, INTERFACE)
    }
}

/// A time in which a cable loses all that the server sends.
#[must_use = "the cable loses everything until this is ended"]
pub struct Loss<'a> {
    wire: &'a Wire,
    links: Links,
    index: u32,
    before: u32,
}

impl Loss<'_> {
    /// Has the cable carry again, and says how many packets it has lost.
    pub fn end(self) -> Result<u32> {
        self.links.set_netem(self.index, self.wire.calm())?;
        Ok(self.links.lost(self.index)?.wrapping_sub(self.before))
    }
}
