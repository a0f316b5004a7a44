// SPDX-License-Identifier: MIT OR Apache-2.0
//! The path between client and server, and its round-trip time without TCP.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use accf_kit::endpoint::Family;
use accf_kit::netns::Netns;
use accf_kit::wire::{self, Wire};
use anyhow::{ensure, Context, Result};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4Slice};
use socket2::{Domain, Protocol, Socket, Type};

/// The interface that has the addresses, in both namespaces.
///
/// It is a VLAN interface on top of the veth interface, and packets are captured there: netem
/// delays a packet below it, so that a packet is captured when TCP sends it, and when it arrives.
/// On the veth interface itself a packet is captured after netem's delay.
pub(crate) const INTERFACE: &str = "host0";

const ECHOES: u16 = 20;
const WARM_UP_ECHOES: u16 = 3;

/// Two namespaces, a veth pair between them, and a delay.
pub(crate) struct Path {
    wire: Wire,
    rtt: Duration,
}

impl Path {
    /// Makes the path.
    pub(crate) fn lay(rtt: Duration) -> Result<Self> {
        let wire = Wire::with_rtt(rtt)?;
        let (client, server) = (wire.client_ip(Family::V4), wire.server_ip(Family::V4));
        for (ns, own, peer, peer_ns) in [
            (&wire.client, client, server, &wire.server),
            (&wire.server, server, client, &wire.client),
        ] {
            let below = wire::INTERFACE;
            let peer_mac = mac(peer_ns, below)?;
            ns.ip(&format!(
                "addr flush dev {below}\n\
                 link add link {below} name {INTERFACE} type vlan id 1\n\
                 addr add {own}/24 dev {INTERFACE}\n\
                 link set {INTERFACE} up\n\
                 neigh replace {peer} lladdr {peer_mac} nud permanent dev {INTERFACE}"
            ))?;
            // Metrics of one connection must not influence the next.
            ns.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        }
        Ok(Self { wire, rtt })
    }

    /// Returns the two ends.
    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Measures the path with ICMP echoes, which the server's kernel answers.
    pub(crate) fn measure(&self) -> Result<accf_demo::Path> {
        let one_way_delay_ms = u32::try_from((self.rtt / 2).as_millis())?;
        let server = SocketAddr::new(self.wire.server_ip(Family::V4), 0);
        let echo_rtt_us = self.wire.client.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect(&server.into())?;
            let all = (0..WARM_UP_ECHOES + ECHOES).map(|seq| echo(&socket, seq));
            let all: Vec<u64> = all.collect::<Result<_>>()?;
            Ok(all.into_iter().skip(usize::from(WARM_UP_ECHOES)).collect())
        })?;
        Ok(accf_demo::Path {
            description: format!(
                "two network namespaces joined by a veth pair, on which netem delays every packet \
                 by {one_way_delay_ms} ms in each direction, {} ms there and back",
                2 * one_way_delay_ms
            ),
            one_way_delay_ms,
            echo_rtt_us,
        })
    }
}

/// Sends one echo request, waits for its reply, and returns the round-trip time in microseconds.
fn echo(mut socket: &Socket, seq: u16) -> Result<u64> {
    let header = IcmpEchoHeader {
        id: std::process::id() as u16,
        seq,
    };
    let request = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(header), &[]).to_bytes();
    let sent = Instant::now();
    socket.send(&request).context("send an ICMP echo request")?;
    let mut buffer = [0; 1500];
    loop {
        let length = socket
            .read(&mut buffer)
            .context("no answer to an ICMP echo request")?;
        let took = sent.elapsed();
        let packet = buffer.get(..length).unwrap_or_default();
        let Ok(ip) = Ipv4Slice::from_slice(packet) else {
            continue;
        };
        let Ok(icmp) = Icmpv4Slice::from_slice(ip.payload().payload) else {
            continue;
        };
        if icmp.icmp_type() == Icmpv4Type::EchoReply(header) {
            return Ok(u64::try_from(took.as_micros())?);
        }
    }
}

/// Returns the hardware address of an interface.
fn mac(ns: &Netns, interface: &str) -> Result<String> {
    // Not sysfs, which shows the namespace it was mounted in.
    let shown = ns.command("ip", &["-brief", "link", "show", "dev", interface])?;
    let mac = shown
        .split_whitespace()
        .nth(2)
        .unwrap_or_default()
        .to_owned();
    ensure!(mac.len() == 17, "no hardware address in: {shown}");
    Ok(mac)
}
